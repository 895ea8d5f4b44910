"""What a plan costs, exactly: parameters and multiply-accumulates as functions of the units' widths."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from mmautodfp.graph import PrunableUnit


class Cost(Protocol):
    """What a budget asks of a cost; it must never fall when a unit gets wider."""

    dense: list[int]

    def __call__(self, widths: Sequence[int]) -> int:
        """Cost at ``widths`` [L]."""

    def widest(self, widths: Sequence[int], unit: int, limit: int) -> int:
        """The most channels of ``unit`` within ``limit`` while the others stay at ``widths`` [L], which are within."""

    def ratio(self, widths: Sequence[int]) -> float:
        """Preserved share of the dense cost."""


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

    def widest(self, widths: Sequence[int], unit: int, limit: int) -> int:
        """The most channels of ``unit`` within ``limit`` while the others stay at ``widths`` [L], which are within."""
        slope = self.slope(widths, unit)
        more = (limit - self(widths)) // slope if slope else self.dense[unit]
        return min(self.dense[unit], widths[unit] + more)

    def ratio(self, widths: Sequence[int]) -> float:
        """Preserved share of the dense cost."""
        return self(widths) / self(self.dense)


@dataclass(frozen=True)
class ModelCosts:
    """Parameters, multiply-accumulates and, where measured, latency of the pruned module and of the whole model.

    Attributes:
        params (dict[str, CostModel]): By scope, 'module' and 'model'.
        flops (dict[str, CostModel]): Likewise; one multiply-accumulate of a conv or linear layer is one FLOP, as
            mmengine and mmdet count.
        latency (dict[str, Cost]): Likewise, in nanoseconds; empty unless a budget asks for it. Defaults to empty.
    """

    params: dict[str, CostModel]
    flops: dict[str, CostModel]
    latency: dict[str, Cost] = field(default_factory=dict)

    def summary(self, widths: Sequence[int]) -> dict:
        """Counts and preserved shares at ``widths`` [L], by metric and scope."""
        return {
            f'{scope}_{metric}': dict(count=model(widths), ratio=model.ratio(widths))
            for metric in ('params', 'flops', 'latency')
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

    with forward_hooks((layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)), count):
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
    roles = unit_roles(module, units)
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
                _count_layer(layer, own, roles.get(layer, Role()), params[scope], flops[scope], positions)
    return ModelCosts(params, flops)


@dataclass
class Role:
    """Which units a layer's outputs and inputs belong to."""

    outputs: int | None = None
    inputs: int | None = None


def unit_roles(module: nn.Module, units: Sequence[PrunableUnit]) -> dict[nn.Module, Role]:
    """The layers whose outputs or inputs belong to a unit, and to which."""
    roles: dict[nn.Module, Role] = {}

    def role(name: str) -> Role:
        return roles.setdefault(module.get_submodule(name), Role())

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
    role: Role,
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
def forward_hooks(layers, hook):
    """Hooks on the forward of ``layers``, removed at the end of the block."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
