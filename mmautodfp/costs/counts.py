"""Exact costs of a plan: parameters and multiply-accumulates as functions of the groups' widths."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from mmautodfp.graph import ChannelGroup, hook_handles, outputs_first

#: What a layer's outputs or inputs consist of: pairs of a group's index and how many of them belong to each channel of
#: the group; with None as the index, how many belong to no group.
Shares = list[tuple[int | None, int]]


class Cost(ABC):
    """A cost as a function of the groups' widths; it must never fall when a group gets wider.

    Attributes:
        dense (list[int]): [L], the groups' dense widths N.
    """

    dense: list[int]

    @abstractmethod
    def __call__(self, widths: Sequence[int]) -> int:
        """Cost at ``widths`` [L]."""

    def widest(self, widths: Sequence[int], group: int, limit: int) -> int:
        """The largest width of a group within a limit.

        Args:
            widths (Sequence[int]): [L], within the limit: widths of the other groups, and the least one of this group.
            group (int): Its index.
            limit (int): The most that the widths may cost.
        """

        def cost(width: int) -> int:
            return self([*widths[:group], width, *widths[group + 1 :]])

        wider = range(widths[group], self.dense[group] + 1)
        return widths[group] + bisect_right(wider, limit, key=cost) - 1

    def ratio(self, widths: Sequence[int]) -> float:
        """Preserved share of the dense cost at ``widths`` [L]."""
        return self(widths) / self(self.dense)


@dataclass
class CostModel(Cost):
    """A cost as a function of the groups' widths n.

    The cost of a conv is proportional to its numbers of input and output channels, so every count is exactly
    ``constant + sum_i linear[i] n_i + sum_ij pairs[i, j] n_i n_j``, in integers. In addition, a consumer without bias
    and norm may get a bias once a group is pruned, for the constants of the pruned channels.

    Attributes:
        dense (list[int]): [L], the groups' dense widths N.
        constant (int): What no plan changes.
        linear (list[int]): [L], cost per channel of each group.
        pairs (dict[tuple[int, int], int]): Indices of two groups to the cost per pair of their channels.
        biases (list[tuple[list[int], Shares]]): For each such bias, the groups of which at least one must be pruned,
            and what the bias consists of.
    """

    dense: list[int]
    constant: int = 0
    linear: list[int] = field(init=False)
    pairs: dict[tuple[int, int], int] = field(default_factory=dict)
    biases: list[tuple[list[int], Shares]] = field(default_factory=list)

    def __post_init__(self):
        self.linear = [0] * len(self.dense)

    def add(self, amount: int, *groups: int | None) -> None:
        """Add ``amount`` per channel of a group, or per pair of channels of two; None stands for a fixed width."""
        factors = [group for group in groups if group is not None]
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
        total += sum(a * widths[i] * widths[j] for (i, j), a in self.pairs.items())
        # A bias is gone once its last pruned group gets all channels, but the weights of these cost more than the bias.
        # So the total never falls as widths grow.
        for groups, parts in self.biases:
            if any(widths[group] < self.dense[group] for group in groups):
                total += size_of(parts, widths)
        return total


@dataclass(frozen=True)
class ModelCosts:
    """Parameters, multiply-accumulates and, where measured, latency and memory of the pruned module and of the model.

    Attributes:
        params (dict[str, CostModel]): By scope, 'module' (what is pruned) and 'model'.
        flops (dict[str, CostModel]): Likewise; one multiply-accumulate of a linear layer or a convolution (deformable
            and transposed ones too) is one FLOP, as mmengine and mmdet count. The sampling of deformable ones is not
            counted, nor are norms, activations, pooling and products of two activations.
        latency (dict[str, Cost]): Likewise, in nanoseconds. Defaults to empty: it was not measured.
        memory (dict[str, Cost]): Likewise, in bytes, see :class:`mmautodfp.costs.MemoryCost`. Defaults to empty.
    """

    params: dict[str, CostModel]
    flops: dict[str, CostModel]
    latency: dict[str, Cost] = field(default_factory=dict)
    memory: dict[str, Cost] = field(default_factory=dict)

    def summary(self, widths: Sequence[int]) -> dict:
        """Counts and preserved shares at ``widths`` [L], by metric and scope."""
        return {
            f'{scope}_{metric}': dict(count=model(widths), ratio=model.ratio(widths))
            for metric in ('params', 'flops', 'latency', 'memory')
            for scope, model in getattr(self, metric).items()
        }


def measure_positions(model: nn.Module, run: Callable[[], object]) -> dict[nn.Module, int]:
    """Run a model once and count for each layer how often each element of its weight is used.

    That is once at each output position for linear layers and convolutions, deformable ones too, and once at each
    input position for transposed convolutions, as mmengine counts them.

    Args:
        model (nn.Module): The model.
        run (Callable): Runs it on one input.

    Returns:
        dict[nn.Module, int]: Positions summed over all calls; other layers, and those not called, are absent.
    """
    positions: dict[nn.Module, int] = {}

    def count(layer: nn.Module, args: tuple, output: Tensor) -> None:
        if isinstance(layer, _ConvTransposeNd):
            places = args[0].numel() // layer.in_channels
        else:
            places = output.numel() // (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
        positions[layer] = positions.get(layer, 0) + places

    with hook_handles() as handles:
        handles += [layer.register_forward_hook(count) for layer in model.modules() if _multiplies(layer)]
        run()
    return positions


def _multiplies(layer: nn.Module) -> bool:
    # By attributes: the deformable convolutions of mmcv and torchvision have no base class in common with others.
    is_conv = hasattr(layer, 'kernel_size') and hasattr(layer, 'out_channels')
    return (isinstance(layer, nn.Linear) or is_conv) and isinstance(getattr(layer, 'weight', None), nn.Parameter)


def model_costs(
    model: nn.Module,
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    positions: Mapping[nn.Module, int],
    moves_constants: Callable[[ChannelGroup], bool] | None = None,
    parts: Sequence[nn.Module] | None = None,
) -> ModelCosts:
    """Count the parameters and FLOPs of a dense model, for any widths of its groups.

    Args:
        model (nn.Module): The whole model.
        module (nn.Module): What the groups' paths are relative to.
        groups (Sequence[ChannelGroup]): Its groups, L of them.
        positions (Mapping[nn.Module, int]): From :func:`measure_positions`, for FLOPs.
        moves_constants (Callable | None): Whether pruning a group shifts its consumers' outputs: consumers without bias
            and norm then get a bias; see :meth:`mmautodfp.reconstruction.Reconstructor.moves_constants`. Defaults to
            None: it never does.
        parts (Sequence[nn.Module] | None): Parts of the model that the scope 'module' covers. Defaults to None: the
            module.

    Returns:
        ModelCosts: Without latency and memory.
    """
    roles = group_roles(module, groups, moves_constants)
    params, flops = {}, {}
    for scope, layers in layers_by_scope(model, parts or [module]).items():
        params[scope] = CostModel([group.num_channels for group in groups])
        flops[scope] = CostModel([group.num_channels for group in groups])
        counted: set[nn.Parameter] = set()  # heads share parameters between levels
        for layer in layers:
            _count_layer(layer, roles.get(layer, Role()), params[scope], flops[scope], counted, positions)
    return ModelCosts(params, flops)


def layers_by_scope(model: nn.Module, parts: Sequence[nn.Module]) -> dict[str, list[nn.Module]]:
    """The layers of each scope of a budget: for 'module' those of the parts, for 'model' all."""
    inside = {layer for part in parts for layer in part.modules()}
    return dict(module=[layer for layer in model.modules() if layer in inside], model=list(model.modules()))


@dataclass
class Role:
    """Which groups a layer's outputs and inputs belong to.

    Attributes:
        outputs (list[tuple[int, int]]): Index of a group, and how many of the layer's outputs belong to each of the
            group's channels. All other outputs belong to no group.
        inputs (list[tuple[int, int]]): Likewise of the inputs.
        constants (list[int]): Indices of groups that, once pruned, make the layer need a bias, which it does not have.
    """

    outputs: list[tuple[int, int]] = field(default_factory=list)
    inputs: list[tuple[int, int]] = field(default_factory=list)
    constants: list[int] = field(default_factory=list)


def group_roles(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    moves_constants: Callable[[ChannelGroup], bool] | None = None,
) -> dict[nn.Module, Role]:
    """Roles of all layers whose outputs or inputs belong to a group; arguments as of :func:`model_costs`."""
    roles: dict[nn.Module, Role] = {}

    def role(name: str) -> Role:
        return roles.setdefault(module.get_submodule(name), Role())

    for index, group in enumerate(groups):
        for name in (*(producer.name for producer in group.producers), *group.norms, *group.between):
            role(name).outputs.append((index, group.block))
        for consumer in group.consumers:
            layer = module.get_submodule(consumer.name)
            inputs = consumer.num_inputs or outputs_first(layer).shape[1]
            role(consumer.name).inputs.append((index, inputs // group.num_channels))
            may_get_bias = consumer.norm is None and hasattr(layer, 'bias') and layer.bias is None
            if may_get_bias and moves_constants is not None and moves_constants(group):
                role(consumer.name).constants.append(index)
    return roles


def shares(size: int, parts: Sequence[tuple[int, int]], dense: Sequence[int]) -> Shares:
    """What a layer's outputs or inputs consist of.

    Args:
        size (int): How many there are in the dense model.
        parts (Sequence[tuple[int, int]]): Those of groups, as in :class:`Role`.
        dense (Sequence[int]): [L], the groups' dense widths N.
    """
    rest = size - sum(dense[group] * each for group, each in parts)
    return [*parts, *([(None, rest)] if rest else [])]


def size_of(parts: Shares, widths: Sequence[int]) -> int:
    """The number of outputs or inputs in ``parts`` when the groups have ``widths`` [L]."""
    return sum(each * (1 if group is None else widths[group]) for group, each in parts)


def _count_layer(
    layer: nn.Module,
    role: Role,
    params: CostModel,
    flops: CostModel,
    counted: set[nn.Parameter],
    positions: Mapping[nn.Module, int],
) -> None:
    for name, tensor in layer._parameters.items():
        if tensor is None:
            continue
        new = tensor not in counted
        counted.add(tensor)
        for amount, rows, columns in tensor_terms(layer, name, tensor, role, params.dense):
            if new:
                params.add(amount, rows, columns)
            if name == 'weight' and layer in positions:
                flops.add(amount * positions[layer], rows, columns)
    if role.constants:
        params.biases.append((role.constants, shares(len(outputs_first(layer)), role.outputs, params.dense)))


def tensor_terms(
    layer: nn.Module, name: str, tensor: Tensor, role: Role, dense: Sequence[int]
) -> Iterator[tuple[int, int | None, int | None]]:
    """The number of elements of a parameter or buffer, as terms for :meth:`CostModel.add`.

    Pruning the groups of a layer's outputs takes rows out of all its tensors; pruning those of its inputs takes columns
    out of its weight.

    Args:
        layer (nn.Module): The layer that has the tensor.
        name (str): Name of the tensor there.
        tensor (Tensor): The dense tensor.
        role (Role): Of the layer.
        dense (Sequence[int]): [L], the groups' dense widths N.

    Yields:
        tuple[int, int | None, int | None]: Elements per channel, or pair of channels, and the groups of rows and of
        columns; None where no plan changes these.
    """
    weight = outputs_first(layer) if name == 'weight' else tensor
    if not weight.ndim:
        yield 1, None, None
        return
    rows = shares(len(weight), role.outputs, dense)
    columns = shares(weight.shape[1], role.inputs, dense) if role.inputs and name == 'weight' else [(None, 1)]
    rest = weight.numel() // max(1, size_of(rows, dense) * size_of(columns, dense))
    for (i, row), (j, column) in product(rows, columns):
        yield rest * row * column, i, j
