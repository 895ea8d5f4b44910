"""What the norms are given once a module is pruned, measured on synthetic images; cheap enough for an episode."""

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
    """A dense norm: its running mean and variance [C], and mean and variance [C] of what the images give it."""

    running_mean: Tensor
    running_var: Tensor
    mean: Tensor
    variance: Tensor


class Recalibration:
    """Moves the statistics of every BatchNorm by what pruning moved them on the images.

    Dense and pruned module see the same images, every norm with the statistics of its batch, so that each layer reads
    what it read in training but for what pruning changed. The difference of the means is added to the running mean,
    the ratio of the variances, between 1/4 and 4, multiplies the running variance.

    Args:
        module (nn.Module): The dense module, in eval mode.
        groups (Sequence[ChannelGroup]): Its groups.
        batches (Callable): Gives what the module is called with, batch by batch, the same at every call.
        given (Mapping): Mean and variance [C] of what each norm of the dense module is given, of these batches.
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
        """Set the norms of the module, which was just pruned with a plan; ``restore`` remembers them."""
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
