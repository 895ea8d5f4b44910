"""What the norms are given once a module is pruned, measured on synthetic images; cheap enough for an episode."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, is_batch_norm, run_model
from mmautodfp.surgery import PruningPlan, Restore, replace_tensor

from .refine import bounded_gain
from .synthetic import batch_statistics


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
        units (Sequence[ChannelGroup]): Its units.
        batches (Callable): Gives what the module is called with, batch by batch, the same at every call.
    """

    def __init__(self, module: nn.Module, units: Sequence[ChannelGroup], batches: Callable[[], Iterable[tuple]]):
        self._batches = batches
        norms = {name: norm for name, norm in module.named_modules() if is_batch_norm(norm)}
        self._dense = {
            name: _Norm(norms[name].running_mean.clone(), norms[name].running_var.clone(), *statistics)
            for name, statistics in self._measure(module).items()
        }
        self._unit_of = {path: unit for unit in units for path in unit.layers if path in norms}

    @torch.no_grad()
    def __call__(self, module: nn.Module, plan: PruningPlan, restore: Restore) -> None:
        """Set the norms of the module, which was just pruned with a plan; ``restore`` remembers them."""
        if not self._dense:
            return
        for name, (mean, variance) in self._measure(module).items():
            dense = self._dense[name]
            unit = self._unit_of.get(name)
            found = plan.units.get(unit.name) if unit else None
            keep = slice(None) if found is None else unit.channels(torch.tensor(found.keep))
            norm = restore.remember(module.get_submodule(name))
            gain = bounded_gain(dense.variance[keep], variance)
            replace_tensor(norm, 'running_mean', dense.running_mean[keep] + (mean - dense.mean[keep]))
            replace_tensor(norm, 'running_var', dense.running_var[keep] / gain**2)

    @torch.no_grad()
    def _measure(self, module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and variance [C] of what each norm is given, over all batches."""
        parts: dict[str, list[tuple[int, Tensor, Tensor]]] = {}

        def watch(name: str, x: Tensor) -> None:
            others = [axis for axis in range(x.ndim) if axis != 1]
            variance, mean = torch.var_mean(x, others, correction=0)
            parts.setdefault(name, []).append((x.numel() // x.shape[1], mean, variance))

        with batch_statistics(module, watch):
            for inputs in self._batches():
                run_model(module, *inputs)
        return {name: _pool(found) for name, found in parts.items()}


def _pool(parts: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of all samples, from counts, means and variances of some."""
    counts = torch.tensor([count for count, _, _ in parts], dtype=parts[0][1].dtype, device=parts[0][1].device)
    means, variances = (torch.stack([part[index] for part in parts]) for index in (1, 2))
    weights = (counts / counts.sum())[:, None]
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean) ** 2)).sum(0)
