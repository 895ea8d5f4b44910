"""What a run leaves behind, and what it says while it runs. The page of a run is in :mod:`.report`."""

from .artifacts import Row, RunArtifacts
from .comparison import Candidate, compare, measure
from .config import read_metainfo, slim_config
from .latency import measure_latency
from .progress import search_line

__all__ = [
    'Candidate',
    'Row',
    'RunArtifacts',
    'compare',
    'measure',
    'measure_latency',
    'read_metainfo',
    'search_line',
    'slim_config',
]
