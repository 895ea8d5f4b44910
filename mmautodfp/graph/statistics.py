"""Weights and norm statistics of a group, as the kernels take them."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmautodfp.kernels import BatchNormStats

from .groups import ChannelGroup, Producer, is_batch_norm, is_depthwise


def group_statistics(module: nn.Module, group: ChannelGroup) -> tuple[Tensor, BatchNormStats]:
    """Weight [N, C, ...] and norm statistics ([N] each) of a group's producers, detached; N counts single channels.

    A producer's own bias is moved into the running mean; without a norm it becomes beta. The weights of several
    producers, each scaled as its norm scales the channels, are concatenated to [N, D].
    """
    found = [_producer_statistics(module, group, producer) for producer in group.producers]
    if len(found) == 1:
        return found[0]
    weight = torch.cat([weight.flatten(1) * bn.slope[:, None] for weight, bn in found], 1)
    return weight, BatchNormStats.identity(sum(bn.shift for _, bn in found))


def _producer_statistics(module: nn.Module, group: ChannelGroup, producer: Producer) -> tuple[Tensor, BatchNormStats]:
    layer = module.get_submodule(producer.name)
    rows = slice(producer.offset, producer.offset + group.width)
    weight = outputs_first(layer).detach()[rows]
    bias = getattr(layer, 'bias', None)  # mmcv's DeformConv2d has none
    bias = None if bias is None else bias.detach()[rows]
    if producer.norm is None:
        return weight, BatchNormStats.identity(weight.new_zeros(group.width) if bias is None else bias)
    bn = norm_statistics(module.get_submodule(producer.norm))
    return weight, bn if bias is None else replace(bn, mean=bn.mean - bias)


def norm_statistics(norm: nn.Module) -> BatchNormStats:
    """The statistics of a BatchNorm, detached; without an affine part its gamma is 1 and its beta 0."""
    ones = torch.ones_like(norm.running_mean)
    return BatchNormStats(
        weight=ones if norm.weight is None else norm.weight.detach(),
        bias=ones * 0 if norm.bias is None else norm.bias.detach(),
        mean=norm.running_mean,
        var=norm.running_var,
        eps=norm.eps,
    )


def outputs_first(layer: nn.Module) -> Tensor:
    """A layer's weight as [M, N, ...]; that of a transposed convolution, [N, M, ...], is transposed."""
    return layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight


def phases(layer: nn.Module) -> int:
    """Each output of a layer reads one in so many taps of the kernel: all of them, unless it is transposed."""
    return math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else 1


def path_statistics(module: nn.Module, group: ChannelGroup) -> tuple[Tensor, BatchNormStats]:
    """As :func:`group_statistics`, of a group's whole path from the producers to the consumers.

    Two channels can stand in for one another only if their depthwise kernels on the path are alike too. So producers
    and depthwise convolutions count as one layer, as if there were no activation between them. Its weight is the
    product of theirs, [N, C * kH * kW * ...], so that Eqs. 12 and 16 compare whole paths.

    Returns:
        tuple[Tensor, BatchNormStats]: Those of the producers alone if no layer is in between.
    """
    weight, bn = group_statistics(module, group)
    if not group.between:
        return weight, bn
    weight = weight.flatten(1)
    slope, shift = bn.slope, bn.shift
    for layer in map(module.get_submodule, group.between):
        if is_depthwise(layer):
            kernel = layer.weight.detach().flatten(1)  # [N, kH * kW]
            weight = (weight[:, :, None] * kernel[:, None]).flatten(1)
            shift = shift * kernel.sum(1)
            if layer.bias is not None:
                shift = shift + layer.bias.detach()
        elif is_batch_norm(layer):
            own = norm_statistics(layer)
            slope, shift = slope * own.slope, shift * own.slope + own.shift
    return weight, replace(BatchNormStats.identity(shift), weight=slope)
