"""The full pass of least squares: unit by unit along the pruned path, towards what the dense module gives."""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, takewhile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmautodfp.graph import Consumer, PrunableUnit, find_units
from mmautodfp.kernels import Moments, solve_ridge
from mmautodfp.surgery import PruningPlan, Restore, prune_unit, replace_tensor, shift_outputs
from mmautodfp.utils.settings import Count, NotNegative, Share, settings

from .base import Reconstructor
from .paths import Paths, Seen
from .synthetic import as_channels, channels_first


@settings('refinement')
class Refinement:
    """Settings of the full pass.

    Attributes:
        ridge (float): Strength that holds a channel to the delivery of the episodes. Defaults to 1e-2.
        patches (bool): Fit the consumers' weights themselves, tap by tap, to the dense outputs. Defaults to True.
        patch_ridge (float): Strength that holds them to the merged ones. Defaults to 0.1.
        shortcut (float): Share of the error on the shortcut that the last layer of a residual block is to make good,
            0 to 1. Defaults to 0.25.
        rematch (bool): Give the outputs back their deviation. Defaults to True.
        units_per_pass (int): Units of a block that are solved between two passes over the images; those solved
            together do not yet see each other's new weights. Defaults to 1.
        positions (int): Of each image, at most, that a layer is fitted on. Defaults to 1024.
        max_patch (int): Inputs of a layer beyond which its weights stay merged ones. Defaults to 4608, which is 512
            channels under a 3x3 kernel.
        cache_gb (float): Memory for what enters a block, for all images, in GB. If it does not fit, both paths are run
            from their start for each pass. Defaults to 2.

    Raises:
        AutoDFPError: A setting is unknown, of another type or out of its range.
    """

    ridge: NotNegative = 1e-2
    patches: bool = True
    patch_ridge: NotNegative = 0.1
    shortcut: Share = 0.25
    rematch: bool = True
    units_per_pass: Count = 1
    positions: Count = 1024
    max_patch: Count = 4608
    cache_gb: NotNegative = 2.0


def bounded_gain(wanted: Tensor, found: Tensor) -> Tensor:
    """What brings variances [M] to those that are wanted, as a factor of the deviation in [0.5, 2]; 1 for no output."""
    alive = (wanted > 0) & (found > 0)
    ratio = torch.where(alive, wanted, 1) / torch.where(alive, found, 1)
    return ratio.sqrt().clamp(0.5, 2)


@torch.no_grad()
def refine(
    module: nn.Module,
    twin: nn.Module,
    plan: PruningPlan,
    reconstructor: Reconstructor,
    batches: Callable[[], Iterator[tuple]],
    settings: Refinement,
    restore: Restore,
) -> None:
    """Solve every unit once more: inputs from the path that is pruned already, targets from the dense one.

    A batch at a time; beside sums over the samples, what enters the block in question is kept, if there is room.

    Args:
        module (nn.Module): Pruned with ``plan`` and ``reconstructor``; changed in place.
        twin (nn.Module): The dense module with the norm statistics of the images.
        plan (PruningPlan): What it was pruned with.
        reconstructor (Reconstructor): Likewise, fitted.
        batches (Callable): Gives what the module is called with, batch by batch, the same at every call.
        settings (Refinement): How.
        restore (Restore): Remembers every layer that is changed.
    """
    units = find_units(twin)
    device = next(twin.parameters()).device
    keeps = {unit.name: _keep(plan, unit, device) for unit in units}
    slim = copy.deepcopy(twin)
    for unit in units:
        if unit.name in plan.units:
            prune_unit(slim, unit, plan.units[unit.name], reconstructor, Restore())
    paths = Paths(twin, slim, batches, settings.cache_gb)
    first = next((i for i, unit in enumerate(units) if len(keeps[unit.name]) < unit.num_channels), len(units))
    for block, group in _groups(units[first:], settings.units_per_pass):  # nothing changes before the first pruned one
        fits = [
            _ConsumerFit(twin, slim, unit, consumer, keeps, settings) for unit in group for consumer in unit.consumers
        ]
        layers = [(fit.consumer.name, fit.consumer.norm) for fit in fits]
        for dense, pruned in paths.watch(block, layers, settings.shortcut > 0):
            for fit in fits:
                fit.update(dense[fit.consumer.name], pruned[fit.consumer.name])
        for fit in fits:
            lam = plan.units[fit.unit.name].lam if fit.unit.name in plan.units else 0.5
            prior = reconstructor.reconstruct(fit.unit, fit.keep, lam).delivery
            fit.install(*fit.solve(prior), module, slim, restore)


def _groups(units: Sequence[PrunableUnit], size: int) -> Iterator[tuple[str, list[PrunableUnit]]]:
    """Units that are solved together: neighbours in one block, ``size`` of them at most."""
    for block, members in groupby(units, _block_of):
        members = list(members)
        for start in range(0, len(members), size):
            yield block, members[start : start + size]


def _block_of(unit: PrunableUnit) -> str:
    """Path of the smallest part that holds the producer, the consumers and their norms."""
    paths = [unit.name, *(path for c in unit.consumers for path in (c.name, c.norm) if path)]
    parents = [path.split('.')[:-1] for path in paths]
    return '.'.join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False)))


