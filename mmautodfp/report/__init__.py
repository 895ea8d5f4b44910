"""What a person sees of a run: the page, its pictures, tables."""

from .again import measure_times, remake_report
from .evidence import ChannelMap, Evidence, collect
from .page import Report, write_report
from .pictures import Finding, Picture
from .plots import draw_pareto

__all__ = [
    'ChannelMap',
    'Evidence',
    'Finding',
    'Picture',
    'Report',
    'collect',
    'draw_pareto',
    'measure_times',
    'remake_report',
    'write_report',
]
