"""The kernels compared with loops over channels; ``tools/benchmark.py kernels`` runs it."""

import statistics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmautodfp.kernels import BatchNormStats, ChannelSimilarity, rank_channels
from mmautodfp.utils.timing import describe_machine, median_in_turns

from .bench import timed


def benchmark_kernels(channels: int = 512, rows: int = 16, repeat: int = 15) -> dict[str, Any]:
    """Time the similarity of all channels of a 3x3 layer and the delivery of half of them, with kernels and with loops.

    The loop computes Eq. 12, 16 and 18 for one pair of channels after the other. It is timed on some rows of the
    matrices, and their median counts for each of the N rows.

    Args:
        channels (int): N, the number of input channels too. Defaults to 512.
        rows (int): Pruned channels that the loop is timed on. Defaults to 16.
        repeat (int): Measurements of the kernels, of which the median counts. Defaults to 15.

    Returns:
        dict[str, Any]: Seconds of both, their ratio, the largest difference of the results and the machine.
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
    """Row p of the delivery matrix [K]."""
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
