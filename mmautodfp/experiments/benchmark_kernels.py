"""Kernels against loops, narrow models against wide ones, a search against its evaluations."""

import os
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmautodfp.api import PruningTask, search
from mmautodfp.costs import FlopBudget, LatencyBudget, measure_latency_costs
from mmautodfp.deploy.onnx import build_model, input_size
from mmautodfp.hooks import read_settings
from mmautodfp.kernels import BatchNormStats, ChannelSimilarity, rank_channels
from mmautodfp.runs import load_config
from mmautodfp.search.survey import find_module
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.timing import describe_machine, device_at_hand, median_in_turns

from .bench import prepare_hook, quiet, timed
from .shares import prune_copy


def benchmark_kernels(channels: int = 512, rows: int = 16, repeat: int = 15) -> dict[str, Any]:
    """All pairs of a 3x3 layer's channels compared and half of them delivered: the kernels beside per-channel loops.

    The loop computes Eq. 12, 16 and 18 for one pair of channels after the other, as they are written down. It is timed
    on some rows of the matrices, and their median counts for each of the N rows.

    Args:
        channels (int): N, the inputs' number too. Defaults to 512.
        rows (int): Pruned channels that the loop is timed on. Defaults to 16.
        repeat (int): Measurements of the kernels, of which the median counts. Defaults to 15.

    Returns:
        dict[str, Any]: Seconds of either, their ratio, the largest difference of the results and the machine.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, channels, 3, 3, generator=generator)
    values = [torch.rand(channels, generator=generator) + 0.5 for _ in range(4)]
    bn = BatchNormStats(*values, eps=1e-5)
    keep = rank_channels(weight)[: channels // 2].sort().values
    lam = 0.5  # of Eq. 16
    kernel = lambda: ChannelSimilarity.from_weight(weight, bn).delivery(keep, lam)
    seconds = median_in_turns(dict(kernel=kernel), repeat)['kernel']
    delivery = kernel()
    kept = set(keep.tolist())
    pruned = [p for p in range(channels) if p not in kept][:: max(1, (channels - len(kept)) // rows)][:rows]
    clock: list[float] = []
    loop_row = timed(_loop_row, clock.append)
    difference = max((loop_row(weight, bn, p, keep.tolist(), lam) - delivery[p]).abs().max().item() for p in pruned)
    loop = statistics.median(clock) * channels
    return dict(
        channels=channels,
        kernel_size=3,
        seconds=dict(kernels=seconds, loops=loop),
        ratio=loop / seconds,
        largest_difference=difference,
        machine=describe_machine(),
    )


@torch.no_grad()
def _loop_row(weight: Tensor, bn: BatchNormStats, p: int, keep: list[int], lam: float) -> Tensor:
    """Row p of the delivery matrix [K], by way of p's distance to, scale and bias at each of the N channels."""
    sigma = (bn.var + bn.eps).sqrt()
    distances, scales, biases = [], [], []
    for r in range(len(weight)):
        distances.append(1 - F.cosine_similarity(weight[p].flatten(), weight[r].flatten(), dim=0))
        ratio = weight[p].norm() / weight[r].norm()
        scales.append(ratio * sigma[r] / bn.weight[r] * bn.weight[p] / sigma[p])  # Eq. 12
        left = scales[r] * (bn.weight[r] * bn.mean[r] / sigma[r] - bn.bias[r])
        biases.append((left - bn.weight[p] * bn.mean[p] / sigma[p] + bn.bias[p]).abs())  # Eq. 18
    low, high = min(biases[r] for r in keep), max(biases[r] for r in keep)
    costs = [lam * distances[r] + (1 - lam) * (biases[r] - low) / (high - low) for r in keep]  # Eq. 16
    row = torch.zeros(len(keep))
    best = min(range(len(keep)), key=lambda k: costs[k])
    row[best] = scales[keep[best]]
    return row


