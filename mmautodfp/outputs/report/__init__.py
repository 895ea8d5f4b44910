"""What a person sees of a run: the page, its pictures, tables."""

from .evidence import ChannelMap, Evidence, collect, measure_times
from .page import Report
from .pictures import Finding, Picture

__all__ = [
    'ChannelMap',
    'Evidence',
    'Finding',
    'Picture',
    'Report',
    'collect',
    'measure_times',
]