class _ConsumerFit:
    """New weights of one consumer.

    Args:
        twin (nn.Module): Dense path.
        slim (nn.Module): Pruned path.
        unit (PrunableUnit): Whose channels are read, N of them, K retained.
        consumer (Consumer): The layer, M outputs of which are retained.
        keeps (dict[str, Tensor]): Retained channels of each unit.
        settings (Refinement): How.
    """

    def __init__(
        self,
        twin: nn.Module,
        slim: nn.Module,
        unit: PrunableUnit,
        consumer: Consumer,
        keeps: dict[str, Tensor],
        settings: Refinement,
    ):
        self.unit, self.consumer, self.settings = unit, consumer, settings
        self.keep = keeps[unit.name]
        self.layer = slim.get_submodule(consumer.name)
        dense = twin.get_submodule(consumer.name)
        self.rows = keeps.get(consumer.name, torch.arange(len(dense.weight), device=dense.weight.device))
        self.weight = dense.weight[self.rows].flatten(1).unflatten(1, (unit.num_channels, -1)).double()
        zeros = dense.weight.new_zeros(len(self.rows))
        self.bias = zeros if dense.bias is None else dense.bias[self.rows]
        norm = twin.get_submodule(consumer.norm) if consumer.norm else None
        self.mean = None if norm is None else norm.running_mean[self.rows]
        self.slope = zeros + 1 if norm is None else _slope(norm)[self.rows]
        device = dense.weight.device
        self.channels = Moments(len(self.keep), unit.num_channels, device)
        width = len(self.keep) * self.weight.shape[2]
        self.patches = Moments(width, len(self.rows), device) if width <= settings.max_patch else None
        self.random = torch.Generator().manual_seed(0)

    def update(self, dense: Seen, pruned: Seen) -> None:
        """Take in one batch of the dense and of the pruned path."""
        first = lambda x: channels_first(self.layer, x)
        self.channels.update(
            as_channels(first(pruned.input), len(self.keep)), as_channels(first(dense.input), self.unit.num_channels)
        )
        if self.patches is None:
            return
        output = first(dense.output)
        target = output[:, self.rows] - _along(self.bias, output)
        if self.settings.shortcut and dense.shortcut is not None and pruned.shortcut is not None:
            error = first(dense.shortcut - pruned.shortcut) / _along(self.slope, output)
            target = target + self.settings.shortcut * error
        x, y = patches_of(self.layer, pruned.input), as_channels(target, len(self.rows))
        most = self.settings.positions * len(target)
        if len(x) > most:
            chosen = torch.randperm(len(x), generator=self.random)[:most].to(x.device)
            x, y = x[chosen], y[chosen]
        self.patches.update(x, y)

    def solve(self, prior: Tensor) -> tuple[Tensor, Tensor]:
        """The new weight [M, K * taps] and what is to be added to the outputs [M].

        Args:
            prior (Tensor): [N, K], the delivery of the episodes.
        """
        channels, settings = self.channels, self.settings
        delivery = solve_ridge(channels.covariance, channels.cross_covariance, settings.ridge, prior)
        weight = torch.einsum('mns,nk->mks', self.weight, delivery)
        if self.patches is None:
            constant = channels.target_mean - delivery @ channels.mean
            return weight.flatten(1), self.weight.sum(2) @ constant
        weight, patches = weight.flatten(1), self.patches
        if settings.patches:
            weight = solve_ridge(patches.covariance, patches.cross_covariance, settings.patch_ridge, weight)
        if settings.rematch:
            variance = ((weight @ patches.covariance) * weight).sum(1)
            weight = weight * bounded_gain(patches.target_variance, variance)[:, None]
        return weight, patches.target_mean - weight @ patches.mean

    def install(self, weight: Tensor, shift: Tensor, module: nn.Module, slim: nn.Module, restore: Restore) -> None:
        """Put them into both the pruned module and the pruned path."""
        if self.mean is not None:
            now = slim.get_submodule(self.consumer.norm).running_mean
            shift = shift.to(now) - (self.mean - now)  # on top of what has been shifted before
        else:
            now = self.layer.bias
            shift = shift.to(self.weight) if now is None else shift.to(now) - (now - self.bias)
        for net, memory in ((module, restore), (slim, Restore())):
            layer = memory.remember(net.get_submodule(self.consumer.name))
            replace_tensor(layer, 'weight', weight.to(layer.weight).view_as(layer.weight))
            shift_outputs(net, self.consumer, shift, memory)


def patches_of(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output position of a layer reads, [B * positions, N * taps], in the order of its weight."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    sides = layer._reversed_padding_repeated_twice  # also what 'same' comes to
    if max(layer.kernel_size) == 1 and max(layer.stride) == 1 and not any(sides):
        return as_channels(x, x.shape[1])
    if any(sides):
        x = F.pad(x, sides, mode='constant' if layer.padding_mode == 'zeros' else layer.padding_mode)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, stride=layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)


def _keep(plan: PruningPlan, unit: PrunableUnit, device: torch.device) -> Tensor:
    keep = plan.units[unit.name].keep if unit.name in plan.units else range(unit.num_channels)
    return torch.tensor(list(keep), device=device)


def _slope(norm: nn.Module) -> Tensor:
    """[M], what a norm multiplies by; errors behind a channel that it all but closes cannot be made good before it."""
    slope = norm.weight / (norm.running_var + norm.eps).sqrt()
    return torch.where(slope.abs() > 1e-3 * slope.abs().amax(), slope, torch.inf)


def _along(values: Tensor, x: Tensor) -> Tensor:
    """[M] to go with [B, M, ...]."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
