"""Limits on one cost each."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import BUDGETS
from mmautodfp.utils.timing import describe_machine

from .counts import Cost, ModelCosts
from .quantities import Limit, parse_limit


class Budget:
    """A limit on one cost. The :class:`.Constraint` that it is part of binds it to a model.

    Args:
        preserve_ratio (float): Share of the dense cost that may stay, in (0, 1]. Defaults to 0.9.
        scope (str): What is limited: 'module', the part that is pruned (if the target is a list, the parts together),
            or 'model', the whole model. Defaults to 'module'.
        limit (str | float | None): An amount with its unit, such as '120G', or a share of the dense cost, such as
            '60%'; see :func:`parse_limit`. It overrides ``preserve_ratio``, which a base config may set. Defaults to
            None.

    Attributes:
        cost (Cost | None): The cost that is limited; None until bound.
        least (int): Cost of the least widths, in the metric's smallest unit. Set when bound, like the next two.
        dense (int): Cost of the dense model.
        limit (int): The most that a plan may cost.

    Raises:
        AutoDFPError: An argument is out of its range.
    """

    metric: ClassVar[str]
    least: int
    dense: int
    limit: int

    def __init__(self, preserve_ratio: float = 0.9, scope: str = 'module', limit: str | float | None = None):
        if not 0 < preserve_ratio <= 1:
            raise AutoDFPError(f'preserve_ratio is the share that stays and lies in (0, 1], got {preserve_ratio}')
        if scope not in ('module', 'model'):
            raise AutoDFPError(f"scope of a budget is 'module' or 'model', got {scope!r}")
        self._text = limit
        # A ratio becomes the Limit that a percentage is read as, so describe() and identity are the same for both.
        share = Limit(self.metric, None, preserve_ratio, '%')
        self.asked = share if limit is None else parse_limit(limit, self.metric)
        self.scope = scope
        self.cost: Cost | None = None

    def bind(self, costs: ModelCosts, min_widths: Sequence[int], channel_divisor: int) -> None:
        """Set the limit for a model; arguments and errors as of :meth:`.Constraint.bind`."""
        self.cost = getattr(costs, self.metric)[self.scope]
        self.least, self.dense = self.cost(min_widths), self.cost(self.cost.dense)
        self.limit = self.asked.of(self.dense)
        if self.least > self.limit:
            coarser = ' or channel_divisor' if channel_divisor > 1 else ''
            if self._text is None:
                name, asked = 'ratio', f'preserve_ratio of {self.asked.share:g}'
                reach = f'{self.least / self.dense:.4f} to 1'
            else:
                name, asked = 'limit', f'limit of {self._text}'
                least, dense = self.asked.show(self.least, self.dense, up=True), self.asked.show(self.dense, self.dense)
                reach = f'{least} to {dense}'
            raise AutoDFPError(
                f"a {asked} of the {self.scope}'s {self.metric} was asked for, but pruning can only reach {reach}; "
                f'raise the {name} or lower p_min{coarser}'
            )

    def at(self, share: float) -> 'Budget':
        """As :meth:`.Constraint.at`."""
        other = copy.copy(self)
        other.limit = self.least + int(share * (self.dense - self.least))
        return other

    @property
    def share(self) -> float:
        """As :attr:`.Constraint.share`."""
        span = self.dense - self.least
        return min(1.0, (self.limit - self.least) / span) if span > 0 else 1.0

    def describe(self) -> dict[str, Any]:
        """The settings as plain data, for ``summary.json``."""
        share = self.asked.share
        amount = dict(limit=str(self._text)) if share is None else dict(preserve_ratio=share)
        return dict(type=type(self).__name__, **amount, scope=self.scope)

    @property
    def identity(self) -> list:
        """What a search and its resume must have in common, as plain data."""
        return [type(self).__name__, self.asked.share or self.asked.amount, self.scope]


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
    """Limits the latency on the example input, as :func:`measure_latency_costs` predicts it for this machine.

    Args:
        preserve_ratio (float): Share of the dense latency that may stay, in (0, 1]. Defaults to 0.9.
        scope (str): As in :class:`Budget`. Defaults to 'module'.
        points (int): How many widths of each layer are measured; latencies in between are interpolated. Defaults to 5.
        repeat (int): Measurements at each width, of which the median is taken. Defaults to 7.
        limit (str | float | None): As in :class:`Budget`, such as '30ms' or '60%'. Defaults to None.

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
        machine = describe_machine()  # the limit depends on it
        return [*super().identity, self.points, machine['processor'], machine['gpu']]


@BUDGETS.register_module()
class MemoryBudget(Budget):
    """Limits the memory of inference on the example input, as :func:`measure_memory_costs` counts it."""

    metric = 'memory'
