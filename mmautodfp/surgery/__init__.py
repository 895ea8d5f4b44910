"""Carrying out a plan on a live model, in place and back."""

from .allocation import allocate_widths, allocation_path
from .apply import apply_plan, prune_unit, replace_tensor, replace_weight, shift_outputs
from .plan import PruningPlan, UnitPlan
from .proof import prove_groups
from .restore import Restore
from .slim import Slim, SlimModel

__all__ = [
    'PruningPlan',
    'Restore',
    'Slim',
    'SlimModel',
    'UnitPlan',
    'allocate_widths',
    'allocation_path',
    'apply_plan',
    'prove_groups',
    'prune_unit',
    'replace_tensor',
    'replace_weight',
    'shift_outputs',
]
