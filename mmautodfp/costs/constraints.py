"""Limits on what a plan costs, and how much a layer may keep so that the whole stays within them (Algorithm 1)."""

import copy
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import Any, ClassVar

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import BUDGETS
from mmautodfp.utils.timing import describe_machine

from .counts import Cost, ModelCosts
from .quantities import format_quantity, parse_limit


class Constraint(ABC):
    """What bounds the widths of a search: one :class:`Budget` or several (:class:`Constraints`).

    Attributes:
        min_widths (list[int]): [L], the least that each unit keeps; known once bound.
        channel_divisor (int): Kept widths are multiples of it or the full width; known once bound.
        divisors (list[int]): [L], the same for each group, in blocks; known once bound.
    """

    min_widths: list[int]
    channel_divisor: int = 1
    divisors: list[int]

    @property
    @abstractmethod
    def budgets(self) -> list['Budget']:
        """The budgets that it consists of."""

    @abstractmethod
    def bind(
        self,
        costs: ModelCosts,
        min_widths: Sequence[int],
        channel_divisor: int = 1,
        blocks: Sequence[int] | None = None,
    ) -> None:
        """Set the limit for a model.

        Args:
            costs (ModelCosts): Its costs.
            min_widths (Sequence[int]): [L], the least that each unit keeps, as :func:`round_widths` gives them.
            channel_divisor (int): Kept widths are multiples of it or the full width. Defaults to 1.
            blocks (Sequence[int] | None): [L], how many channels each of a group's N stands for. Defaults to None: one.

        Raises:
            AutoDFPError: Not even the least widths meet the limit; the message names what can be reached.
        """

    @abstractmethod
    def max_width(self, chosen: Sequence[int]) -> int:
        """The most channels that unit ``len(chosen)`` may keep (Algorithm 1, sign corrected).

        Counted are the widths already chosen and the least widths of the units to come.
        """

    @abstractmethod
    def uniform_ratio(self) -> float:
        """The largest ratio p that, alike in all units (Eq. 15), stays within the limit."""

    def table(self) -> list[str]:
        """A line for each budget: the least that can be reached, what was asked for, and the dense cost."""
        rows = [('', 'least', 'asked', 'dense', '')]
        for budget in self.budgets:
            cost = budget.cost
            dense = cost(cost.dense)
            least, asked = (
                f'{format_quantity(value, budget.metric)} ({value / dense:.0%})'
                for value in (cost(self.min_widths), budget.limit)
            )
            whole = format_quantity(dense, budget.metric)
            rows.append((f'{budget.metric} of the {budget.scope}', least, asked, whole, 'reachable'))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ['  '.join(word.rjust(size) for word, size in zip(row, sizes, strict=True)).rstrip() for row in rows]

    @abstractmethod
    def at(self, share: float) -> 'Constraint':
        """The same limits elsewhere, once bound: ``share`` of the way from the least that can be reached to dense."""

    @property
    @abstractmethod
    def share(self) -> float:
        """How far up the limit lies, once bound, as of :meth:`at`: 1 if it is dense or more."""

    @abstractmethod
    def describe(self) -> Any:
        """Its settings as plain data, for ``summary.json``."""

    @property
    @abstractmethod
    def identity(self) -> list:
        """What a search and one that resumes it must share, as plain data."""


