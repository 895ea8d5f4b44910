"""What each part of the compensation is worth, on plans that need no search; ``tools/ablation.py`` runs it."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmautodfp.api import PruningTask
from mmautodfp.costs import round_widths
from mmautodfp.hooks import read_settings
from mmautodfp.reconstruction import Reconstructor
from mmautodfp.rewards import Reward
from mmautodfp.utils.fileio import portable
from mmautodfp.utils.registry import RECONSTRUCTORS, REWARDS, build

from .bench import load_runner, take_up


@dataclass(frozen=True)
class Variant:
    """A way of handing on the pruned channels' work, and of choosing how many there are.

    Attributes:
        reconstructor (dict): Config of the reconstructor.
        final (bool): Whether the plan is finished as one that stays. Defaults to False.
        allocated (bool): Whether the plan is the one that the reconstructor allocates, with as many parameters as the
            uniform one has at most. Defaults to False: the uniform plan.
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
    'full, allocated plan, error power 1.5': _ours(allocated=True, error_power=1.5),
    'full, allocated by outputs': _ours(allocated=True, sensitivity=64),
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
    'full, 4 units a pass': _ours(refinement=dict(units_per_pass=4)),
}


class Bench:
    """A dense model with its metric on all images of the test data loader.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        images (Mapping | None): Settings of the synthetic images. Defaults to None: the reconstructor's own.
        refinement (Mapping | None): Settings of the full pass. Defaults to None: its own.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.

    Attributes:
        cfg (Config): The config, with the overrides.
    """

    def __init__(
        self,
        config: str | os.PathLike,
        checkpoint: str | None = None,
        images: Mapping[str, Any] | None = None,
        refinement: Mapping[str, Any] | None = None,
        cfg_options: dict[str, Any] | None = None,
    ):
        with tempfile.TemporaryDirectory() as scratch:
            runner = load_runner(config, scratch, checkpoint, cfg_options)
        self.cfg = runner.cfg
        self.checkpoint = Path(self.cfg.load_from).name
        self.settings = read_settings(self.cfg.autodfp.to_dict())
        self.images, self.refinement = dict(images or {}), dict(refinement or {})
        self.model = runner.model
        self.dense = self.task(dict(type='PruneOnly'))
        self.reward = self.reward_on(self.cfg.test_dataloader)

    def reward_on(self, dataloader: dict) -> Reward:
        """The metric on all images of a data loader."""
        reward = build(REWARDS, to_report(self.settings.reward))
        reward.prepare(self.model, dataloader)
        return reward

    def task(self, reconstructor: Reconstructor | dict, ratio: float = 1.0, allocate: bool = False) -> PruningTask:
        """The model with a compensation, limited to a share of the target's parameters."""
        told = self.settings
        p_min = told.p_min if allocate else 0.01
        return PruningTask.build(self.model, told.target, None, ratio, reconstructor, p_min=p_min, allocate=allocate)

    def reconstructor(self, config: dict) -> Reconstructor:
        """Build a reconstructor and fit it to the dense module."""
        if config['type'] == 'SyntheticLeastSquares':
            own = {key: config.get(key, {}) for key in ('images', 'refinement')}
            config = config | dict(images=self.images | own['images'], refinement=self.refinement | own['refinement'])
        reconstructor = build(RECONSTRUCTORS, config)
        reconstructor.ensure_fitted(self.dense.module, self.model)
        return reconstructor

    def widths(self, ratio: float, of_channels: bool) -> list[int]:
        """Uniform widths [L] that keep a share of the module's parameters, or of each unit's channels."""
        if of_channels:
            return round_widths(ratio, self.dense.dense_widths)
        return list(self.task(dict(type='PruneOnly'), ratio).uniform_plan().widths.values())

    def score(self, task: PruningTask, widths: Sequence[int], final: bool) -> dict[str, float]:
        """The metric of the model pruned to widths [L], and the seconds that pruning took."""
        plan = task.plan(widths)
        start = time.perf_counter()
        with task.apply(plan, final):
            seconds = time.perf_counter() - start
            return dict(metric=self.reward(self.model), seconds=round(seconds, 3))


def to_report(reward: dict) -> dict:
    """Config of what reports, on all images and in float32, where another rewards a search."""
    settings = reward | dict(num_images=None) | ({'precision': 'float32'} if 'precision' in reward else {})
    built = build(REWARDS, settings)
    return settings if built.name == built.reported_name else settings | dict(metric=built.reported_name)


def ablate(
    config: str | os.PathLike,
    ratios: Sequence[float],
    variants: Mapping[str, Variant] = VARIANTS,
    checkpoint: str | None = None,
    of_channels: bool = False,
    images: Mapping[str, Any] | None = None,
    refinement: Mapping[str, Any] | None = None,
    cfg_options: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure variants of the compensation on uniform plans, and on those that they allocate.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        ratios (Sequence[float]): Shares that stay.
        variants (Mapping[str, Variant]): By name. Defaults to :data:`VARIANTS`.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        of_channels (bool): Whether the shares are of each unit's channels; otherwise of the module's parameters.
            Defaults to False.
        images (Mapping | None): Settings of the synthetic images, of which a variant overrides its own. Defaults to
            None: the reconstructor's.
        refinement (Mapping | None): Likewise, settings of the full pass.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.
        known (dict | None): An earlier result with the same settings; what it holds is not measured again.
        report (Callable | None): Told the result so far whenever it grows.

    Returns:
        dict[str, Any]: Metric and seconds by variant and share; the dense metric; what the shares are of; the machine.

    Raises:
        AutoDFPError: The request cannot be met, or ``known`` was measured with other settings.
    """
    bench = Bench(config, checkpoint, images, refinement, cfg_options)
    settings = dict(
        config=Path(config).as_posix(),
        checkpoint=bench.checkpoint,
        cfg_options=portable(cfg_options),
        metric=bench.reward.name,
        images=len(bench.reward.images),
        synthetic_images=bench.images,
        refinement=bench.refinement,
        shares_of='channels' if of_channels else 'module parameters',
    )
    older = dict(checkpoint=bench.checkpoint, cfg_options={})  # which older results do not name
    result = take_up(known and older | known, settings)
    if not known:
        result |= dict(dense=bench.reward(bench.model), variants={})
    for name, variant in variants.items():
        rows = result['variants'].setdefault(name, {})
        result['variants'] = {name: result['variants'][name] for name in sorted(result['variants'], key=_place)}
        missing = [ratio for ratio in ratios if f'{ratio:g}' not in rows]
        if not missing:
            continue
        start = time.perf_counter()
        reconstructor = bench.reconstructor(variant.reconstructor)
        fit = round(time.perf_counter() - start, 3)
        task = bench.task(reconstructor)
        for ratio in missing:
            widths = bench.widths(ratio, of_channels)
            if variant.allocated:  # within the parameters of the uniform ones
                widths = bench.task(reconstructor, task.costs.params['module'].ratio(widths), allocate=True).allocation
            score = bench.score(task, widths, variant.final)
            rows[f'{ratio:g}'] = score | dict(fit_seconds=fit, params=task.costs.params['module'].ratio(widths))
            report(result)
    return result


def _place(variant: str) -> int:
    """Where a variant stands in the tables; those of the caller's own come last."""
    names = list(VARIANTS)
    return names.index(variant) if variant in names else len(names)
