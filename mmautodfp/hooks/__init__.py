"""The hook by which MMEngine's Runner prunes a model, and its settings."""

from .autodfp_hook import AutoDFPHook
from .settings import HookSettings, read_settings

__all__ = ['AutoDFPHook', 'HookSettings', 'read_settings']
