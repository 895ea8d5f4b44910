"""The group finders, one for each kind of block or network."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from .groups import (
    GROUP_FINDERS,
    ChannelGroup,
    Consumer,
    GroupFinder,
    is_batch_norm,
    is_depthwise,
    join_path,
    named_layers,
    walk_groups,
)
from .statistics import norm_statistics

# Layers that do not mix channels and have no tensor of any channel. Exact types: a subclass may do more.
_ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh)
_ELEMENTWISE += (nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus)
_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_PASSIVE = (*_ELEMENTWISE, *_POOLING, nn.Identity, nn.Dropout, nn.Dropout2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
# Networks that run their children in the order of registration, with a flatten before their classifier.
_KNOWN_CHAINS = (torchvision.models.AlexNet, torchvision.models.VGG, torchvision.models.MobileNetV2)

Step = tuple[str, nn.Module]


class ResidualBlockFinder(GroupFinder):
    """conv1 -> conv2 (-> conv3) inside the residual blocks of mmdet, mmpretrain, torchvision and our CIFAR networks.

    The last conv and the shortcut feed the residual sum and are not pruned, as in the paper.
    """

    kinds = ('BasicBlock', 'Bottleneck')

    def matches(self, block: nn.Module) -> bool:
        return super().matches(block) and isinstance(getattr(block, 'conv1', None), nn.Module)

    def find(self, block: nn.Module, name: str) -> Iterator[ChannelGroup | tuple[str, str]]:
        convs = ['conv1', 'conv2', 'conv3'] if hasattr(block, 'conv3') else ['conv1', 'conv2']
        own = [child for child in block.children() if type(child) in _ELEMENTWISE]
        for producer, consumer in pairwise(convs):
            reason = self._obstacle(block, producer, consumer)
            if reason:
                yield join_path(name, producer), reason
                continue
            yield ChannelGroup(
                name=join_path(name, producer),
                num_channels=getattr(block, producer).out_channels,
                norm=self._norm_path(block, producer, name),
                consumers=(Consumer(join_path(name, consumer), self._norm_path(block, consumer, name)),),
                activation=getattr(block, 'relu', own[0] if own else torch.relu),
            )
        for layer in [convs[-1], 'downsample']:
            for path, child in named_layers(getattr(block, layer, None), join_path(name, layer)):
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
            if norm is not None and not is_batch_norm(norm):
                return f'{type(norm).__name__} without running statistics of its channels behind {conv_name}'
        return None

    @staticmethod
    def _norm_path(block: nn.Module, conv: str, name: str) -> str | None:
        norm = _norm_name(block, conv)
        return join_path(name, norm) if is_batch_norm(getattr(block, norm, None)) else None


class InvertedResidualFinder(GroupFinder):
    """The expanded channels of MobileNet-V2's block, ours and torchvision's: expand -> depthwise -> project."""

    kinds = ('InvertedResidual',)

    def find(self, block: nn.Module, name: str) -> Iterator[ChannelGroup | tuple[str, str]]:
        if isinstance(block, nn.Sequential):
            steps = list(_unroll(block, name))
        elif _is_chain(getattr(block, 'conv', None)):  # torchvision's
            steps = list(_unroll(block.conv, join_path(name, 'conv')))
        else:
            return
        yield from chain_groups(steps, end='gives the output of an InvertedResidual')


class ChainFinder(GroupFinder):
    """Convolutions and linear layers that follow one another: VGG, MobileNet-V1, and any ``nn.Sequential``.

    Depthwise convolutions and norms in between are sliced too, and a flatten before a linear layer is followed. The
    chain ends at a block that is unknown or that another finder knows, and a new chain begins behind it.
    """

    needs_known_parent = True

    def matches(self, block: nn.Module) -> bool:
        return _is_chain(block)

    def find(self, block: nn.Module, name: str) -> Iterator[ChannelGroup | tuple[str, str]]:
        yield from chain_groups(list(_unroll(block, name)), end='gives the output of the network')


@torch.no_grad()
def _at_consumer(layers: Sequence[nn.Module], constant: Tensor) -> Tensor:
    """What becomes of constant channels on the way from a group's producer to its consumer.

    Args:
        layers (Sequence[nn.Module]): Activations, poolings, norms and depthwise convolutions, in order.
        constant (Tensor): [N], behind the producer's norm.

    Returns:
        Tensor: [N], at the consumer, away from zero-padded borders.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            constant = constant * layer.weight.flatten(1).sum(1) + (0 if layer.bias is None else layer.bias)
        elif is_batch_norm(layer):
            bn = norm_statistics(layer)
            constant = constant * bn.slope + bn.shift
        elif isinstance(layer, _ELEMENTWISE):
            constant = layer(constant.clone())  # it may work in place
    return constant


