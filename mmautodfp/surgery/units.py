"""What can be pruned: units of a producer, what follows it, and its consumers, found by walking a live model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmautodfp.kernels import BatchNormStats


@dataclass(frozen=True)
class Consumer:
    """A layer that reads the channels of a unit.

    Attributes:
        name (str): Path of the conv or linear layer.
        norm (str | None): Path of the BatchNorm right behind it, where constants can go; None if there is none.
    """

    name: str
    norm: str | None = None


@dataclass(frozen=True)
class PrunableUnit:
    """Channels that can be taken out together, paths relative to the walked module.

    Attributes:
        name (str): Path of the producer conv or linear layer, such as ``'layer1.0.conv1'``; names the unit.
        num_channels (int): Dense number of output channels N of the producer.
        norm (str | None): Path of the producer's BatchNorm; None if there is none.
        consumers (tuple[Consumer, ...]): The layers that read the channels.
        between (tuple[str, ...]): Depthwise convs and norms on the way, sliced along.
        activation (Callable): What the channels go through before the consumers, tensor to tensor, elementwise.
    """

    name: str
    num_channels: int
    norm: str | None
    consumers: tuple[Consumer, ...]
    between: tuple[str, ...] = ()
    activation: Callable[[Tensor], Tensor] = field(default=torch.relu, compare=False, repr=False)


@dataclass(frozen=True)
class UnitSurvey:
    """All units of a module, and all that was left alone.

    Attributes:
        units (list[PrunableUnit]): In forward order.
        left (dict[str, str]): Conv and linear layers whose outputs stay as they are, with the reason.
    """

    units: list[PrunableUnit]
    left: dict[str, str]

    def describe_left(self) -> list[str]:
        """One line a reason, with the layers that it holds for."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            by_reason.setdefault(reason, []).append(name)
        return [f'{len(names)} x {reason}: {_shorten(names)}' for reason, names in by_reason.items()]


class UnitFinder(ABC):
    """Knows one kind of block. To support another one, subclass it and append an instance to ``UNIT_FINDERS``."""

    @abstractmethod
    def matches(self, block: nn.Module) -> bool:
        """Whether ``block`` is of this kind."""

    @abstractmethod
    def find(self, block: nn.Module, name: str) -> Iterator[PrunableUnit | tuple[str, str]]:
        """Yield the block's units in forward order, and (layer path, reason) for what could have been one.

        Args:
            block (nn.Module): A block for which :meth:`matches` holds.
            name (str): Its path, to be put before the paths of its layers.
        """


class ResidualBlockFinder(UnitFinder):
    """conv1 -> conv2 (-> conv3) inside the residual blocks of mmdet, mmpretrain and torchvision.

    The last conv and the shortcut feed the residual sum and stay whole, as in the paper.
    """

    def matches(self, block: nn.Module) -> bool:
        names = {base.__name__ for base in type(block).__mro__}
        return bool(names & {'BasicBlock', 'Bottleneck'}) and isinstance(getattr(block, 'conv1', None), nn.Module)

    def find(self, block: nn.Module, name: str) -> Iterator[PrunableUnit | tuple[str, str]]:
        convs = ['conv1', 'conv2', 'conv3'] if hasattr(block, 'conv3') else ['conv1', 'conv2']
        for producer, consumer in pairwise(convs):
            reason = self._obstacle(block, producer, consumer)
            if reason:
                yield _join(name, producer), reason
                continue
            yield PrunableUnit(
                name=_join(name, producer),
                num_channels=getattr(block, producer).out_channels,
                norm=self._norm_path(block, producer, name),
                consumers=(Consumer(_join(name, consumer), self._norm_path(block, consumer, name)),),
                activation=getattr(block, 'relu', torch.relu),
            )
        for layer in [convs[-1], 'downsample']:
            for path, child in _layers(getattr(block, layer, None), _join(name, layer)):
                if isinstance(child, nn.Conv2d):
                    yield path, 'feeds a residual sum'

    @staticmethod
    def _obstacle(block: nn.Module, producer: str, consumer: str) -> str | None:
        for conv_name in (producer, consumer):
            conv = getattr(block, conv_name, None)
            # Exact type: subclasses such as ConvAWS compute their weights anew from all input channels.
            if not isinstance(conv, nn.Conv2d) or type(conv).__name__ != 'Conv2d':
                found = 'nothing' if conv is None else type(conv).__name__
                return f'expects Conv2d as {conv_name} of {type(block).__name__}, found {found}'
            if conv.groups != 1:
                return f'grouped convolution at {conv_name}'
        if getattr(block, f'after_{producer}_plugin_names', None):
            return f'plugin between {producer} and {consumer}'
        for conv_name in (producer, consumer):
            norm = getattr(block, _norm_name(block, conv_name), None)
            if norm is not None and not (isinstance(norm, _BatchNorm) and norm.track_running_stats):
                return f'{type(norm).__name__} without running statistics of its channels behind {conv_name}'
        return None

    @staticmethod
    def _norm_path(block: nn.Module, conv: str, name: str) -> str | None:
        norm = _norm_name(block, conv)
        return _join(name, norm) if isinstance(getattr(block, norm, None), _BatchNorm) else None


