"""Carrying out a plan on a live model, in place and back."""

from .allocation import allocate_widths, allocation_of
from .apply import apply_plan, prune_unit, replace_tensor, shift_outputs
from .plan import PruningPlan, UnitPlan
from .restore import Restore
from .slim import Slim, shrink

__all__ = [
    'PruningPlan',
    'Restore',
    'Slim',
    'UnitPlan',
    'allocate_widths',
    'allocation_of',
    'apply_plan',
    'prune_unit',
    'replace_tensor',
    'shift_outputs',
    'shrink',
]
