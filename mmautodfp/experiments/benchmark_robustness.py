"""Pruned detectors on worse photographs than they were trained on; ``tools/benchmark.py robustness`` runs it."""

import copy
import os
from collections.abc import Callable
from typing import Any

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.configs import inner_dataset, type_name
from mmautodfp.utils.settings import Share, checked

from .bench import Bench
from .shares import MERGING, OURS, UNIFORM, build_task, candidates_of, prune_copy

#: By name, the settings of :class:`mmautodfp.zoo.Degrade`; none for images as they are.
CONDITIONS: dict[str, dict[str, Any]] = {
    'clean': {},
    'blurred, sigma 2': dict(kind='blur', strength=2.0),
    'blurred, sigma 4': dict(kind='blur', strength=4.0),
    'noisy, deviation 20': dict(kind='noise', strength=20.0),
    'noisy, deviation 40': dict(kind='noise', strength=40.0),
    'darker, 0.9': dict(kind='dark', strength=0.9),
    'darker, 0.8': dict(kind='dark', strength=0.8),
    'JPEG, quality 20': dict(kind='jpeg', strength=20.0),
    'JPEG, quality 5': dict(kind='jpeg', strength=5.0),
}
DENSE, WHOLE = 'dense', 'ours, allocated, whole detector'


@checked('robustness')
def benchmark_robustness(
    config: str | os.PathLike,
    share: Share = 0.5,
    cfg_options: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    report: Callable[[dict[str, Any], str], None] = lambda *_: None,
) -> dict[str, Any]:
    """Evaluate a detector, dense and pruned without data, on clean and on degraded test images.

    Args:
        config (str | os.PathLike): Config whose ``autodfp`` entry has our reconstructor.
        share (float): Of the backbone's parameters that is kept; in the last row, of the whole detector's FLOPs.
            Defaults to 0.5.
        cfg_options (dict | None): Overrides of the config, dotted keys to values. Defaults to none.
        known (dict | None): An earlier result, whose rows are not measured again. Defaults to None.
        report (Callable): Told the result so far and a line, after each figure. Defaults to saying nothing.

    Returns:
        dict[str, Any]: ``conditions``, see :data:`CONDITIONS`; ``left`` by model, the shares of the whole detector's
        parameters and FLOPs; ``rows`` by model and condition, the metric.

    Raises:
        AutoDFPError: ``known`` was measured with other settings, a share cannot be reached, or the test pipeline does
            not load images from files.
    """
    bench = Bench(config, cfg_options=cfg_options)
    loaders = {name: degraded(bench.cfg.test_dataloader, settings) for name, settings in CONDITIONS.items()}
    result = bench.take_up(known, share=share, conditions=CONDITIONS, reconstructor=bench.settings.reconstructor)
    if not known:
        result |= dict(left={}, rows={})
    candidates = candidates_of(build_task(bench, 'backbone', share))
    candidates[WHOLE] = candidates_of(build_task(bench, 'model', share))[OURS]
    models = {DENSE: bench.model}
    result['left'][DENSE] = dict(params=1.0, flops=1.0)
    for name in (UNIFORM, MERGING, OURS, WHOLE):
        pruned = prune_copy(*candidates[name])
        models[name], result['left'][name] = pruned.model, pruned.left
    for condition, loader in loaders.items():
        missing = [name for name in models if condition not in result['rows'].setdefault(name, {})]
        reward = bench.reward_on(loader) if missing else None
        for name in missing:
            metric = result['rows'][name][condition] = reward(models[name])
            report(result, f'{condition}, {name}: {metric:.4f}')
    return result


def degraded(dataloader: dict, settings: dict[str, Any]) -> dict:
    """A data loader's config whose images are degraded right after they are loaded; without settings, as it is."""
    dataloader = copy.deepcopy(dataloader)
    if not settings:
        return dataloader
    dataset = inner_dataset(dataloader['dataset'])
    pipeline = list(dataset.get('pipeline') or [])
    for place, step in enumerate(pipeline, 1):
        if type_name(step) == 'LoadImageFromFile':
            dataset['pipeline'] = [*pipeline[:place], dict(type='mmautodfp.Degrade', **settings), *pipeline[place:]]
            return dataloader
    raise AutoDFPError(
        'images were to be degraded after LoadImageFromFile, but the pipeline of test_dataloader.dataset has none'
    )
