"""Limits as configs and callers describe them."""

import copy
from collections.abc import Sequence
from numbers import Real

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import BUDGETS, build

from .constraints import Budget, Constraint, Constraints, ParamBudget


def read_constraint(settings: Constraint | dict | Sequence[dict | Budget] | float | str | None) -> Constraint:
    """The limit that is described: by itself, a config, several that hold at once, or a share of the parameters."""
    if isinstance(settings, Constraint):
        return copy.deepcopy(settings)  # a task binds it to its own costs
    if isinstance(settings, Real) and not isinstance(settings, bool):
        return ParamBudget(float(settings))
    if isinstance(settings, str):
        if not settings.rstrip().endswith('%'):
            raise AutoDFPError(
                f'a constraint of {settings!r} was asked for, which does not say of what; name its type, as '
                "dict(type='FlopBudget', limit='120G') does, or the share of the parameters that stays, such as '60%'"
            )
        return ParamBudget(limit=settings)
    if isinstance(settings, list | tuple):
        return Constraints([copy.deepcopy(one) if isinstance(one, Budget) else build(BUDGETS, one) for one in settings])
    if settings is None or isinstance(settings, dict):
        settings = dict(type='ParamBudget') | (settings or {})
    return build(BUDGETS, settings)
