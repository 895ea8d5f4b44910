"""What least squares on synthetic images costs, step by step; ``tools/ablation.py --cost`` runs it."""

import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

from mmautodfp.api import PruningTask
from mmautodfp.costs import round_widths
from mmautodfp.hooks import read_settings
from mmautodfp.runs import load_config
from mmautodfp.search.task import find_module
from mmautodfp.surgery import allocation_of
from mmautodfp.utils.registry import RECONSTRUCTORS, build
from mmautodfp.utils.timing import describe_machine


def measure_cost(
    config: str | os.PathLike, settings: Mapping[str, Any] | None = None, ratio: float = 0.5
) -> dict[str, Any]:
    """Seconds and memory of the moments and of the full pass, on a model of random weights: nothing is fetched.

    Args:
        config (str | os.PathLike): Config of a detector with an ``autodfp`` entry.
        settings (Mapping | None): Of :class:`mmautodfp.reconstruction.SyntheticLeastSquares`. Defaults to None: its
            own.
        ratio (float): Share of each unit's channels that stays. Defaults to 0.5.

    Returns:
        dict[str, Any]: Seconds by step, by the clock and summed over the processor's cores; peak resident memory of
        this process in GB, before and after; the machine.
    """
    register_all_modules()
    cfg = load_config(config, None, 'none', None)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    model.eval()
    target = read_settings(cfg.get('autodfp') or {}).target
    module = find_module(model, target)
    memory = [_peak_memory()]
    reconstructor = build(RECONSTRUCTORS, dict(type='SyntheticLeastSquares', **(settings or {})))
    clock = lambda: np.array([time.perf_counter(), time.process_time()])
    marks = [clock()]
    reconstructor.ensure_fitted(module, model)
    marks.append(clock())
    task = PruningTask.build(model, target, None, ratio, reconstructor, allocate=False)
    marks.append(clock())
    allocation_of(reconstructor, task.groups, task.rankings, task.constraint, task.dense_widths)
    marks.append(clock())
    plan = task.plan(round_widths(ratio, task.dense_widths))
    task.apply(plan)()
    marks.append(clock())
    task.apply(plan, final=True)
    marks.append(clock())
    memory.append(_peak_memory())
    names = ('moments', 'ranking', 'allocation', 'episode', 'full')
    spent = {name: (b - a).round(2).tolist() for name, a, b in zip(names, marks, marks[1:], strict=False)}
    return dict(
        config=Path(config).as_posix(),
        settings=dict(settings or {}),
        ratio=ratio,
        seconds={name: wall for name, (wall, _) in spent.items()},
        cpu_seconds={name: cpu for name, (_, cpu) in spent.items()},
        peak_memory_gb=dict(zip(('before', 'after'), memory, strict=True)),
        machine=describe_machine(),
    )


def _peak_memory() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)  # Linux counts in KB
