"""What a plan costs, exactly, and how much a layer may keep so that the whole stays within its limit (Algorithm 1)."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

from torch import nn

from mmautodfp.errors import AutoDFPError
from mmautodfp.registry import BUDGETS

from .units import PrunableUnit


@dataclass
class CostModel:
    """A cost as a function of the units' widths n.

    A conv between two units costs in proportion to both widths, one at the rim in proportion to one, so every count
    is ``constant + sum_i linear[i] n_i + sum_ij pairs[i, j] n_i n_j``, in integers, without an approximation.

    Attributes:
        dense (list[int]): [L], the units' dense widths N.
        constant (int): What no plan changes.
        linear (list[int]): [L].
        pairs (dict[tuple[int, int], int]): Products of two units' widths.
    """

    dense: list[int]
    constant: int = 0
    linear: list[int] = field(init=False)
    pairs: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self):
        self.linear = [0] * len(self.dense)

    def add(self, amount: int, *units: int | None) -> None:
        """Add a term: ``amount`` for each channel (or pair of channels) of ``units``; None stands for a fixed width."""
        factors = [unit for unit in units if unit is not None]
        if not factors:
            self.constant += amount
        elif len(factors) == 1:
            self.linear[factors[0]] += amount
        else:
            key = (min(factors), max(factors))
            self.pairs[key] = self.pairs.get(key, 0) + amount

    def __call__(self, widths: Sequence[int]) -> int:
        """Cost at ``widths`` [L]."""
        total = self.constant + sum(a * n for a, n in zip(self.linear, widths, strict=True))
        return total + sum(a * widths[i] * widths[j] for (i, j), a in self.pairs.items())

    def slope(self, widths: Sequence[int], unit: int) -> int:
        """What one more channel of ``unit`` costs while the others stay at ``widths``."""
        slope = self.linear[unit]
        for (i, j), amount in self.pairs.items():
            if unit in (i, j):
                slope += amount * widths[j if unit == i else i]
        return slope

    def ratio(self, widths: Sequence[int]) -> float:
        """Preserved share of the dense cost."""
        return self(widths) / self(self.dense)


@dataclass(frozen=True)
class ModelCosts:
    """Parameters and multiply-accumulates of the pruned module and of the whole model.

    Attributes:
        params (dict[str, CostModel]): By scope, 'module' and 'model'.
        flops (dict[str, CostModel]): Likewise; one multiply-accumulate of a conv or linear layer is one FLOP, as
            mmengine and mmdet count.
    """

    params: dict[str, CostModel]
    flops: dict[str, CostModel]

    def summary(self, widths: Sequence[int]) -> dict:
        """Counts and preserved shares at ``widths`` [L], by metric and scope."""
        return {
            f'{scope}_{metric}': dict(count=model(widths), ratio=model.ratio(widths))
            for metric in ('params', 'flops')
            for scope, model in getattr(self, metric).items()
        }


def measure_positions(model: nn.Module, run: Callable[[], object]) -> dict[nn.Module, int]:
    """Run a model once and count, for each conv and linear layer, the output positions it is evaluated at.

    Args:
        model (nn.Module): The model.
        run (Callable): Runs it on one input.

    Returns:
        dict[nn.Module, int]: Positions summed over all calls; layers that were not called are absent.
    """
    positions: dict[nn.Module, int] = {}

    def count(layer, _, output):
        width = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        positions[layer] = positions.get(layer, 0) + output.numel() // width

    with _hooks((layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)), count):
        run()
    return positions


def model_costs(
    model: nn.Module, module: nn.Module, units: Sequence[PrunableUnit], positions: Mapping[nn.Module, int]
) -> ModelCosts:
    """Count a dense model.

    Args:
        model (nn.Module): The whole model.
        module (nn.Module): The part of it that is pruned.
        units (Sequence[PrunableUnit]): Its units, L of them.
        positions (Mapping[nn.Module, int]): What :func:`measure_positions` gave, for FLOPs.

    Returns:
        ModelCosts: Exact costs for any widths.
    """
    roles = _roles(module, units)
    inside = set(module.modules())
    params, flops = {}, {}
    for scope in ('module', 'model'):
        params[scope] = CostModel([unit.num_channels for unit in units])
        flops[scope] = CostModel([unit.num_channels for unit in units])
        counted: set[nn.Parameter] = set()  # heads share parameters between levels
        for layer in model.modules():
            if scope == 'model' or layer in inside:
                own = {name: p for name, p in layer._parameters.items() if p is not None and p not in counted}
                counted.update(own.values())
                _count_layer(layer, own, roles.get(layer, _Role()), params[scope], flops[scope], positions)
    return ModelCosts(params, flops)


@dataclass
class _Role:
    """Which units a layer's outputs and inputs belong to."""

    outputs: int | None = None
    inputs: int | None = None


