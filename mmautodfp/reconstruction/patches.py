"""Patches: the inputs that each output position of a layer reads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def can_unfold(layer: nn.Module) -> bool:
    """Whether :func:`patches_of` supports a layer: linear layers and convolutions that are not grouped."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def patches_of(layer: nn.Module, x: Tensor, chosen: Tensor | None = None) -> Tensor:
    """The inputs that output positions of a layer read, in the order of its weight.

    Args:
        layer (nn.Module): A layer for which :func:`can_unfold` holds.
        x (Tensor): Its input, [B, N, H, W], or of a linear layer [B, ..., N].
        chosen (Tensor | None): [S], indices of output positions among those of the whole batch. Defaults to None: all.

    Returns:
        Tensor: [S, N * taps].
    """
    if isinstance(layer, nn.Linear):
        x = x.flatten(0, -2)
        return x if chosen is None else x[chosen]
    sides = layer._reversed_padding_repeated_twice  # in pixels, for padding='same' too
    if any(sides):
        x = F.pad(x, sides, mode='constant' if layer.padding_mode == 'zeros' else layer.padding_mode)
    taps = [range(0, size * gap, gap) for size, gap in zip(layer.kernel_size, layer.dilation, strict=True)]
    (down, right), (rows, columns) = (
        layer.stride,
        ((side - taken[-1] - 1) // step + 1 for side, taken, step in zip(x.shape[2:], taps, layer.stride, strict=True)),
    )
    if chosen is None:
        chosen = torch.arange(len(x) * rows * columns, device=x.device)
    image, row, column = chosen // (rows * columns), chosen // columns % rows * down, chosen % columns * right
    x = x.permute(0, 2, 3, 1).contiguous()  # channels last: several times faster to index
    return torch.stack([x[image, row + i, column + j] for i in taps[0] for j in taps[1]], 2).flatten(1)