def benchmark_latency(
    config: str | os.PathLike,
    repeat: int = 10,
    ratio: float = 0.5,
    size: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Latency of a pruned module, dense and uniformly narrowed to a share of its FLOPs, by channels and by eights.

    Weights are random: their values do not matter to the speed, and no checkpoint is needed.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        repeat (int): Measurements of each, in turns, of which the median counts. Defaults to 10.
        ratio (float): Share of the FLOPs that stays, in (0, 1]. Defaults to 0.5.
        size (Sequence[int] | None): Height and width. Defaults to None: the config's.

    Returns:
        dict[str, Any]: For the dense module and the channel divisors 1 and 8 FLOPs, seconds and the latency that
        :class:`mmautodfp.costs.LatencyBudget` predicts from its table, the last two as ``ratio`` and ``predicted`` of
        the dense one's; the machine.

    Raises:
        AutoDFPError: The ratio cannot be reached.
    """
    cfg = load_config(config)
    if not isinstance(cfg.get('autodfp'), dict):
        raise AutoDFPError(f"{config} was to be measured, but it has no 'autodfp' entry")
    settings, device = read_settings(cfg.autodfp), device_at_hand()
    module = find_module(build_model(cfg), settings.target).to(device)
    channels = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d)).in_channels
    images = torch.rand(1, channels, *(size or input_size(cfg, Path(config))), device=device)
    tasks = {
        divisor: PruningTask.build(
            *(module, '', images, FlopBudget(ratio), dict(type='PruneOnly')),
            channel_divisor=divisor,
            p_min=settings.p_min,
        )
        for divisor in (1, 8)
    }
    task = tasks[1]
    plans = dict(dense=task.plan(task.dense_widths))
    plans |= {f'divisor {divisor}': one.uniform_plan() for divisor, one in tasks.items()}
    calls = {name: partial(prune_copy(task, plan).model, images) for name, plan in plans.items()}
    seconds = median_in_turns(calls, repeat)
    widths = {name: list(plan.widths.values()) for name, plan in plans.items()}
    with tempfile.TemporaryDirectory() as cache:
        table = LatencyBudget(points=3, repeat=3)
        call = lambda: module(images)
        predicted = measure_latency_costs(module, module, task.groups, call, table, cache=cache)['module']
    rows = {
        name: dict(
            flops=task.costs.flops['module'](kept),
            flops_ratio=task.costs.flops['module'].ratio(kept),
            seconds=seconds[name],
            ratio=seconds[name] / seconds['dense'],
            predicted=predicted.ratio(kept),
            widths=kept,
        )
        for name, kept in widths.items()
    }
    return dict(config=str(config), input=list(images.shape), asked=ratio, models=rows, machine=describe_machine())


def benchmark_overhead(config: str | os.PathLike, episodes: int = 24) -> dict[str, Any]:
    """What the agent costs beside the evaluation of its plans; a quarter of the episodes is warm-up.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        episodes (int): Of the search; those after the warm-up count. Defaults to 24.

    Returns:
        dict[str, Any]: Median seconds an episode with learning, its evaluation's share of them, and the ``overhead``:
        what is left over, as a share of the evaluation; the machine.
    """
    _, hook = prepare_hook(config)
    agent = dict(hook.agent)
    if 'warmup_episodes' in agent:
        agent['warmup_episodes'] = max(1, episodes // 4)
    clock: list[float] = []
    hook.task.evaluate = timed(hook.task.evaluate, clock.append)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        file = Path(scratch) / 'search.pth'
        found = search(hook.task, hook.reward, episodes, agent, (), False, checkpoint=file)
    learned = slice(episodes // 4, None)
    shares = [whole / own - 1 for whole, own in zip(found.history.seconds[learned], clock[learned], strict=True)]
    return dict(
        episodes=episodes,
        seconds=dict(
            episode=statistics.median(found.history.seconds[learned]), evaluation=statistics.median(clock[learned])
        ),
        overhead=statistics.median(shares),
        machine=describe_machine(),
    )
