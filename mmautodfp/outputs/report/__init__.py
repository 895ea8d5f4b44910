"""What a person sees of a run: the page, its pictures, tables."""

from .evidence import Evidence, collect, measure_times
from .page import Report

__all__ = ['Evidence', 'Report', 'collect', 'measure_times']
