"""New weights of one layer in the full pass, by least squares from the pruned path's inputs to the dense outputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, Consumer, norm_statistics, outputs_first, phases
from mmautodfp.kernels import Moments, bounded_gain, solve_ridge
from mmautodfp.surgery import Restore, replace_weight, shift_outputs
from mmautodfp.utils.settings import Count, NotNegative, Share, settings

from .base import Reconstruction
from .foreground import Foreground
from .patches import can_unfold, patches_of
from .paths import Seen
from .synthetic import as_channels, channels_first


@settings('refinement')
class Refinement:
    """Settings of the full pass.

    Attributes:
        ridge (float): Strength of the ridge that pulls a group's delivery to that of the episodes. Defaults to 1e-2.
        patches (bool): Also fit the consumers' weights, each tap of a kernel by itself, to the dense outputs. Defaults
            to True: otherwise they are the dense weights merged with the delivery.
        patch_ridge (float): Strength of the ridge that pulls the fitted weights to the merged ones. Defaults to 0.1.
        shortcut (float): Share of the shortcut's error, 0 to 1, that the last layer of a residual block is fitted to
            correct. Defaults to 0.25.
        rematch (bool): Scale outputs in front of a norm to their dense deviation. Defaults to True.
        groups_per_pass (int): Steps of a block that are solved in one pass over the images; the consumers of a group
            usually make a step. Layers of the same pass do not see each other's new weights. Defaults to 1.
        positions (int): Most output positions, over all images, that the weights of a layer are fitted on; if the
            layer is called several times, in each call. Defaults to 65536.
        max_patch (int): Layers with more inputs (channels times taps) than this keep the merged weights, without
            ``patches`` and ``rematch``. Defaults to 4608, which is 512 channels with a 3x3 kernel.
        cache_gb (float): Memory in GB, for all images, for the inputs of a block and for the inputs and outputs of its
            layers on the dense path. What does not fit is computed again in each pass, if need be from the start of the
            module. Defaults to 2.

    Raises:
        AutoDFPError: A setting is unknown, of another type or out of its range.
    """

    ridge: NotNegative = 1e-2
    patches: bool = True
    patch_ridge: NotNegative = 0.1
    shortcut: Share = 0.25
    rematch: bool = True
    groups_per_pass: Count = 1
    positions: Count = 65536
    max_patch: Count = 4608
    cache_gb: NotNegative = 2.0


@dataclass(frozen=True)
class FullPass:
    """What all layers of a full pass have in common.

    Attributes:
        twin (nn.Module): The dense path.
        slim (nn.Module): The pruned path.
        cut (Restore): Of the pruned path; knows which inputs and outputs its layers still have.
        reconstructions (Mapping[str, Reconstruction]): Name of each pruned group to that of the episodes.
        settings (Refinement): The settings.
        most (int): Most output positions of a batch that a layer's weights are fitted on, in each call.
    """

    twin: nn.Module
    slim: nn.Module
    cut: Restore
    reconstructions: Mapping[str, Reconstruction]
    settings: Refinement
    most: int


@dataclass(frozen=True)
class _DenseLayer:
    """A layer of the dense path, limited to the M outputs that the pruned layer still has.

    Attributes:
        rows (Tensor): [M], indices of these outputs.
        weight (Tensor): [M, C, taps].
        bias (Tensor): [M], zeros if the layer has none.
        mean (Tensor | None): [M], running mean of the norm behind the layer; None if there is no norm.
        slope (Tensor): [M], factor of that norm, see :func:`_slope`; ones if there is no norm.
    """

    rows: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor | None
    slope: Tensor

    @classmethod
    def of(cls, twin: nn.Module, consumer: Consumer, rows: Tensor) -> '_DenseLayer':
        layer = twin.get_submodule(consumer.name)
        weight = outputs_first(layer)[rows]
        weight = weight.reshape(*weight.shape[:2], -1)
        bias = getattr(layer, 'bias', None)  # mmcv's DeformConv2d cannot have one
        bias = weight.new_zeros(len(rows)) if bias is None else bias[rows]
        if not consumer.norm:
            return cls(rows, weight, bias, None, weight.new_ones(len(rows)))
        norm = twin.get_submodule(consumer.norm)
        return cls(rows, weight, bias, norm.running_mean[rows], _slope(norm)[rows])


class LayerFit:
    """New weights of one layer.

    Args:
        full_pass (FullPass): The full pass.
        reads (list[tuple[ChannelGroup, Consumer]]): The groups that it reads, and which of its inputs are theirs.
    """

    def __init__(self, full_pass: FullPass, reads: list[tuple[ChannelGroup, Consumer]]):
        self.full_pass, self.consumer = full_pass, reads[0][1]
        self.layer = full_pass.slim.get_submodule(self.consumer.name)
        dense = outputs_first(full_pass.twin.get_submodule(self.consumer.name))
        outputs, inputs = (full_pass.cut.places(self.layer, axis, dense.shape[axis]) for axis in (0, 1))
        self.dense = _DenseLayer.of(full_pass.twin, self.consumer, outputs.to(dense.device))
        in_order = sorted(reads, key=lambda pair: pair[1].offset)
        self.parts = [_Part(full_pass, *pair, inputs, dense.shape[1]) for pair in in_order]
        width = outputs_first(self.layer)[0].numel()
        fits = can_unfold(self.layer) and width <= full_pass.settings.max_patch
        self.patches = Moments(width, len(outputs), dense.device) if fits else None
        self.random = torch.Generator().manual_seed(0)

    def update(self, dense: list[Seen], pruned: list[Seen], foreground: Foreground | None) -> None:
        """Add one batch.

        Args:
            dense (list[Seen]): The calls of the layer on the dense path, with outputs.
            pruned (list[Seen]): The same on the pruned path.
            foreground (Foreground | None): Of the batch.
        """
        for before, after in zip(dense, pruned, strict=True):
            inputs = [channels_first(self.layer, seen.input) for seen in (before, after)]
            weights = foreground and foreground.weights(inputs[0])
            for part in self.parts:
                part.update(*inputs, weights)
            if self.patches is not None:
                self._update_patches(before, after, foreground)

    def _update_patches(self, before: Seen, after: Seen, foreground: Foreground | None) -> None:
        dense, first = self.dense, lambda x: channels_first(self.layer, x)
        output = first(before.output)[:, dense.rows]
        target = output - _along(dense.bias, output)
        if before.shortcut is not None and after.shortcut is not None:
            error = first(before.shortcut)[:, dense.rows] - first(after.shortcut)
            target = target + self.full_pass.settings.shortcut * error / _along(dense.slope, output)
        target, weights = as_channels(target, len(dense.rows)), foreground and foreground.weights(target)
        chosen = None
        if len(target) > self.full_pass.most:
            chosen = torch.randperm(len(target), generator=self.random)[: self.full_pass.most].to(target.device)
            target, weights = target[chosen], None if weights is None else weights[chosen]
        self.patches.update(patches_of(self.layer, after.input, chosen), target, weights)

    def solve(self) -> tuple[Tensor, Tensor]:
        """The new weight [M, inputs * taps] and the shift [M] of the outputs."""
        weight, shift = self._merged()
        settings, patches = self.full_pass.settings, self.patches
        if patches is None:
            return weight, shift
        if settings.patches:
            weight = solve_ridge(patches.covariance, patches.cross_covariance, settings.patch_ridge, weight)
        if settings.rematch and self.consumer.norm:  # not without one: scores and boxes get worse when scaled up
            variance = ((weight @ patches.covariance) * weight).sum(1)
            weight = weight * bounded_gain(patches.target_variance, variance)[:, None]
        return weight, patches.target_mean - weight @ patches.mean

    def _merged(self) -> tuple[Tensor, Tensor]:
        """As :meth:`solve`, but with merged weights, not fitted to patches; other inputs keep their weights."""
        dense = self.dense.weight.double()
        columns, shift, end = [], 0, 0
        for part in self.parts:
            columns.append(dense[:, end : part.offset])
            end = part.offset + part.size
            merged, missing = part.solve(dense[:, part.offset : end], self.full_pass.settings.ridge)
            columns.append(merged)
            shift = shift + missing
        columns.append(dense[:, end:])
        return torch.cat(columns, 1).flatten(1), shift / phases(self.layer)

    def install(self, weight: Tensor, shift: Tensor, module: nn.Module, restore: Restore) -> None:
        """Put a solution of :meth:`solve` into both the pruned module and the pruned path."""
        dense, slim = self.dense, self.full_pass.slim
        if self.consumer.norm:
            now = slim.get_submodule(self.consumer.norm).running_mean
            shift = shift.to(now) - (dense.mean - now)  # less the shift that the norm has already
        else:
            now = getattr(self.layer, 'bias', None)
            shift = shift.to(dense.bias) if now is None else shift.to(now) - (now - dense.bias)
        for net, memory in ((module, restore), (slim, Restore())):
            layer = memory.remember(net.get_submodule(self.consumer.name))
            replace_weight(layer, weight.to(layer.weight).view_as(outputs_first(layer)))
            shift_outputs(net, self.consumer, shift, memory)


class _Part:
    """The inputs of a layer that belong to one group, with the moments of its retained and of all its channels.

    Args:
        full_pass (FullPass): The full pass.
        group (ChannelGroup): The group.
        consumer (Consumer): Says which of the layer's inputs belong to the group.
        places (Tensor): Indices of the dense inputs that the pruned layer still has.
        num_inputs (int): Number of inputs of the dense layer.
    """

    def __init__(self, full_pass: FullPass, group: ChannelGroup, consumer: Consumer, places: Tensor, num_inputs: int):
        device = full_pass.twin.get_submodule(consumer.name).weight.device
        self.width, self.offset, self.size = group.width, consumer.offset, consumer.num_inputs or num_inputs
        self.start = int((places < self.offset).sum())
        found = full_pass.reconstructions.get(group.name)
        self.prior = found.for_consumer(consumer.key).delivery if found else torch.eye(group.width, device=device)
        self.kept = self.prior.shape[1]
        self.moments = Moments(self.kept, self.width, device)

    def update(self, dense: Tensor, pruned: Tensor, weights: Tensor | None) -> None:
        """Add a batch: inputs [B, C, ...] of the layer on the dense and the pruned path, and weights of positions."""
        dense = dense.narrow(1, self.offset, self.size)
        pruned = pruned.narrow(1, self.start, self.kept * (self.size // self.width))
        self.moments.update(as_channels(pruned, self.kept), as_channels(dense, self.width), weights)

    def solve(self, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Solve for the delivery and merge a weight with it.

        Args:
            weight (Tensor): [M, inputs, taps], dense.
            ridge (float): Strength of the ridge that pulls the delivery to that of the episodes.

        Returns:
            tuple[Tensor, Tensor]: The merged weight [M, retained inputs, taps], and the mean [M] that the outputs still
            miss.
        """
        moments = self.moments
        delivery = solve_ridge(moments.covariance, moments.cross_covariance, ridge, self.prior)
        columns = weight.unflatten(1, (self.width, -1)).flatten(2)  # [M, N, columns * taps]
        merged = torch.einsum('mns,nk->mks', columns, delivery)
        missing = columns.sum(2) @ (moments.target_mean - delivery @ moments.mean)
        return merged.unflatten(2, (-1, weight.shape[2])).flatten(1, 2), missing


def _slope(norm: nn.Module) -> Tensor:
    """[M], factors of a norm; inf for nearly 0: errors are divided by it, and not corrected in front of such a norm."""
    slope = norm_statistics(norm).slope
    return torch.where(slope.abs() > 1e-3 * slope.abs().amax(), slope, torch.inf)


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Values [M] as a view that is broadcast to ``x`` [B, M, ...]."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