def chain_groups(steps: list[Step], end: str) -> Iterator[ChannelGroup | tuple[str, str]]:
    """Find the groups of layers that run one after the other.

    Args:
        steps (list[tuple[str, nn.Module]]): Path and layer, in the order of execution.
        end (str): Why the last layer's outputs cannot be pruned.

    Yields:
        ChannelGroup | tuple[str, str]: Groups in order, and (layer path, reason) for layers that cannot be pruned.
    """
    open_group: _OpenGroup | None = None
    for index, (path, layer) in enumerate(steps):
        if open_group is not None and open_group.takes(path, layer):
            continue
        reason = None
        if not _is_plain_layer(layer):
            reason = f'feeds {path}, a {type(layer).__name__} through which no finder can follow its channels'
        elif open_group is not None:
            reason = open_group.obstacle(path, layer)
            if reason is None:
                yield open_group.close(Consumer(path, _norm_behind(steps, index)))
        if open_group is not None and reason is not None:
            yield open_group.path, reason
        open_group = None
        if not _is_plain_layer(layer):
            yield from walk_groups(layer, path, known=False)
        elif getattr(layer, 'groups', 1) > 1:
            kind = 'depthwise' if is_depthwise(layer) else 'grouped'
            yield path, f'{kind} convolution behind no layer that can be pruned'
        else:
            open_group = _OpenGroup(path, layer)
    if open_group is not None:
        yield open_group.path, end


class _OpenGroup:
    """A group without its consumer yet: the producer, and the layers that have followed it so far."""

    def __init__(self, path: str, layer: nn.Conv2d | nn.Linear):
        self.path = path
        self.channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        self.norm: str | None = None
        self.between: list[str] = []
        self.followers: list[nn.Module] = []
        self.flat = isinstance(layer, nn.Linear)
        self.bad_norm: str | None = None

    def takes(self, path: str, layer: nn.Module) -> bool:
        """Note a layer that does not mix channels; returns False for any other layer."""
        if type(layer) in _NORMS and _width(layer) == self.channels:
            if not is_batch_norm(layer):
                self.bad_norm = f'{type(layer).__name__} without running statistics of its channels behind it'
            if self.followers or self.norm is not None:
                self.between.append(path)
                self.followers.append(layer)
            else:
                self.norm = path
        elif type(layer) is nn.Flatten and layer.start_dim == 1 and layer.end_dim == -1:
            self.flat = True
        elif is_depthwise(layer) and layer.in_channels == layer.out_channels == self.channels and not self.flat:
            self.between.append(path)
            self.followers.append(layer)
        elif type(layer) in _PASSIVE:
            self.followers.append(layer)
        else:
            return False
        return True

    def obstacle(self, path: str, layer: nn.Conv2d | nn.Linear) -> str | None:
        """Why ``layer`` cannot be the consumer; None if it can."""
        if self.bad_norm:
            return self.bad_norm
        if getattr(layer, 'groups', 1) > 1:
            return f'grouped convolution at {path}'
        if isinstance(layer, nn.Linear) != self.flat:
            return f'feeds {path}, which does not read channels'
        inputs = layer.in_features if self.flat else layer.in_channels
        if inputs % self.channels or (inputs != self.channels and not self.flat):
            return f'feeds {path}, which reads {inputs} channels'
        return None

    def close(self, consumer: Consumer) -> ChannelGroup:
        """The group with its consumer."""
        return ChannelGroup(
            name=self.path,
            num_channels=self.channels,
            norm=self.norm,
            consumers=(consumer,),
            between=tuple(self.between),
            activation=partial(_at_consumer, self.followers),
        )


def _is_chain(module: nn.Module | None) -> bool:
    if type(module) in _KNOWN_CHAINS:
        return True
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _unroll(block: nn.Module, name: str) -> Iterator[Step]:
    """The steps of a chain, including those of chains inside it."""
    for child_name, child in block._modules.items():  # named_children() skips repeated layers
        path = join_path(name, child_name)
        if type(block) in _KNOWN_CHAINS and child_name == 'classifier':
            yield path, nn.Flatten()
        if _is_chain(child):
            yield from _unroll(child, path)
        else:
            yield path, child


def _is_plain_layer(layer: nn.Module) -> bool:
    # By the exact name: mmcv's wrapper of Conv2d, which has the same name, does the same; other subclasses may not.
    return isinstance(layer, nn.Conv2d | nn.Linear) and type(layer).__name__ in ('Conv2d', 'Linear')


def _norm_behind(steps: list[Step], index: int) -> str | None:
    """Path of the BatchNorm right behind a layer, which can take up constants; None if there is none."""
    if index + 1 == len(steps):
        return None
    layer, (path, norm) = steps[index][1], steps[index + 1]
    width = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    return path if type(norm) in _NORMS and is_batch_norm(norm) and _width(norm) == width else None


def _width(norm: nn.Module) -> int:
    return len(norm.running_mean) if is_batch_norm(norm) else norm.num_features


def _norm_name(block: nn.Module, conv: str) -> str:
    """The name of a conv's norm: that of conv1 is mmdet's ``norm1_name`` ('bn1' or 'gn1'), or torchvision's 'bn1'."""
    index = conv.removeprefix('conv')
    return getattr(block, f'norm{index}_name', f'bn{index}')


GROUP_FINDERS += [ResidualBlockFinder(), InvertedResidualFinder(), ChainFinder()]
