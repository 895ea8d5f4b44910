"""Groups of channels with their producers and consumers, and how finders are asked for them."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.misc import FrozenBatchNorm2d


@dataclass(frozen=True)
class Producer:
    """A layer whose outputs are channels of a group.

    Attributes:
        name (str): Path of the convolution, transposed convolution or linear layer.
        norm (str | None): Path of the BatchNorm right behind it; None if there is none.
        offset (int): Index of its first output that belongs to the group. Defaults to 0.
    """

    name: str
    norm: str | None = None
    offset: int = 0


@dataclass(frozen=True)
class Consumer:
    """A layer that reads the channels of a group.

    Attributes:
        name (str): Path of the convolution, transposed convolution or linear layer.
        norm (str | None): Path of the BatchNorm right behind it, which can take up constants; None if there is none.
        offset (int): Index of its first input that belongs to the group; above 0 if it reads concatenated feature maps.
            Defaults to 0.
        num_inputs (int | None): How many of its inputs belong to the group. Defaults to None: all of them.
    """

    name: str
    norm: str | None = None
    offset: int = 0
    num_inputs: int | None = None

    @property
    def key(self) -> str:
        """A name that differs between several parts of one layer's inputs."""
        return f'{self.name}@{self.offset}' if self.offset else self.name


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of which any can be pruned, in all layers at once; paths are relative to the surveyed module.

    Attributes:
        name (str): Path of the first producer, such as ``'layer1.0.conv1'``; names the group.
        num_channels (int): Dense number of channels N; if they can only be pruned in blocks of several channels (groups
            of a GroupNorm or of a grouped convolution), the number of blocks.
        norm (str | None): Path of the first producer's BatchNorm; None if there is none.
        consumers (tuple[Consumer, ...]): The layers that read the channels.
        between (tuple[str, ...]): Depthwise and grouped convolutions and norms between producers and consumers, which
            are sliced too. Defaults to none.
        activation (Callable | None): From constants [N] behind the producer's norm to constants [N] at the consumers;
            elementwise if only an activation is in between. None if it is not known. Defaults to ReLU.
        others (tuple[Producer, ...]): Further producers, whose outputs are added to those of the first or read by the
            same layers: residual streams, levels of a pyramid. Defaults to none.
        block (int): Number of channels in a block. Defaults to 1.
        followers (tuple[str, ...]): Parts without weights whose ``out_channels`` is the number of channels, such as RoI
            extractors. Defaults to none.
        offset (int): Index of the first producer's first output that belongs to the group. Defaults to 0.
    """

    name: str
    num_channels: int
    norm: str | None
    consumers: tuple[Consumer, ...]
    between: tuple[str, ...] = ()
    activation: Callable[[Tensor], Tensor] | None = field(default=torch.relu, compare=False, repr=False)
    others: tuple[Producer, ...] = ()
    block: int = 1
    followers: tuple[str, ...] = ()
    offset: int = 0

    @property
    def producers(self) -> tuple[Producer, ...]:
        """All layers whose outputs are the channels, in forward order."""
        return (Producer(self.name, self.norm, self.offset), *self.others)

    @property
    def norms(self) -> list[str]:
        """Paths of the producers' norms."""
        return [producer.norm for producer in self.producers if producer.norm is not None]

    @property
    def width(self) -> int:
        """Dense number of channels, N * block."""
        return self.num_channels * self.block

    def channels(self, keep: Tensor) -> Tensor:
        """Indices [K * block] of the channels in blocks [K]."""
        if self.block == 1:
            return keep
        return (keep[:, None] * self.block + torch.arange(self.block, device=keep.device)).flatten()

    @property
    def layers(self) -> list[str]:
        """Paths of all layers whose shapes a plan changes, the producers first."""
        own = [producer.name for producer in self.producers]
        readers = [consumer.name for consumer in self.consumers]
        return [*own, *self.norms, *self.between, *readers, *self.followers]


