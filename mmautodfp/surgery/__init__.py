"""Pruning a live model in place, as a plan says, and undoing it."""

from .allocation import allocate_widths, allocation_path
from .apply import apply_plan, prune_group, replace_tensor, replace_weight, shift_outputs
from .plan import GroupPlan, PruningPlan
from .proof import prove_groups
from .restore import Restore
from .slim import Slim, SlimModel

__all__ = [
    'GroupPlan',
    'PruningPlan',
    'Restore',
    'Slim',
    'SlimModel',
    'allocate_widths',
    'allocation_path',
    'apply_plan',
    'prove_groups',
    'prune_group',
    'replace_tensor',
    'replace_weight',
    'shift_outputs',
]
