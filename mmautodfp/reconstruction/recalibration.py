"""Correction of a pruned module's running statistics on synthetic images, fast enough for an episode."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, is_batch_norm
from mmautodfp.kernels import bounded_gain
from mmautodfp.surgery import PruningPlan, Restore, replace_tensor

from .synthetic import NormStatistics


@dataclass(frozen=True)
class _Norm:
    """A dense norm: its running mean and variance [C], and mean and variance [C] of its inputs on the images."""

    running_mean: Tensor
    running_var: Tensor
    mean: Tensor
    variance: Tensor


class Recalibration:
    """Changes the running statistics of every BatchNorm as pruning changed the statistics on synthetic images.

    The dense and the pruned module are run on the same images with batch statistics, so that every layer's inputs are
    scaled as in the training. For each norm, the difference between the pruned and the dense mean is added to the
    running mean, and the running variance is multiplied by the ratio of the variances, limited to 1/4 to 4.

    Args:
        module (nn.Module): The dense module, in eval mode.
        groups (Sequence[ChannelGroup]): Its groups.
        batches (Callable): Gives the inputs of the module, batch by batch, the same at every call.
        given (Mapping): Path of each norm to mean and variance [C] of its inputs in the dense module, over these
            batches.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[ChannelGroup],
        batches: Callable[[], Iterable[tuple]],
        given: Mapping[str, tuple[Tensor, Tensor]],
    ):
        self._batches = batches
        norms = {name: norm for name, norm in module.named_modules() if is_batch_norm(norm)}
        self._dense = {
            name: _Norm(norms[name].running_mean.clone(), norms[name].running_var.clone(), *statistics)
            for name, statistics in given.items()
        }
        self._group_of = {path: group for group in groups for path in group.layers if path in norms}

    @torch.no_grad()
    def __call__(self, module: nn.Module, plan: PruningPlan, restore: Restore) -> None:
        """Set the running statistics of a module that was just pruned with ``plan``; ``restore`` remembers norms."""
        if not self._dense:
            return
        found = NormStatistics()
        for inputs in self._batches():
            found.run(module, inputs)
        for name, (mean, variance) in found.of_first().items():
            dense = self._dense[name]
            group = self._group_of.get(name)
            own = plan.groups.get(group.name) if group else None
            keep = slice(None) if own is None else group.channels(torch.tensor(own.keep))
            norm = restore.remember(module.get_submodule(name))
            gain = bounded_gain(dense.variance[keep], variance).to(dense.running_var)
            step = (mean - dense.mean[keep]).to(dense.running_mean)
            replace_tensor(norm, 'running_mean', dense.running_mean[keep] + step)
            replace_tensor(norm, 'running_var', dense.running_var[keep] / gain**2)
