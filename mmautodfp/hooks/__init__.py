"""The piece that faces MMEngine."""

from .autodfp_hook import AutoDFPHook, find_module

__all__ = ['AutoDFPHook', 'find_module']