class Budget(Constraint):
    """A limit on one cost, and Algorithm 1's bound with exact counts.

    Args:
        preserve_ratio (float): Share of the dense cost that may stay, in (0, 1]. Defaults to 0.9.
        scope (str): What is limited: 'module', the part that is pruned (the parts together, where the target is a
            list of them), or 'model', all of the model. Defaults to 'module'.
        limit (str | float | None): The same in words: an amount with its unit, such as '120G', or a share of the dense
            cost, such as '60%'; see :func:`parse_limit`. It takes the place of ``preserve_ratio``, which a base config
            may name. Defaults to None.

    Attributes:
        limit (int): The most that a plan may cost, in the metric's smallest unit; known once bound.

    Raises:
        AutoDFPError: An argument is out of its range.
    """

    metric: ClassVar[str]
    limit: int

    def __init__(self, preserve_ratio: float = 0.9, scope: str = 'module', limit: str | float | None = None):
        if not 0 < preserve_ratio <= 1:
            raise AutoDFPError(f'preserve_ratio is the share that stays and lies in (0, 1], got {preserve_ratio}')
        if scope not in ('module', 'model'):
            raise AutoDFPError(f"scope of a budget is 'module' or 'model', got {scope!r}")
        self.asked = None if limit is None else parse_limit(limit, self.metric)
        # What is kept and told of a share does not depend on how it was written.
        self.preserve_ratio = preserve_ratio if self.asked is None else self.asked.share
        self._text = limit
        self.scope = scope
        self.cost: Cost | None = None

    @property
    def budgets(self) -> list['Budget']:
        return [self]

    def bind(
        self,
        costs: ModelCosts,
        min_widths: Sequence[int],
        channel_divisor: int = 1,
        blocks: Sequence[int] | None = None,
    ) -> None:
        self.cost = getattr(costs, self.metric)[self.scope]
        self.min_widths = list(min_widths)
        self.channel_divisor = channel_divisor
        self.divisors = divisors_of(blocks or [1] * len(min_widths), channel_divisor)
        least, dense = self.cost(self.min_widths), self.cost(self.cost.dense)
        self.limit = int(self.preserve_ratio * dense + 1e-6) if self.asked is None else self.asked.of(dense)
        if least > self.limit:
            coarser = ' or channel_divisor' if channel_divisor > 1 else ''
            if self.asked is None:
                name, asked = 'ratio', f'preserve_ratio of {self.preserve_ratio:g}'
                reach = f'{self.cost.ratio(self.min_widths):.4f} to 1'
            else:
                name, asked = 'limit', f'limit of {self._text}'
                reach = f'{self.asked.show(least, dense, up=True)} to {self.asked.show(dense, dense)}'
            raise AutoDFPError(
                f"a {asked} of the {self.scope}'s {self.metric} was asked for, but pruning can only reach {reach}; "
                f'raise the {name} or lower p_min{coarser}'
            )

    def max_width(self, chosen: Sequence[int]) -> int:
        unit = len(chosen)
        bound = self.cost.widest([*chosen, *self.min_widths[unit:]], unit, self.limit)
        return floor_width(bound, self.cost.dense[unit], self.divisors[unit])

    def uniform_ratio(self) -> float:
        dense, divisors = self.cost.dense, self.divisors
        if self.cost(dense) <= self.limit:
            return 1.0
        # Widths change halfway between two that are allowed. A ratio halfway between two such steps survives rounding
        # to float32.
        kinds = set(zip(dense, divisors, strict=True))
        pairs = {(a, b, n) for n, divisor in kinds for a, b in pairwise([0, *allowed_widths(n, divisor)])}
        steps = sorted({0.0} | {(a + b) / 2 / n for a, b, n in pairs})
        plateaus = [(a + b) / 2 for a, b in pairwise(steps)]
        # A cost never falls as widths grow, so those that fit come first.
        count = bisect_right(plateaus, self.limit, key=lambda ratio: self.cost(round_widths(ratio, dense, divisors)))
        return plateaus[count - 1]

    def at(self, share: float) -> 'Budget':
        least, dense = self.cost(self.min_widths), self.cost(self.cost.dense)
        other = copy.copy(self)
        other.limit = least + int(share * (dense - least))
        return other

    @property
    def share(self) -> float:
        least, dense = self.cost(self.min_widths), self.cost(self.cost.dense)
        return min(1.0, (self.limit - least) / (dense - least)) if dense > least else 1.0

    def describe(self) -> dict[str, Any]:
        amount = (
            dict(limit=str(self._text)) if self.preserve_ratio is None else dict(preserve_ratio=self.preserve_ratio)
        )
        return dict(type=type(self).__name__, **amount, scope=self.scope)

    @property
    def identity(self) -> list:
        return [type(self).__name__, self.preserve_ratio or self.asked.amount, self.scope]


@BUDGETS.register_module()
class ParamBudget(Budget):
    """Limits the number of parameters."""

    metric = 'params'


@BUDGETS.register_module()
class FlopBudget(Budget):
    """Limits the number of multiply-accumulates on the example input (``flops_input`` in a run's summary)."""

    metric = 'flops'


