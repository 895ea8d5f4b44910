"""What each part of the compensation is worth, on plans that need no search; ``tools/ablation.py`` runs it."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmautodfp.costs import round_widths
from mmautodfp.reconstruction import Reconstructor
from mmautodfp.utils.registry import RECONSTRUCTORS, build
from mmautodfp.utils.settings import ShareAboveZero, checked

from .bench import Bench, those_named


@dataclass(frozen=True)
class Variant:
    """A compensation and a kind of plan.

    Attributes:
        reconstructor (dict): Config of the reconstructor.
        final (bool): Whether the full pass is run. Defaults to False.
        allocated (bool): Whether the reconstructor allocates the plan, with at most as many parameters as the uniform
            one. Defaults to False: the uniform plan.
    """

    reconstructor: dict
    final: bool = False
    allocated: bool = False


def _ours(final: bool = True, allocated: bool = False, **settings: Any) -> Variant:
    return Variant(dict(type='SyntheticLeastSquares', **settings), final, allocated)


#: In the order of the tables.
VARIANTS: dict[str, Variant] = {
    'prune only': Variant(dict(type='PruneOnly')),
    'Neuron Merging': Variant(dict(type='NeuronMerging')),
    'Eq. 12 + 16': Variant(dict(type='SimilarityReconstructor')),
    'episode': _ours(final=False),
    'episode, l2 ranking': _ours(final=False, ranking='l2'),
    'episode, norms not re-matched': _ours(final=False, rematch=False),
    'episode, norms not recalibrated': _ours(final=False, recalibration=0),
    'episode, ridge 1e-4': _ours(final=False, ridge=1e-4),
    'episode, ridge 1e-1': _ours(final=False, ridge=1e-1),
    'episode, allocated plan': _ours(final=False, allocated=True),
    'full': _ours(),
    'full, allocated plan': _ours(allocated=True),
    'full, allocated plan, distilled': _ours(allocated=True, distillation=dict(batch_size=64)),
    'full, allocated by shares of variance': _ours(allocated=True, sensitivity=0),
    'full, l2 ranking': _ours(ranking='l2'),
    'full, norms not re-matched': _ours(refinement=dict(rematch=False)),
    'full, channels only': _ours(refinement=dict(patches=False)),
    'full, shortcut left alone': _ours(refinement=dict(shortcut=0.0)),
    'full, shortcut made good': _ours(refinement=dict(shortcut=1.0)),
    'full, half of the shortcut': _ours(refinement=dict(shortcut=0.5)),
    'full, recipe of the design': _ours(ranking='l2', refinement=dict(patches=False, shortcut=0.0)),
    'full, 16 images': _ours(images=dict(num_images=16)),
    'full, 256 images': _ours(images=dict(num_images=256)),
    'full, white noise': _ours(images=dict(kind='noise')),
    'full, ridge 1e-3': _ours(ridge=1e-3, refinement=dict(ridge=1e-3)),
    'full, ridge 1e-1': _ours(ridge=1e-1, refinement=dict(ridge=1e-1)),
    'full, patch ridge 1e-2': _ours(refinement=dict(patch_ridge=1e-2)),
    'full, patch ridge 1': _ours(refinement=dict(patch_ridge=1.0)),
    'full, 4 groups a pass': _ours(refinement=dict(groups_per_pass=4)),
}


@checked('an ablation')
def ablate(
    config: str | os.PathLike,
    ratios: Sequence[ShareAboveZero],
    checkpoint: str | None = None,
    of_channels: bool = False,
    images: Mapping[str, Any] | None = None,
    cfg_options: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    report: Callable[[dict[str, Any], str], None] = lambda *_: None,
    only: str = '',
) -> dict[str, Any]:
    """Measure variants of the compensation on uniform and on allocated plans.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        ratios (Sequence[float]): Shares that are kept, in (0, 1].
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        of_channels (bool): Whether the shares are of each group's channels. Defaults to False: of the module's
            parameters.
        images (Mapping | None): Settings of the synthetic images, which a variant may override. Defaults to None: the
            reconstructor's.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.
        known (dict | None): An earlier result with the same settings; what it holds is not measured again.
        report (Callable): Told the result so far and a line, after each figure. Defaults to saying nothing.
        only (str): Regular expression that the names of variants must match. Defaults to '': all of :data:`VARIANTS`.

    Returns:
        dict[str, Any]: Metric and seconds by variant and share; the dense metric; what the shares are of; the machine.

    Raises:
        AutoDFPError: A share is out of range or cannot be reached, no name matches, or ``known`` was measured with
            other settings.
    """
    variants = those_named(VARIANTS, only, 'variants')
    bench = Bench(config, checkpoint, cfg_options)
    images = dict(images or {})
    dense = bench.task()
    shares_of = 'channels' if of_channels else 'module parameters'
    result = bench.take_up(known, synthetic_images=images, shares_of=shares_of)
    if not known:
        result |= dict(dense=bench.reward(bench.model), variants={})
    report(result, f'dense {result["dense"]:.4f}')
    for name, variant in variants.items():
        rows = result['variants'].setdefault(name, {})
        in_order = dict.fromkeys(VARIANTS) | result['variants']
        result['variants'] = {one: figures for one, figures in in_order.items() if figures is not None}
        missing = [ratio for ratio in ratios if f'{ratio:g}' not in rows]
        if not missing:
            continue
        start = time.perf_counter()
        reconstructor = _build(variant.reconstructor, images)
        reconstructor.ensure_fitted(dense.module, bench.model, dense.groups)
        fit = round(time.perf_counter() - start, 3)
        task = bench.task(1.0, reconstructor)
        for ratio in missing:
            if of_channels:
                widths = round_widths(ratio, dense.dense_widths, dense.constraint.divisors)
            else:
                widths = bench.uniform_widths(ratio)
            if variant.allocated:
                share = task.costs.params['module'].ratio(widths)
                widths = bench.task(share, reconstructor, p_min=bench.settings.p_min, allocate=True).allocation
            start = time.perf_counter()
            with task.apply(task.plan(widths), variant.final):
                seconds = round(time.perf_counter() - start, 3)
                row = dict(metric=bench.reward(bench.model), seconds=seconds, fit_seconds=fit)
            rows[f'{ratio:g}'] = row | dict(params=task.costs.params['module'].ratio(widths))
            report(result, f'{ratio:g} {name}: {row["metric"]:.4f}')
    return result


def _build(config: dict, images: dict) -> Reconstructor:
    """A variant's reconstructor; its own settings of the images override the common ones."""
    if config['type'] == 'SyntheticLeastSquares':
        config = config | dict(images=images | config.get('images', {}))
    return build(RECONSTRUCTORS, config)
