"""A detector pruned to several shares without a search; ``tools/ablation.py --whole`` and table 5 run it."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from mmautodfp.api import PruningTask
from mmautodfp.costs import Budget, FlopBudget, ParamBudget
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, Reconstructor, SimilarityReconstructor
from mmautodfp.search.survey import Survey, survey_target
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import portable, require_same
from mmautodfp.utils.registry import RECONSTRUCTORS, build
from mmautodfp.utils.timing import describe_machine

from .ablation import Bench

OURS, BACKBONE = 'ours, allocated', 'ours, backbone alone'
WHOLE_SHARES = (0.7, 0.5, 0.35)


def budget_of(target: str, share: float) -> Budget:
    """The limit that a share means: of all FLOPs for a model as a whole, else of the target's parameters."""
    return FlopBudget(share, scope='model') if target == 'model' else ParamBudget(share)


def measure_shares(
    config: str | os.PathLike,
    target: str = 'model',
    shares: Sequence[float] = WHOLE_SHARES,
    checkpoint: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    report: Callable[[dict[str, Any], str], None] = lambda *_: None,
) -> dict[str, Any]:
    """Prune a detector without a search, and evaluate it on all images of its test loader.

    Args:
        config (str | os.PathLike): Config whose ``autodfp`` entry has our reconstructor.
        target (str): 'model', or the part to prune. Defaults to 'model'.
        shares (Sequence[float]): See :func:`budget_of`. Defaults to 0.7, 0.5 and 0.35.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.
        known (dict | None): An earlier result, whose rows are not measured again. Defaults to None.
        report (Callable): Told the result so far and a line, after each row. Defaults to saying nothing.

    Returns:
        dict[str, Any]: ``dense`` metric, ``seconds`` that an evaluation takes, ``rows`` by share and means: metric, and
        shares of the model's FLOPs and parameters that are left. Where the backbone alone cannot reach a share of a
        model, its row tells the least that it can.

    Raises:
        AutoDFPError: ``known`` was measured with other settings, or a share cannot be reached.
    """
    bench = Bench(config, checkpoint, cfg_options=cfg_options)
    settings, reward = bench.settings, bench.reward
    asked = dict(
        config=str(config),
        target=target,
        checkpoint=bench.checkpoint,
        metric=reward.name,
        images=len(reward.images),
        reconstructor=portable(settings.reconstructor),
    )
    if known:
        require_same(known, asked, 'the earlier result')
    result = dict(known or asked, machine=describe_machine())
    if not known:
        start = time.perf_counter()
        result |= dict(dense=reward(bench.model), seconds=round(time.perf_counter() - start, 1), rows={})
    report(result, f'dense {result["dense"]:.4f}')
    example = dict(reward.one_batch(), mode='tensor')
    ours = build(RECONSTRUCTORS, dict(settings.reconstructor))
    survey = survey_target(bench.model, target)

    def task_of(part: str | Survey, reconstructor: Reconstructor | dict, share: float) -> PruningTask:
        limit = budget_of(target, share)
        return PruningTask.build(bench.model, part, example, limit, reconstructor, p_min=settings.p_min)

    for share in shares:
        task = task_of(survey, ours, share)
        uniform, published = task.uniform_plan(), task.uniform_plan(rankings=task.l2_rankings)
        plans = {
            'pruned only, uniform': (task, PruneOnly(), published, True),
            'Neuron Merging, uniform': (task, NeuronMerging(), published, True),
            'Eq. 12 + 16, uniform': (task, SimilarityReconstructor(), published, True),
            'ours, uniform': (task, ours, uniform, True),
            'ours, allocated, as in an episode': (task, ours, task.allocated_plan(), False),
            OURS: (task, ours, task.allocated_plan(), True),
        }
        rows = result['rows'].setdefault(f'{share:g}', {})
        if target == 'model' and BACKBONE not in rows:
            try:
                backbone = task_of('backbone', dict(settings.reconstructor), share)
                plans[BACKBONE] = (backbone, backbone.reconstructor, backbone.allocated_plan(), True)
            except AutoDFPError as error:
                rows[BACKBONE] = dict(unreachable=str(error))
        for name, (one, reconstructor, plan, final) in plans.items():
            if name in rows:
                continue
            one.reconstructor = reconstructor
            with one.apply(plan, final):
                metric = reward(bench.model)
            counts = one.summary(plan)
            rows[name] = dict(
                metric=metric, flops=counts['model_flops']['ratio'], params=counts['model_params']['ratio']
            )
            report(result, f'{target} {share:g} {name}: {metric:.4f}')
    return result
