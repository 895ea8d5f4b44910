"""The piece that faces MMEngine."""

from .autodfp_hook import AutoDFPHook
from .settings import find_module

__all__ = ['AutoDFPHook', 'find_module']
