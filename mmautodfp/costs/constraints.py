"""The limits of a search, and how much a layer may keep so that the whole stays within them (Algorithm 1)."""

import copy
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import BUDGETS, build

from .budgets import Budget, ParamBudget
from .counts import ModelCosts
from .quantities import format_quantity
from .widths import allowed_widths, floor_width, round_widths


class Constraint:
    """The limits on the widths of a search, one or several that hold at once.

    Args:
        budgets (Sequence[Budget]): One or more.

    Attributes:
        budgets (list[Budget]): They.
        min_widths (list[int]): [L], the least that each group keeps; known once bound, like the others.
        channel_divisor (int): Kept widths are multiples of it or the full width.
        divisors (list[int]): [L], the same for each group, in blocks.

    Raises:
        AutoDFPError: There is none.
    """

    min_widths: list[int]
    channel_divisor: int
    divisors: list[int]

    def __init__(self, budgets: Sequence[Budget]):
        if not budgets:
            raise AutoDFPError('a list of budgets was given, but it is empty; name at least one, such as ParamBudget')
        self.budgets = list(budgets)

    def bind(
        self,
        costs: ModelCosts,
        min_widths: Sequence[int],
        channel_divisor: int = 1,
        divisors: Sequence[int] | None = None,
    ) -> None:
        """Set the limits for a model.

        Args:
            costs (ModelCosts): Its costs.
            min_widths (Sequence[int]): [L], the least that each group keeps, as :func:`round_widths` gives them.
            channel_divisor (int): Kept widths are multiples of it or the full width. Defaults to 1.
            divisors (Sequence[int] | None): [L], the same for each group, in blocks, see :func:`divisors_of`. Defaults
                to None: each block is a channel.

        Raises:
            AutoDFPError: Not even the least widths meet a limit; the message names what can be reached.
        """
        for budget in self.budgets:
            budget.bind(costs, min_widths, channel_divisor)
        self.min_widths, self.channel_divisor = list(min_widths), channel_divisor
        self.divisors = list(divisors or [channel_divisor] * len(min_widths))

    @property
    def _dense(self) -> list[int]:
        return self.budgets[0].cost.dense

    def max_width(self, chosen: Sequence[int]) -> int:
        """The most channels that group ``len(chosen)`` may keep (Algorithm 1, sign corrected).

        Counted are the widths already chosen and the least widths of the groups to come.
        """
        group = len(chosen)
        widths = [*chosen, *self.min_widths[group:]]
        bound = min(budget.cost.widest(widths, group, budget.limit) for budget in self.budgets)
        return floor_width(bound, self._dense[group], self.divisors[group])

    def allows(self, widths: Sequence[int]) -> bool:
        """Whether ``widths`` [L] are within all limits."""
        return all(budget.cost(widths) <= budget.limit for budget in self.budgets)

    def uniform_ratio(self) -> float:
        """The largest ratio p that, alike in all groups (Eq. 15), stays within the limits."""
        if self.allows(self._dense):
            return 1.0
        # Widths change halfway between two that are allowed. A ratio halfway between two such steps survives rounding
        # to float32.
        kinds = set(zip(self._dense, self.divisors, strict=True))
        pairs = {(a, b, n) for n, divisor in kinds for a, b in pairwise([0, *allowed_widths(n, divisor)])}
        steps = sorted({0.0} | {(a + b) / 2 / n for a, b, n in pairs})
        plateaus = [(a + b) / 2 for a, b in pairwise(steps)]
        # A cost never falls as widths grow, so those that fit come first.
        too_wide = lambda ratio: not self.allows(round_widths(ratio, self._dense, self.divisors))
        return plateaus[bisect_right(plateaus, False, key=too_wide) - 1]

    def at(self, share: float) -> 'Constraint':
        """The same limits elsewhere, once bound: ``share`` of the way from the least that can be reached to dense."""
        other = copy.copy(self)
        other.budgets = [budget.at(share) for budget in self.budgets]
        return other

    @property
    def share(self) -> float:
        """How far up the lowest limit lies, once bound, as of :meth:`at`: 1 if it is dense or more."""
        return min(budget.share for budget in self.budgets)

    def table(self) -> list[str]:
        """A line for each budget: the least that can be reached, what was asked for, and the dense cost."""
        rows = [('', 'least', 'asked', 'dense', '')]
        for budget in self.budgets:
            least, asked, dense = (
                format_quantity(value, budget.metric) for value in (budget.least, budget.limit, budget.dense)
            )
            least += f' ({budget.least / budget.dense:.0%})'
            asked += f' ({budget.limit / budget.dense:.0%})'
            reach = 'reachable' if budget.limit < budget.dense else 'no less than dense: nothing has to go'
            rows.append((f'{budget.metric} of the {budget.scope}', least, asked, dense, reach))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ['  '.join(word.rjust(size) for word, size in zip(row, sizes, strict=True)).rstrip() for row in rows]

    def describe(self) -> dict[str, Any] | list[dict[str, Any]]:
        """The settings as plain data, for ``summary.json``: of one budget, or a list of them."""
        return _one_or_all([budget.describe() for budget in self.budgets])

    @property
    def identity(self) -> list:
        """What a search and one that resumes it must share, as plain data; of one budget, or a list of them."""
        return _one_or_all([budget.identity for budget in self.budgets])


def _one_or_all(items: list) -> Any:
    return items if len(items) > 1 else items[0]


def read_constraint(settings: Constraint | Budget | dict | Sequence[Budget | dict] | float | str | None) -> Constraint:
    """The limits that are described: by themselves, by a config, by several, or as a share of the parameters."""
    if isinstance(settings, Constraint):
        return copy.deepcopy(settings)  # a task binds it to its own costs
    several = settings if isinstance(settings, list | tuple) else [settings]
    return Constraint([_read_budget(one) for one in several])


def _read_budget(settings: Budget | dict | float | str | None) -> Budget:
    if isinstance(settings, Budget):
        return copy.deepcopy(settings)
    if isinstance(settings, Real) and not isinstance(settings, bool):
        return ParamBudget(float(settings))
    if isinstance(settings, str):
        if not settings.rstrip().endswith('%'):
            raise AutoDFPError(
                f'a constraint of {settings!r} was asked for, which does not say of what; name its type, as '
                "dict(type='FlopBudget', limit='120G') does, or the share of the parameters that stays, such as '60%'"
            )
        return ParamBudget(limit=settings)
    if isinstance(settings, dict | None):
        settings = dict(type='ParamBudget') | (settings or {})
    return build(BUDGETS, settings)
