"""What can be pruned: groups of channels, their producers and consumers; and how known blocks are walked for them."""

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
        offset (int): The first of its outputs that belongs to the group, where others come before it. Defaults to 0.
    """

    name: str
    norm: str | None = None
    offset: int = 0


@dataclass(frozen=True)
class Consumer:
    """A layer that reads the channels of a group.

    Attributes:
        name (str): Path of the convolution, transposed convolution or linear layer.
        norm (str | None): Path of the BatchNorm right behind it, where constants can go; None if there is none.
        offset (int): The first of its inputs that belongs to the group, where others come before it (concatenated
            maps). Defaults to 0.
        num_inputs (int | None): How many of its inputs do. Defaults to None: all of them.
    """

    name: str
    norm: str | None = None
    offset: int = 0
    num_inputs: int | None = None

    @property
    def key(self) -> str:
        """Tells apart several parts of one layer's inputs."""
        return f'{self.name}@{self.offset}' if self.offset else self.name


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can be taken out together, paths relative to the walked module.

    Attributes:
        name (str): Path of the first producer, such as ``'layer1.0.conv1'``; names the group.
        num_channels (int): Dense number of channels N; where several channels must go together (those of a GroupNorm's
            group, of a grouped convolution's), the number of such blocks.
        norm (str | None): Path of the first producer's BatchNorm; None if there is none.
        consumers (tuple[Consumer, ...]): The layers that read the channels.
        between (tuple[str, ...]): Depthwise and grouped convolutions and norms on the way, sliced along.
        activation (Callable | None): What the channels go through before the consumers, constants [N] to constants
            [N]; elementwise where nothing but an activation is on the way. None if that is not known.
        others (tuple[Producer, ...]): Further producers, whose outputs are added to those of the first or read by the
            same layers: residual streams, levels of a pyramid. Defaults to none.
        block (int): Channels that must go together. Defaults to 1.
        followers (tuple[str, ...]): Parts without weights that say in ``out_channels`` how many channels there are.
            Defaults to none.
        offset (int): The first output of the first producer that belongs to the group. Defaults to 0.
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
        """Paths of all layers whose shapes a plan changes, first the producers."""
        norms = [producer.norm for producer in self.producers if producer.norm]
        own = [producer.name for producer in self.producers]
        return [*own, *norms, *self.between, *(consumer.name for consumer in self.consumers), *self.followers]


@dataclass(frozen=True)
class GroupSurvey:
    """All groups of a module, and all that was left alone.

    Attributes:
        groups (list[ChannelGroup]): In forward order.
        left (dict[str, str]): Conv and linear layers whose outputs stay as they are, with the reason.
    """

    groups: list[ChannelGroup]
    left: dict[str, str]

    def describe_left(self) -> list[str]:
        """One line a reason, with the layers that it holds for."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            by_reason.setdefault(reason, []).append(name)
        return [f'{len(names)} x {reason}: {_shorten(names)}' for reason, names in by_reason.items()]


class GroupFinder(ABC):
    """Knows one kind of block. To support another one, subclass it and append an instance to ``GROUP_FINDERS``.

    Attributes:
        kinds (tuple[str, ...]): Names of the classes, or base classes, of such blocks.
        needs_known_parent (bool): Whether such a block counts only at the top or in what a finder knows. Elsewhere,
            something may read what is between its layers. Defaults to False.
    """

    kinds: tuple[str, ...] = ()
    needs_known_parent: bool = False

    def matches(self, block: nn.Module) -> bool:
        """Whether ``block`` is of this kind."""
        return any(base.__name__ in self.kinds for base in type(block).__mro__)

    @abstractmethod
    def find(self, block: nn.Module, name: str) -> Iterator[ChannelGroup | tuple[str, str]]:
        """Yield the block's groups in forward order, and (layer path, reason) for what could have been one.

        Args:
            block (nn.Module): A block for which :meth:`matches` holds.
            name (str): Its path, to be put before the paths of its layers.
        """


#: Asked in order; the first one that matches a block decides about everything inside it. See :mod:`.finders`.
GROUP_FINDERS: list[GroupFinder] = []


def survey_groups(module: nn.Module) -> GroupSurvey:
    """Find the prunable groups of a module, and say of every other conv and linear layer why it stays.

    Args:
        module (nn.Module): Any module; it is walked, not run.

    Returns:
        GroupSurvey: Groups in forward order (the order of registration) and what was left alone.
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
        paths = [group.name, group.norm, *group.between, *(path for c in group.consumers for path in (c.name, c.norm))]
        shared = next((path for path in paths if path and module.get_submodule(path) in repeated), None)
        if shared is not None:
            groups.remove(group)
            left[group.name] = 'is used more than once' if shared == group.name else f'{shared} is used more than once'
            convs = [path for path in group.between if isinstance(module.get_submodule(path), nn.Conv2d)]
            left |= dict.fromkeys(convs, f'follows {group.name}, which stays')
    return GroupSurvey(groups, left)


def _repeated_layers(module: nn.Module) -> set[nn.Module]:
    """Layers that stand in several places of a module, or whose weights do: what is cut in one is cut in all."""
    places = Counter(layer for _, layer in module.named_modules(remove_duplicate=False))
    return {layer for layer, count in places.items() if count > 1} | layers_with_tied_weights(module)


def layers_with_tied_weights(module: nn.Module) -> set[nn.Module]:
    """Layers one of whose parameters is another layer's too."""
    layers = list(module.modules())
    owners = Counter(tensor for layer in layers for tensor in layer._parameters.values() if tensor is not None)
    return {layer for layer in layers if any(owners[tensor] > 1 for tensor in layer._parameters.values())}


def find_groups(module: nn.Module) -> list[ChannelGroup]:
    """The prunable groups of a module in forward order; see :func:`survey_groups` for what was left alone."""
    return survey_groups(module).groups


def walk_groups(module: nn.Module, name: str, known: bool = True) -> Iterator[ChannelGroup | tuple[str, str]]:
    """Ask the finders about a module and, where none knows it, about its children; for finders with blocks inside.

    Args:
        module (nn.Module): What to walk.
        name (str): Its path.
        known (bool): Whether it stands at the top or in what a finder knows. Defaults to True.

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
    """A module and all that is in it with their paths; nothing for None."""
    return module.named_modules(prefix=name) if module is not None else iter(())


def join_path(*names: str) -> str:
    """Dotted path of the parts that are not empty."""
    return '.'.join(name for name in names if name)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel of a convolution is a group of its own."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def is_batch_norm(layer: nn.Module | None) -> bool:
    """Whether a layer normalises each channel with running statistics of it: BatchNorm, or torchvision's frozen one."""
    if isinstance(layer, FrozenBatchNorm2d):
        return True
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def _shorten(names: list[str]) -> str:
    return ', '.join(names) if len(names) <= 4 else f'{", ".join(names[:3])}, ... {names[-1]}'
