"""The piece that faces MMEngine."""

from .autodfp_hook import AutoDFPHook
from .settings import HookSettings, read_settings

__all__ = ['AutoDFPHook', 'HookSettings', 'read_settings']
