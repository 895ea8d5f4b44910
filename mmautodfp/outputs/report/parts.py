"""Parameters and FLOPs of each part of a detector that was pruned as a whole, before and after."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mmautodfp.costs import measure_positions, model_costs
from mmautodfp.graph import is_detector, samples_of
from mmautodfp.outputs.latency import build_models
from mmautodfp.utils.fileio import load_json

SECOND_STAGE = 'roi_head'


@dataclass(frozen=True)
class PartCounts:
    """Parameters and FLOPs of a part of a detector.

    Attributes:
        name (str): Its path, such as 'backbone' or 'roi_head.bbox_head'.
        params (list[int]): [2], the dense model's and the pruned one's.
        flops (list[int]): [2], likewise, on the input that the run counted FLOPs with.
    """

    name: str
    params: list[int]
    flops: list[int]


@torch.no_grad()
def count_parts(run: str | os.PathLike) -> list[PartCounts]:
    """Count the parts of a run's models, built once more with random weights.

    Args:
        run (str | os.PathLike): Work dir with ``pruned.py`` and ``summary.json``.

    Returns:
        list[PartCounts]: In the order of the model; none if the run pruned one part only, or no detector.
    """
    summary = load_json(Path(run) / 'summary.json', 'the summary of the run')
    if summary['module']:
        return []
    models = build_models(run, ('dense', 'AutoDFP'))
    if not is_detector(models['dense']):
        return []
    row = next(row for row in summary['results'] if row['name'] == 'AutoDFP')
    pruned = row['model_flops']['count']
    totals = dict(dense=round(pruned / row['model_flops']['ratio']), AutoDFP=pruned)
    dense, slim = (_count(models[name], summary['flops_input'], total) for name, total in totals.items())
    return [
        PartCounts(name, *([a, b] for a, b in zip(dense[name], slim[name], strict=True)))
        for name in dense
        if dense[name][0]
    ]


def part_of(name: str) -> str:
    """The part that a layer belongs to; the parts of a second stage count one by one."""
    first, *rest = name.split('.')
    return f'{first}.{rest[0]}' if first == SECOND_STAGE and rest else first


def _count(model: nn.Module, shape: list[int], total: int) -> dict[str, tuple[int, int]]:
    """Parameters and FLOPs by part; the latter are ``total`` in all."""
    images = torch.rand(shape, device=next(model.parameters()).device)
    positions = measure_positions(model, lambda: model(images, samples_of(images), mode='tensor'))
    found = {}
    for name in dict.fromkeys(part_of(path) for path, _ in model.named_modules() if path not in ('', SECOND_STAGE)):
        costs = model_costs(model, model.get_submodule(name), [], positions)
        found[name] = costs.params['module']([]), costs.flops['module']([])
    # FLOPs of a second stage depend on how many regions the first one finds, and random weights find more or fewer than
    # the run did. All other FLOPs are the run's.
    second = {name: flops for name, (_, flops) in found.items() if name.startswith(f'{SECOND_STAGE}.')}
    rest, measured = sum(flops for name, (_, flops) in found.items() if name not in second), sum(second.values())
    if measured and total > rest:
        for name, flops in second.items():
            found[name] = found[name][0], round(flops * (total - rest) / measured)
    return found