@dataclass(frozen=True)
class GroupSurvey:
    """All groups of a module, and the layers that cannot be pruned.

    Attributes:
        groups (list[ChannelGroup]): In forward order.
        left (dict[str, str]): Paths of conv and linear layers whose outputs cannot be pruned, with the reason.
    """

    groups: list[ChannelGroup]
    left: dict[str, str]

    def describe_left(self) -> list[str]:
        """One line for each reason, with the layers that it holds for."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            by_reason.setdefault(reason, []).append(name)
        return [f'{len(names)} x {reason}: {_shorten(names)}' for reason, names in by_reason.items()]


class GroupFinder(ABC):
    """Finds groups in one kind of block. For another kind, append an instance of a subclass to ``GROUP_FINDERS``.

    Attributes:
        kinds (tuple[str, ...]): Names of the classes, or base classes, of such blocks.
        needs_known_parent (bool): Whether such a block matches only at the top or inside a block that a finder knows:
            elsewhere, its layers may have other readers. Defaults to False.
    """

    kinds: tuple[str, ...] = ()
    needs_known_parent: bool = False

    def matches(self, block: nn.Module) -> bool:
        """Whether ``block`` is of this kind."""
        return any(base.__name__ in self.kinds for base in type(block).__mro__)

    @abstractmethod
    def find(self, block: nn.Module, name: str) -> Iterator[ChannelGroup | tuple[str, str]]:
        """Yield the block's groups in forward order, and (layer path, reason) for layers that cannot be pruned.

        Args:
            block (nn.Module): A block for which :meth:`matches` holds.
            name (str): Its path, with which the paths of its layers begin.
        """


#: All finders, see :mod:`.finders`. The first one that matches a block decides about all that is inside it.
GROUP_FINDERS: list[GroupFinder] = []


def survey_groups(module: nn.Module) -> GroupSurvey:
    """Find the prunable groups of a module, and the reason why each other conv and linear layer cannot be pruned.

    Args:
        module (nn.Module): Any module; it is not run.

    Returns:
        GroupSurvey: Groups in forward order (the order of registration), and the other layers.
    """
    groups, left = [], {}
    for found in walk_groups(module, ''):
        if isinstance(found, ChannelGroup):
            groups.append(found)
        else:
            left.setdefault(*found)
    for group in groups:
        for name in (group.name, *group.between):
            left.pop(name, None)
    repeated = _repeated_layers(module)
    for group in list(groups):
        paths = [*group.layers, *(consumer.norm for consumer in group.consumers)]
        shared = next((path for path in paths if path and module.get_submodule(path) in repeated), None)
        if shared is not None:
            groups.remove(group)
            left[group.name] = 'is used more than once' if shared == group.name else f'{shared} is used more than once'
            convs = [path for path in group.between if isinstance(module.get_submodule(path), nn.Conv2d)]
            left |= dict.fromkeys(convs, f'follows {group.name}, which stays')
    return GroupSurvey(groups, left)


def _repeated_layers(module: nn.Module) -> set[nn.Module]:
    """Layers that are in several places of a module, or whose weights are: slicing one place would slice all."""
    places = Counter(layer for _, layer in module.named_modules(remove_duplicate=False))
    return {layer for layer, count in places.items() if count > 1} | layers_with_tied_weights(module)


def layers_with_tied_weights(module: nn.Module) -> set[nn.Module]:
    """Layers that share a parameter with another layer."""
    layers = list(module.modules())
    owners = Counter(tensor for layer in layers for tensor in layer._parameters.values() if tensor is not None)
    return {layer for layer in layers if any(owners[tensor] > 1 for tensor in layer._parameters.values())}


def find_groups(module: nn.Module) -> list[ChannelGroup]:
    """The prunable groups of a module in forward order; :func:`survey_groups` also gives the other layers."""
    return survey_groups(module).groups


def walk_groups(module: nn.Module, name: str, known: bool = True) -> Iterator[ChannelGroup | tuple[str, str]]:
    """Ask the finders about a module and, if none knows it, about its children.

    A finder whose block has other blocks inside can call this for them.

    Args:
        module (nn.Module): Where to look for groups.
        name (str): Its path.
        known (bool): Whether it is at the top or inside a block that a finder knows. Defaults to True.

    Yields:
        ChannelGroup | tuple[str, str]: As :meth:`GroupFinder.find`.
    """
    finders = (finder for finder in GROUP_FINDERS if known or not finder.needs_known_parent)
    finder = next((finder for finder in finders if finder.matches(module)), None)
    if finder is None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield name, 'not inside a block that a finder knows'
        for child_name, child in module.named_children():
            yield from walk_groups(child, join_path(name, child_name), known=False)
        return
    yield from finder.find(module, name)
    for path, layer in named_layers(module, name):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield path, f'has no place in a {type(module).__name__} that its finder knows'


def named_layers(module: nn.Module | None, name: str) -> Iterator[tuple[str, nn.Module]]:
    """A module and all modules in it, with their paths; nothing for None."""
    return module.named_modules(prefix=name) if module is not None else iter(())


def join_path(*names: str) -> str:
    """Dotted path of the parts that are not empty."""
    return '.'.join(name for name in names if name)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel of a convolution is a group of its own."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def is_batch_norm(layer: nn.Module | None) -> bool:
    """Whether a layer normalises channels by running statistics: a BatchNorm, or torchvision's frozen one."""
    if isinstance(layer, FrozenBatchNorm2d):
        return True
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def _shorten(names: list[str]) -> str:
    return ', '.join(names) if len(names) <= 4 else f'{", ".join(names[:3])}, ... {names[-1]}'
