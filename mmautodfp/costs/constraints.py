"""The limits of a search, and how many channels a group may keep within them (Algorithm 1)."""

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
    """One or several limits on the widths of a search; all of them must be met.

    Args:
        budgets (Sequence[Budget]): One or more.

    Attributes:
        budgets (list[Budget]): The same, as a list.
        min_widths (list[int]): [L], the least width of each group. Set when bound, like the next two.
        channel_divisor (int): Kept widths are multiples of it or the full width.
        divisors (list[int]): [L], the divisor of each group's width in blocks.

    Raises:
        AutoDFPError: ``budgets`` is empty.
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
            costs (ModelCosts): Of the model.
            min_widths (Sequence[int]): [L], the least width of each group, from :func:`round_widths`.
            channel_divisor (int): Kept widths are multiples of it or the full width. Defaults to 1.
            divisors (Sequence[int] | None): [L], the divisor of each group's width in blocks, see :func:`divisors_of`.
                Defaults to None: ``channel_divisor`` for all, as for blocks of one channel.

        Raises:
            AutoDFPError: Even the least widths exceed a limit; the message names the range that can be reached.
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

        Groups before it have the widths ``chosen``, groups after it count with their least widths.
        """
        group = len(chosen)
        widths = [*chosen, *self.min_widths[group:]]
        bound = min(budget.cost.widest(widths, group, budget.limit) for budget in self.budgets)
        return floor_width(bound, self._dense[group], self.divisors[group])

    def allows(self, widths: Sequence[int]) -> bool:
        """Whether ``widths`` [L] are within all limits."""
        return all(budget.cost(widths) <= budget.limit for budget in self.budgets)

    def uniform_ratio(self) -> float:
        """The largest ratio p that is within the limits when all groups have it (Eq. 15)."""
        if self.allows(self._dense):
            return 1.0
        # Rounded widths change where p N is halfway between two allowed widths. The ratios to choose from are halfway
        # between two such steps, so that rounding them to float32 does not change a width.
        kinds = set(zip(self._dense, self.divisors, strict=True))
        pairs = {(a, b, n) for n, divisor in kinds for a, b in pairwise([0, *allowed_widths(n, divisor)])}
        steps = sorted({0.0} | {(a + b) / 2 / n for a, b, n in pairs})
        plateaus = [(a + b) / 2 for a, b in pairwise(steps)]
        # A cost never falls as widths grow, so the ratios within the limits come first.
        too_wide = lambda ratio: not self.allows(round_widths(ratio, self._dense, self.divisors))
        return plateaus[bisect_right(plateaus, False, key=too_wide) - 1]

    def at(self, share: float) -> 'Constraint':
        """A copy, once bound, with limits at ``share`` of the way from the least reachable cost to the dense one."""
        other = copy.copy(self)
        other.budgets = [budget.at(share) for budget in self.budgets]
        return other

    @property
    def share(self) -> float:
        """Where the lowest limit lies, once bound, as a share as of :meth:`at`; at most 1."""
        return min(budget.share for budget in self.budgets)

    def table(self) -> list[str]:
        """A table, line by line: for each budget the least cost that can be reached, the limit, and the dense cost."""
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
        """The settings as plain data, for ``summary.json``; a list if there are several budgets."""
        return _one_or_all([budget.describe() for budget in self.budgets])

    @property
    def identity(self) -> list:
        """What a search and its resume must have in common, as plain data; a list of it for several budgets."""
        return _one_or_all([budget.identity for budget in self.budgets])


def _one_or_all(items: list) -> Any:
    return items if len(items) > 1 else items[0]


def read_constraint(settings: Constraint | Budget | dict | Sequence[Budget | dict] | float | str | None) -> Constraint:
    """Read the limits that settings describe.

    Args:
        settings (Constraint | Budget | dict | Sequence | float | str | None): A constraint or a budget, which is
            copied; the config of a budget, by default of a :class:`ParamBudget`; a share of the parameters, such as 0.6
            or '60%'; or a list, each item of which describes one budget. None is a :class:`ParamBudget` with its
            defaults.

    Raises:
        AutoDFPError: A text is no percentage, or a budget cannot be built.
    """
    if isinstance(settings, Constraint):
        return copy.deepcopy(settings)  # each task binds its own copy
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
