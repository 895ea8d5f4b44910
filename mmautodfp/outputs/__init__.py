"""What a run leaves behind, and what it says while it runs. The page of a run is in :mod:`.report`."""

from .artifacts import RunArtifacts
from .comparison import compare
from .config import PRUNED, keep_config, read_metainfo, slim_config
from .progress import search_line

__all__ = [
    'PRUNED',
    'RunArtifacts',
    'compare',
    'keep_config',
    'read_metainfo',
    'search_line',
    'slim_config',
]
