"""What a person sees of a run: the page, its pictures, tables."""

from .again import measure_times, remake_report
from .evidence import ChannelMap, Evidence, collect
from .page import Report
from .pareto import Panel, draw_panels, draw_pareto
from .pictures import Finding, Picture

__all__ = [
    'ChannelMap',
    'Evidence',
    'Finding',
    'Panel',
    'Picture',
    'Report',
    'collect',
    'draw_panels',
    'draw_pareto',
    'measure_times',
    'remake_report',
]