@BUDGETS.register_module()
class LatencyBudget(Budget):
    """Limits the time that the example input takes, as :func:`measure_latency_costs` predicts it here.

    Args:
        preserve_ratio (float): Share of the dense latency that may stay, in (0, 1]. Defaults to 0.9.
        scope (str): As in :class:`Budget`. Defaults to 'module'.
        points (int): Widths of each layer that are measured; in between is interpolated. Defaults to 5.
        repeat (int): Measurements of each, of which the median counts. Defaults to 7.
        limit (str | None): As in :class:`Budget`, such as '30ms' or '60%'. Defaults to None.

    Raises:
        AutoDFPError: An argument is out of its range.
    """

    metric = 'latency'

    def __init__(
        self,
        preserve_ratio: float = 0.9,
        scope: str = 'module',
        points: int = 5,
        repeat: int = 7,
        limit: str | float | None = None,
    ):
        super().__init__(preserve_ratio, scope, limit)
        if points < 2 or repeat < 1:
            raise AutoDFPError(f'LatencyBudget needs points >= 2 and repeat >= 1, got {points} and {repeat}')
        self.points = points
        self.repeat = repeat

    @property
    def identity(self) -> list:
        machine = describe_machine()  # on another one the limit is another
        return [*super().identity, self.points, machine['processor'], machine['gpu']]


@BUDGETS.register_module()
class MemoryBudget(Budget):
    """Limits the memory that inference on the example input takes, as :func:`measure_memory_costs` counts it."""

    metric = 'memory'


class Constraints(Constraint):
    """Several limits that hold at once; ``budget=[dict(...), dict(...)]`` in a config.

    Args:
        budgets (Sequence[Budget]): One or more.

    Raises:
        AutoDFPError: There is none.
    """

    def __init__(self, budgets: Sequence[Budget]):
        if not budgets:
            raise AutoDFPError('a list of budgets was given, but it is empty; name at least one, such as ParamBudget')
        self._budgets = list(budgets)

    @property
    def budgets(self) -> list[Budget]:
        return self._budgets

    def bind(
        self,
        costs: ModelCosts,
        min_widths: Sequence[int],
        channel_divisor: int = 1,
        blocks: Sequence[int] | None = None,
    ) -> None:
        for budget in self.budgets:
            budget.bind(costs, min_widths, channel_divisor, blocks)
        self.min_widths, self.channel_divisor = list(min_widths), channel_divisor
        self.divisors = self.budgets[0].divisors

    def max_width(self, chosen: Sequence[int]) -> int:
        return min(budget.max_width(chosen) for budget in self.budgets)

    def uniform_ratio(self) -> float:
        return min(budget.uniform_ratio() for budget in self.budgets)

    def at(self, share: float) -> 'Constraints':
        other = copy.copy(self)
        other._budgets = [budget.at(share) for budget in self.budgets]
        return other

    @property
    def share(self) -> float:
        return min(budget.share for budget in self.budgets)

    def describe(self) -> list[dict[str, Any]]:
        return [budget.describe() for budget in self.budgets]

    @property
    def identity(self) -> list:
        return [budget.identity for budget in self.budgets]


def allowed_widths(channels: int, divisor: int = 1) -> list[int]:
    """The multiples of ``divisor`` up to ``channels``, and ``channels`` itself."""
    return [*range(divisor, channels, divisor), channels]


def floor_width(width: int, channels: int, divisor: int = 1) -> int:
    """The widest allowed width up to ``width``; ``width`` must not be below the narrowest one."""
    return channels if width >= channels else width // divisor * divisor


def divisors_of(blocks: Sequence[int], channel_divisor: int) -> list[int]:
    """[L], of how many blocks [L] of channels a width is a multiple, so that the channels are one of the divisor."""
    return [channel_divisor // gcd(channel_divisor, block) for block in blocks]


def round_widths(ratio: float, dense: Sequence[int], divisors: Sequence[int] | int = 1) -> list[int]:
    """Eq. 15 for each group: max(1, round(p N)), or with a divisor the nearest of :func:`allowed_widths`.

    Args:
        ratio (float): p.
        dense (Sequence[int]): [L], the groups' dense widths N.
        divisors (Sequence[int] | int): [L], widths are multiples of it or N; or one for all. Defaults to 1.

    Returns:
        list[int]: [L].
    """
    divisors = [divisors] * len(dense) if isinstance(divisors, int) else divisors
    return [
        max(1, round(ratio * n))
        if divisor == 1
        else min(allowed_widths(n, divisor), key=lambda width: abs(width - ratio * n))
        for n, divisor in zip(dense, divisors, strict=True)
    ]