def _roles(module: nn.Module, units: Sequence[PrunableUnit]) -> dict[nn.Module, _Role]:
    roles: dict[nn.Module, _Role] = {}

    def role(name: str) -> _Role:
        return roles.setdefault(module.get_submodule(name), _Role())

    for index, unit in enumerate(units):
        role(unit.name).outputs = index
        for name in filter(None, (unit.norm, *unit.between)):
            role(name).outputs = index
        for consumer in unit.consumers:
            role(consumer.name).inputs = index
    return roles


def _count_layer(
    layer: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    role: _Role,
    params: CostModel,
    flops: CostModel,
    positions: Mapping[nn.Module, int],
) -> None:
    for name, tensor in parameters.items():
        # A weight loses rows with its own unit and columns with the one before; biases and norms lose rows only.
        touched = [unit for unit in (role.outputs, role.inputs if name == 'weight' else None) if unit is not None]
        amount = tensor.numel()
        for unit in touched:
            amount //= params.dense[unit]
        params.add(amount, *touched)
        if name == 'weight' and isinstance(layer, nn.Conv2d | nn.Linear):
            flops.add(amount * positions.get(layer, 0), *touched)


@contextmanager
def _hooks(layers, hook):
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Budget(ABC):
    """A limit on one cost, and Algorithm 1's bound with exact counts.

    Args:
        preserve_ratio (float): Share of the dense cost that may stay, in (0, 1]. Defaults to 0.9.
        scope (str): What the share is of: 'module', the part that is pruned, or 'model', all of it. Defaults to
            'module'.

    Raises:
        AutoDFPError: An argument is out of its range.
    """

    metric: ClassVar[str]

    def __init__(self, preserve_ratio: float = 0.9, scope: str = 'module'):
        if not 0 < preserve_ratio <= 1:
            raise AutoDFPError(f'preserve_ratio is the share that stays and lies in (0, 1], got {preserve_ratio}')
        if scope not in ('module', 'model'):
            raise AutoDFPError(f"scope of a budget is 'module' or 'model', got {scope!r}")
        self.preserve_ratio = preserve_ratio
        self.scope = scope
        self.cost: CostModel | None = None

    def bind(self, costs: ModelCosts, min_widths: Sequence[int]) -> None:
        """Set the limit for a model.

        Args:
            costs (ModelCosts): Its costs.
            min_widths (Sequence[int]): [L], the least that each unit keeps.

        Raises:
            AutoDFPError: Not even the least widths meet the limit; the message names what can be reached.
        """
        self.cost = getattr(costs, self.metric)[self.scope]
        self.min_widths = list(min_widths)
        self.limit = int(self.preserve_ratio * self.cost(self.cost.dense) + 1e-6)
        least = self.cost(self.min_widths)
        if least > self.limit:
            raise AutoDFPError(
                f"a preserve_ratio of {self.preserve_ratio:g} of the {self.scope}'s {self.metric} was asked for, but "
                f'pruning can only reach {self.cost.ratio(self.min_widths):.4f} to 1; raise the ratio or lower p_min'
            )

    def max_width(self, chosen: Sequence[int]) -> int:
        """The most channels that unit ``len(chosen)`` may keep (Algorithm 1, sign corrected).

        Counted are the widths already chosen and the least widths of the units to come.
        """
        index = len(chosen)
        widths = [*chosen, *self.min_widths[index:]]
        spare = self.limit - self.cost(widths)
        slope = self.cost.slope(widths, index)
        more = spare // slope if slope else self.cost.dense[index]
        return min(self.cost.dense[index], widths[index] + more)

    def uniform_ratio(self) -> float:
        """The largest ratio p that, alike in all units (Eq. 15), stays within the limit."""
        if self.cost(self.cost.dense) <= self.limit:
            return 1.0
        # Widths change where p N passes a half. A ratio halfway between two such steps survives rounding to float32.
        steps = sorted({0.0} | {(k + 0.5) / n for n in self.cost.dense for k in range(n)})
        plateaus = [(a + b) / 2 for a, b in pairwise(steps)]
        fits = [self.cost(round_widths(ratio, self.cost.dense)) <= self.limit for ratio in plateaus]
        return plateaus[max(index for index, fit in enumerate(fits) if fit)]


@BUDGETS.register_module()
class ParamBudget(Budget):
    """Limits the number of parameters."""

    metric = 'params'


@BUDGETS.register_module()
class FlopBudget(Budget):
    """Limits the number of multiply-accumulates on one of the reward's images (``flops_input`` in the summary)."""

    metric = 'flops'


def round_widths(ratio: float, dense: Sequence[int]) -> list[int]:
    """Eq. 15 for each unit: max(1, round(p N))."""
    return [max(1, round(ratio * n)) for n in dense]
