"""The memory that a :class:`mmautodfp.costs.MemoryBudget` counts, compared with what torch allocates."""

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mmautodfp.api import PruningTask
from mmautodfp.costs import MemoryBudget, round_widths
from mmautodfp.search.example import call_model
from mmautodfp.utils.timing import describe_machine, device_at_hand

from .bench import example_of, random_detector


def benchmark_memory(
    config: str | os.PathLike, size: Sequence[int] | None = None, device: str | None = None
) -> dict[str, Any]:
    """Memory of a detector, counted and measured: dense, and with half of the channels of its backbone or of all of it.

    Weights are random. As in the count, the forward is measured without post-processing: on a processor by torch's
    profiler, on a GPU by torch's allocator.

    Args:
        config (str | os.PathLike): Config of a detector.
        size (Sequence[int] | None): Height and width. Defaults to None: the config's.
        device (str | None): 'cpu' or 'cuda'. Defaults to None: a GPU if there is one.

    Returns:
        dict[str, Any]: For each model the bytes of its ``weights``; the bytes ``counted`` in all; those ``measured``:
        weights, input and the most that torch allocated at once besides; the ``ratio`` of the two; and, on a processor,
        those measured ``between_operations``, without what an operation frees before its end. The machine.
    """
    _, model, images = random_detector(config, size)
    device = device or device_at_hand()
    model, images = model.to(device), images.to(device)
    example = example_of(images)
    run = lambda: call_model(model, example)
    models = {}
    for part, target in dict(backbone='backbone', whole='model').items():
        budget = MemoryBudget(1.0, 'model')
        task = PruningTask.build(model, target, example, budget, dict(type='PruneOnly'), allocate=False)
        cost, dense = task.costs.memory['model'], task.dense_widths
        half = round_widths(0.5, dense, task.constraint.divisors)
        found = {'dense': dense, f'{part}, 50% of the channels': half}
        for name, kept in found.items():
            if name in models:
                continue
            weights, counted = cost.weights(kept), cost(kept)
            given = weights + images.numel() * images.element_size()
            models[name] = dict(weights=weights, counted=counted)
            with task.apply(task.plan(kept)):
                if device == 'cuda':
                    measured = given + _allocated_on_gpu(run)
                else:
                    peak, between = allocated_peaks(run)
                    measured = given + peak
                    models[name]['between_operations'] = given + between
            models[name] |= dict(measured=measured, ratio=counted / measured)
    return dict(config=Path(config).as_posix(), input=list(images.shape), models=models, machine=describe_machine())


@torch.no_grad()
def _allocated_on_gpu(run: Callable[[], Any]) -> int:
    """The most bytes that a run on a GPU allocates at once, as torch's allocator reports them."""
    run()  # cuBLAS takes a workspace at the first call, and keeps it
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


@torch.no_grad()
def allocated_peaks(run: Callable[[], Any]) -> tuple[int, int]:
    """The most bytes that a run on the processor allocates at once, as torch's profiler reports them.

    Returns:
        tuple[int, int]: At any time, and at those where an operation has just ended.
    """
    run()  # some things are made at the first call, and kept
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        outputs = run()  # held until the end
    events = list(profiler.profiler.kineto_results.events())
    del outputs
    changes = sorted((_start(event), event.nbytes()) for event in events if event.name() == '[memory]')
    times, held = [time for time, _ in changes], [0, *accumulate(change for _, change in changes)]
    between, end = 0, -1
    operations = sorted((_start(event), _end(event)) for event in events if event.name().startswith('aten::'))
    for start, own_end in operations:  # of those inside of others, the outermost end counts
        if start > end:
            between = max(between, held[bisect_right(times, end)])
        end = max(end, own_end)
    return max(held), max(between, held[bisect_right(times, end)])


def _start(event: Any) -> int:
    return event.start_ns() if hasattr(event, 'start_ns') else event.start_us()


def _end(event: Any) -> int:
    return _start(event) + (event.duration_ns() if hasattr(event, 'duration_ns') else event.duration_us())