#: Asked in order; the first one that matches a block decides about everything inside it.
UNIT_FINDERS: list[UnitFinder] = [ResidualBlockFinder()]


def survey_units(module: nn.Module) -> UnitSurvey:
    """Find the prunable units of a module, and say of every other conv and linear layer why it stays.

    Args:
        module (nn.Module): Any module; it is walked, not run.

    Returns:
        UnitSurvey: Units in forward order (the order of registration) and what was left alone.
    """
    units, left = [], {}
    for found in _walk(module, ''):
        if isinstance(found, PrunableUnit):
            units.append(found)
        else:
            left.setdefault(*found)
    for unit in units:
        left.pop(unit.name, None)
    return UnitSurvey(units, left)


def find_units(module: nn.Module) -> list[PrunableUnit]:
    """The prunable units of a module in forward order; see :func:`survey_units` for what was left alone."""
    return survey_units(module).units


def unit_statistics(module: nn.Module, unit: PrunableUnit) -> tuple[Tensor, BatchNormStats]:
    """Weight [N, C, ...] and norm statistics ([N] each) of a unit's producer, detached.

    A producer's own bias is moved into the running mean; without a norm it becomes beta.
    """
    producer = module.get_submodule(unit.name)
    weight = producer.weight.detach()
    bias = None if producer.bias is None else producer.bias.detach()
    if unit.norm is None:
        return weight, BatchNormStats.identity(unit.num_channels, bias, dtype=weight.dtype, device=weight.device)
    norm = module.get_submodule(unit.norm)
    ones = torch.ones_like(norm.running_mean)
    return weight, BatchNormStats(
        weight=ones if norm.weight is None else norm.weight.detach(),
        bias=ones * 0 if norm.bias is None else norm.bias.detach(),
        mean=norm.running_mean if bias is None else norm.running_mean - bias,
        var=norm.running_var,
        eps=norm.eps,
    )


def _walk(module: nn.Module, name: str) -> Iterator[PrunableUnit | tuple[str, str]]:
    finder = next((finder for finder in UNIT_FINDERS if finder.matches(module)), None)
    if finder is None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield name, 'not inside a block that a finder knows'
        for child_name, child in module.named_children():
            yield from _walk(child, _join(name, child_name))
        return
    yield from finder.find(module, name)
    for path, layer in _layers(module, name):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield path, f'has no place in a {type(module).__name__} that its finder knows'


def _layers(module: nn.Module | None, name: str) -> Iterator[tuple[str, nn.Module]]:
    return module.named_modules(prefix=name) if module is not None else iter(())


def _join(*names: str) -> str:
    return '.'.join(name for name in names if name)


def _norm_name(block: nn.Module, conv: str) -> str:
    """mmdet names the norm of conv1 by its type (``norm1_name`` is 'bn1' or 'gn1'); torchvision always says 'bn1'."""
    index = conv.removeprefix('conv')
    return getattr(block, f'norm{index}_name', f'bn{index}')


def _shorten(names: list[str], most: int = 4) -> str:
    return ', '.join(names) if len(names) <= most else f'{", ".join(names[: most - 1])}, ... {names[-1]}'
