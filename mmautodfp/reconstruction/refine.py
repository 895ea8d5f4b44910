"""The full pass: fits the weights of consumers, group by group, to the outputs of the dense module by least squares."""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import nn

from mmautodfp.graph import ChannelGroup, Consumer
from mmautodfp.surgery import PruningPlan, Restore, prune_group
from mmautodfp.utils import AutoDFPError

from .base import Reconstructor
from .foreground import Foreground
from .layer_fit import FullPass, LayerFit, Refinement
from .paths import Census, Paths

_Reads = dict[str, list[tuple[ChannelGroup, Consumer]]]  # path of a layer to the groups that it reads, and how


@torch.no_grad()
def refine(
    module: nn.Module,
    twin: nn.Module,
    groups: Sequence[ChannelGroup],
    plan: PruningPlan,
    reconstructor: Reconstructor,
    batches: Callable[[], Iterator[tuple]],
    foregrounds: Sequence[Foreground | None],
    settings: Refinement,
    restore: Restore,
) -> nn.Module:
    """Fit every consumer of pruned channels once more, with inputs of the pruned path and targets of the dense one.

    Memory holds one batch at a time, sums over the samples, and the caches of :class:`.paths.Paths`.

    Args:
        module (nn.Module): Pruned with ``plan`` and ``reconstructor``; changed in place.
        twin (nn.Module): The dense module with the running statistics of the images.
        groups (Sequence[ChannelGroup]): Groups of the module, in forward order.
        plan (PruningPlan): The plan that the module was pruned with.
        reconstructor (Reconstructor): The fitted reconstructor that it was pruned with.
        batches (Callable): Gives the inputs of the module, batch by batch, the same at every call.
        foregrounds (Sequence[Foreground | None]): The foreground of each batch; positions in it count more.
        settings (Refinement): The settings.
        restore (Restore): Remembers every layer that is changed.

    Returns:
        nn.Module: A copy of the pruned module with its new weights and the running statistics of the images.

    Raises:
        AutoDFPError: A layer of the twin is not called.
    """
    slim, cut = copy.deepcopy(twin), Restore()
    widths = plan.widths
    pruned = [group for group in groups if widths.get(group.name, group.num_channels) < group.num_channels]
    used = {group.name: prune_group(slim, group, plan.groups[group.name], reconstructor, cut) for group in pruned}
    full_pass = FullPass(twin, slim, cut, used, settings, -(-settings.positions // len(foregrounds)))
    paths = Paths(twin, slim, batches, settings.cache_gb)
    reads: _Reads = {}
    for group in groups:
        for consumer in group.consumers:
            reads.setdefault(consumer.name, []).append((group, consumer))
    # Consumers of unpruned groups miss nothing: new weights would only be fitted to the errors of layers before them.
    layers = {consumer.name for group in pruned for consumer in group.consumers}
    if lost := layers - paths.census.calls.keys():
        raise AutoDFPError(
            f'the full pass works on a copy of the {type(module).__name__}, but {min(lost)} of the copy is not run, as '
            'if a function that calls the layers of the model itself stood in place of a forward; make it a method of '
            'the class, or do without the full pass: '
            "reconstructor=dict(type='SyntheticLeastSquares', refinement=False)"
        )
    in_order = [path for path in paths.census.calls if path in layers]
    for block, steps in _blocks(in_order, reads, paths.census):
        paths.enter(block, {path: reads[path][0][1].norm for step in steps for path in step}, settings.shortcut > 0)
        for first in range(0, len(steps), settings.groups_per_pass):
            together = [path for step in steps[first : first + settings.groups_per_pass] for path in step]
            fits = [LayerFit(full_pass, reads[path]) for path in together]
            for (dense, now), foreground in zip(paths.watch(together), foregrounds, strict=True):
                for path, fit in zip(together, fits, strict=True):
                    fit.update(dense[path], now[path], foreground)
            for fit in fits:
                fit.install(*fit.solve(), module, restore)
    return slim


def _blocks(layers: Sequence[str], reads: _Reads, census: Census) -> Iterator[tuple[str, list[list[str]]]]:
    """The blocks that layers are in, each with the layers of its steps.

    The first step has the layers that read no outputs of other layers in its block that are solved; the next one has
    the layers that read outputs of the first step, and so on.
    """
    blocks = {path: _block_of(path, reads[path][0][1].norm, census) for path in layers}
    for block, members in groupby(layers, blocks.get):
        steps: dict[str, int] = {}
        for path in members:
            makers = {producer.name for group, _ in reads[path] for producer in group.producers}
            steps[path] = 1 + max((steps[maker] for maker in makers if maker in steps), default=-1)
        last = max(steps.values())
        yield block, [[path for path in steps if steps[path] == step] for step in range(last + 1)]


def _block_of(path: str, norm: str | None, census: Census) -> str:
    """Path of the smallest part that holds a layer, its norm and others, and is called once; '' if there is none."""
    parts = path.split('.')
    around = ['.'.join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
    able = [part for part in around if census.calls.get(part) == 1 and (norm or path).startswith(f'{part}.')]
    shared = [part for part in able if sum(other.startswith(f'{part}.') for other in census.weights) > 1]
    return next(iter(shared), '')
