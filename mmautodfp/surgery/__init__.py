"""Carrying out a plan on a live model, in place and back."""

import warnings
from importlib import import_module
from typing import Any

from .allocation import allocate_widths, allocation_path
from .apply import apply_plan, prune_unit, replace_tensor, shift_outputs
from .plan import PruningPlan, UnitPlan
from .proof import mask_group, prove_groups
from .restore import Restore
from .slim import Slim, SlimModel, shrink

__all__ = [
    'PruningPlan',
    'Restore',
    'Slim',
    'SlimModel',
    'UnitPlan',
    'allocate_widths',
    'allocation_path',
    'apply_plan',
    'mask_group',
    'prove_groups',
    'prune_unit',
    'replace_tensor',
    'shift_outputs',
    'shrink',
]


def __getattr__(name: str) -> Any:
    """What version 0.1 had here: finders and reconstructors that users wrote then import it."""
    for room in ('graph', 'costs', 'reconstruction'):
        module = import_module(f'mmautodfp.{room}')
        if name in module.__all__:
            warnings.warn(f'mmautodfp.surgery.{name} is mmautodfp.{room}.{name} since 0.2', FutureWarning, stacklevel=2)
            return getattr(module, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
