"""What the command-line tools do: a config and a checkpoint in, an MMEngine Runner through."""

from .checkpoints import find_checkpoint
from .commands import evaluate, prune
from .configs import add_settings, find_config, load_config, load_search_config
from .data import require_data
from .frontier import frontier
from .runner import build_runner

__all__ = [
    'add_settings',
    'build_runner',
    'evaluate',
    'find_checkpoint',
    'find_config',
    'frontier',
    'load_config',
    'load_search_config',
    'prune',
    'require_data',
]
