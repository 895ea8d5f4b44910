"""What the command-line tools do: a config and a checkpoint in, an MMEngine Runner through."""

from .checkpoints import adapt_state, find_checkpoint, read_state
from .configs import last_line, load_config, load_search_config
from .runs import build_runner, evaluate, prune

__all__ = [
    'adapt_state',
    'build_runner',
    'evaluate',
    'find_checkpoint',
    'last_line',
    'load_config',
    'load_search_config',
    'prune',
    'read_state',
]
