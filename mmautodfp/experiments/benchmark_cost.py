"""What least squares on synthetic images costs, step by step; ``tools/ablation.py --cost`` runs it."""

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmautodfp.api import PruningTask
from mmautodfp.costs import FlopBudget, round_widths
from mmautodfp.deploy.onnx import build_model, input_size
from mmautodfp.graph import is_detector
from mmautodfp.hooks import read_settings
from mmautodfp.runs import load_config
from mmautodfp.search.survey import survey_target
from mmautodfp.utils.registry import RECONSTRUCTORS, build
from mmautodfp.utils.timing import describe_machine

from .bench import clocks, example_of


def measure_cost(
    config: str | os.PathLike,
    settings: Mapping[str, Any] | None = None,
    ratio: float = 0.5,
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Seconds and memory of the moments and of the full pass, on a model of random weights: nothing is fetched.

    Args:
        config (str | os.PathLike): Config of a detector with an ``autodfp`` entry.
        settings (Mapping | None): Of :class:`mmautodfp.reconstruction.SyntheticLeastSquares`. Defaults to None: its
            own.
        ratio (float): Share of each group's channels that stays; of a detector that is pruned as a whole or in several
            parts, the share of its FLOPs. Defaults to 0.5.
        cfg_options (dict | None): Overrides of the config, dotted keys to values; ``{'autodfp.target': 'model'}`` for
            the whole detector.

    Returns:
        dict[str, Any]: Seconds by step, by the clock and summed over the processor's cores; peak resident memory of
        this process in GB, before and after; how many groups there are; the machine.
    """
    cfg = load_config(config, None, 'none', cfg_options)
    cfg.model.backbone.init_cfg = None
    model = build_model(cfg)
    target = read_settings(cfg.get('autodfp') or {}).target
    memory = [_peak_memory()]
    marks = [clocks()]
    survey = survey_target(model, target)
    marks.append(clocks())
    reconstructor = build(RECONSTRUCTORS, dict(type='SyntheticLeastSquares', **(settings or {})))
    reconstructor.ensure_fitted(survey.module, model, survey.groups)
    marks.append(clocks())
    limit, example = ratio, None
    if not survey.path and is_detector(model):
        images = torch.rand(1, 3, *input_size(cfg, Path(config)))
        limit, example = FlopBudget(ratio, 'model'), example_of(images)
    task = PruningTask.build(model, survey, example, limit, reconstructor, allocate=False)
    marks.append(clocks())
    task.allocated_widths()
    marks.append(clocks())
    plan = task.plan(round_widths(ratio, task.dense_widths)) if example is None else task.uniform_plan()
    task.apply(plan)()
    marks.append(clocks())
    task.apply(plan, final=True)
    marks.append(clocks())
    memory.append(_peak_memory())
    # Ranking includes what else a task is built of: of a whole detector, one image to count its FLOPs.
    names = ('groups', 'moments', 'ranking', 'allocation', 'episode', 'full')
    spent = {name: (b - a).round(2).tolist() for name, a, b in zip(names, marks, marks[1:], strict=False)}
    return dict(
        config=Path(config).as_posix(),
        target=survey.target,
        groups=len(task.groups),
        settings=dict(settings or {}),
        ratio=ratio,
        counts=task.summary(plan),
        seconds={name: wall for name, (wall, _) in spent.items()},
        cpu_seconds={name: cpu for name, (_, cpu) in spent.items()},
        peak_memory_gb=dict(zip(('before', 'after'), memory, strict=True)),
        machine=describe_machine() | dict(load_average=list(os.getloadavg())),
    )


def _peak_memory() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)  # Linux counts in KB
