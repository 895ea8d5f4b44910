"""Seconds and memory of least squares on synthetic images, by step; ``tools/ablation.py --cost`` runs it."""

import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmautodfp.api import PruningTask
from mmautodfp.costs import FlopBudget, round_widths
from mmautodfp.graph import is_detector
from mmautodfp.hooks import read_settings
from mmautodfp.runs import load_config
from mmautodfp.search.survey import survey_target
from mmautodfp.utils.registry import RECONSTRUCTORS, build
from mmautodfp.utils.timing import describe_machine

from .bench import T, clocks, example_of, random_detector

SHARE = 0.5  # that is kept


def measure_cost(
    config: str | os.PathLike,
    images: Mapping[str, Any] | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Seconds and memory of pruning a model with random weights; nothing is downloaded.

    Half of each group's channels are kept; of a detector that is pruned as a whole or in several parts, half of its
    FLOPs, counted on an image of the config's size or else of the synthetic images'. If the config has another
    reconstructor, :class:`mmautodfp.reconstruction.SyntheticLeastSquares` is measured with its defaults.

    Args:
        config (str | os.PathLike): Config of a detector with an ``autodfp`` entry.
        images (Mapping | None): Settings of the synthetic images that replace the reconstructor's. Defaults to None.
        cfg_options (dict | None): Overrides of the config, dotted keys to values; ``{'autodfp.target': 'model'}`` for
            the whole detector.

    Returns:
        dict[str, Any]: Seconds by step, wall-clock and summed over the processor's cores ('distilled' is 'full' with
        the distillation, if there is one); peak resident memory of this process in GB, before and after; the number of
        groups; the machine.

    Raises:
        AutoDFPError: The config is not one of a detector, a setting is wrong, or half cannot be reached.
    """
    told = read_settings(load_config(config, cfg_options=cfg_options).get('autodfp') or {})
    settings, ours = dict(told.reconstructor), dict(type='SyntheticLeastSquares')
    if settings['type'] != ours['type']:
        settings = ours
    reconstructor = build(RECONSTRUCTORS, settings)
    if images:  # after the config's own have been checked
        settings['images'] = dict(settings.get('images') or {}) | images
        reconstructor = build(RECONSTRUCTORS, settings)
    _, model, image = random_detector(config, cfg_options=cfg_options, otherwise=reconstructor.images.size)
    spent: dict[str, list[float]] = {}

    def step(name: str, call: Callable[[], T]) -> T:
        start = clocks()
        found = call()
        spent[name] = (clocks() - start).round(2).tolist()
        return found

    memory = [_peak_memory()]
    survey = step('groups', lambda: survey_target(model, told.target, residual_streams=told.residual_streams))
    step('moments', lambda: reconstructor.ensure_fitted(survey.module, model, survey.groups))
    limit, example = SHARE, None
    if not survey.path and is_detector(model):
        limit, example = FlopBudget(SHARE, 'model'), example_of(image)
    # Ranking includes the rest of building a task, such as counting a whole detector's FLOPs.
    own = dict(p_min=told.p_min, channel_divisor=told.channel_divisor, allocate=False)
    task = step('ranking', lambda: PruningTask.build(model, survey, example, limit, reconstructor, **own))
    step('allocation', task.allocated_widths)
    half = round_widths(SHARE, task.dense_widths, task.constraint.divisors)
    plan = task.plan(half) if example is None else task.uniform_plan()
    step('episode', lambda: task.apply(plan)())
    plain = replace(task, reconstructor=reconstructor.undistilled)
    step('full', lambda: plain.apply(plan, final=True)())
    if reconstructor.distillation:
        step('distilled', lambda: task.apply(plan, final=True))
    memory.append(_peak_memory())
    return dict(
        config=Path(config).as_posix(),
        target=survey.target,
        groups=len(task.groups),
        settings=settings,
        ratio=SHARE,
        counts=task.summary(plan),
        seconds={name: wall for name, (wall, _) in spent.items()},
        cpu_seconds={name: cpu for name, (_, cpu) in spent.items()},
        peak_memory_gb=dict(zip(('before', 'after'), memory, strict=True)),
        machine=describe_machine() | dict(load_average=list(os.getloadavg())),
    )


def _peak_memory() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)  # Linux counts in KB
