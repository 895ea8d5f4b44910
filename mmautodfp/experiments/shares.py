"""Pruning of a detector to several shares without a search; ``tools/ablation.py --whole`` and table 5 run it."""

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mmautodfp.api import PruningTask
from mmautodfp.costs import Budget, FlopBudget, ParamBudget
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, Reconstructor, SimilarityReconstructor
from mmautodfp.search.survey import Survey, survey_target
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import RECONSTRUCTORS, build

from .bench import Bench, those_named

UNIFORM, MERGING = 'pruned only, uniform', 'Neuron Merging, uniform'
OURS, BACKBONE = 'ours, allocated', 'ours, backbone alone'
EPISODE = 'ours, allocated, as in an episode'
# Methods without a search, in the order of the tables; the last one is for whole models only.
UNSEARCHED = (UNIFORM, MERGING, 'Eq. 12 + 16, uniform', 'ours, uniform', EPISODE, OURS, BACKBONE)
WHOLE_SHARES = (0.7, 0.5, 0.35)
# A task, with its compensation, and a plan of it.
Candidate = tuple[PruningTask, PruningPlan]


def budget_of(target: str, share: float) -> Budget:
    """The limit for a share: of all FLOPs if the model is pruned as a whole, else of the target's parameters."""
    return FlopBudget(share, scope='model') if target == 'model' else ParamBudget(share)


def build_task(
    bench: Bench,
    target: str,
    share: float,
    reconstructor: Reconstructor | None = None,
    part: str | Survey | None = None,
) -> PruningTask:
    """Limit a bench's model to a share, with the config's settings.

    Args:
        bench (Bench): Of the dense model.
        target (str): What the share is of, see :func:`budget_of`.
        share (float): How much may be kept.
        reconstructor (Reconstructor | None): Defaults to None: a new one from the config.
        part (str | Survey | None): What is pruned. Defaults to None: the target.

    Raises:
        AutoDFPError: The share cannot be reached.
    """
    return bench.task(
        budget_of(target, share),
        reconstructor or dict(bench.settings.reconstructor),
        target=part or target,
        example_input=dict(bench.reward.one_batch(), mode='tensor'),
        p_min=bench.settings.p_min,
        allocate=True,
    )


def require_allocation(task: PruningTask) -> PruningPlan:
    """The plan that a task's reconstructor allocates.

    Raises:
        AutoDFPError: It allocates none.
    """
    plan = task.allocated_plan()
    if plan is None:
        raise AutoDFPError(
            f'an allocated plan was asked for, but {type(task.reconstructor).__name__} allocates none; set '
            'autodfp.reconstructor.type to SyntheticLeastSquares'
        )
    return plan


@dataclass(frozen=True)
class PrunedCopy:
    """A pruned copy of a model.

    Attributes:
        model (nn.Module): In eval mode.
        path (str): Of the part that was pruned, as of :class:`PruningTask`.
        layers (dict[str, dict]): The changed layers of that part, see :func:`mmautodfp.surgery.Slim`.
        left (dict[str, float]): 'params' and 'flops': shares of the whole model's.
    """

    model: nn.Module
    path: str
    layers: dict[str, dict]
    left: dict[str, float]


def prune_copy(task: PruningTask, plan: PruningPlan) -> PrunedCopy:
    """Prune a copy of a task's model, with the full pass."""
    with task.apply(plan, final=True) as pruned:
        model, layers = copy.deepcopy(task.model), pruned.changes(task.module)
    return PrunedCopy(model, task.path, layers, left_of(task, plan))


def candidates_of(task: PruningTask) -> dict[str, Candidate]:
    """Tasks and plans that need no search, by method; :data:`EPISODE` is to be measured without the full pass."""
    allocated, uniform = require_allocation(task), task.uniform_plan(rankings=task.l2_rankings)
    return {
        UNIFORM: (replace(task, reconstructor=PruneOnly()), uniform),
        MERGING: (replace(task, reconstructor=NeuronMerging()), uniform),
        'Eq. 12 + 16, uniform': (replace(task, reconstructor=SimilarityReconstructor()), uniform),
        'ours, uniform': (task, task.uniform_plan()),
        EPISODE: (task, allocated),
        OURS: (task, allocated),
    }


def left_of(task: PruningTask, plan: PruningPlan) -> dict[str, float]:
    """Shares of the whole model's parameters and FLOPs that a plan leaves."""
    counts = task.summary(plan)
    return {name: counts[f'model_{name}']['ratio'] for name in ('params', 'flops')}


def measure_shares(
    config: str | os.PathLike,
    target: str = 'model',
    shares: Sequence[float] = WHOLE_SHARES,
    checkpoint: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    report: Callable[[dict[str, Any], str], None] = lambda *_: None,
    only: str = '',
) -> dict[str, Any]:
    """Prune a detector without a search and evaluate it on all images of its test loader.

    Args:
        config (str | os.PathLike): Config whose ``autodfp`` entry has our reconstructor.
        target (str): 'model' or the part to prune. Defaults to 'model'.
        shares (Sequence[float]): See :func:`budget_of`. Defaults to 0.7, 0.5 and 0.35.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.
        known (dict | None): An earlier result, whose rows are not measured again. Defaults to None.
        report (Callable): Told the result so far and a line, after each row. Defaults to saying nothing.
        only (str): Regular expression that the names of methods must match. Defaults to '': all.

    Returns:
        dict[str, Any]: ``dense`` metric, ``seconds`` of an evaluation, ``rows`` by share and method: metric, and kept
        shares of the model's FLOPs and parameters. If the backbone alone cannot reach a share of the model, its row
        says so.

    Raises:
        AutoDFPError: ``known`` was measured with other settings, a share cannot be reached, the reconstructor
            allocates no plan, or no name matches.
    """
    wanted = those_named(dict.fromkeys(UNSEARCHED), only, 'means')
    bench = Bench(config, checkpoint, cfg_options=cfg_options)
    reward, reconstructor = bench.reward, bench.settings.reconstructor
    result = bench.take_up(known, target=target, reconstructor=reconstructor)
    if not known:
        start = time.perf_counter()
        result |= dict(dense=reward(bench.model), seconds=round(time.perf_counter() - start, 1), rows={})
    report(result, f'dense {result["dense"]:.4f}')
    # One reconstructor for all shares, so that it is fitted once.
    ours = build(RECONSTRUCTORS, dict(reconstructor))
    survey = survey_target(bench.model, target, residual_streams=bench.settings.residual_streams)

    for share in shares:
        candidates = candidates_of(build_task(bench, target, share, ours, survey))
        rows = result['rows'].setdefault(f'{share:g}', {})
        if target == 'model' and BACKBONE in wanted and BACKBONE not in rows:
            try:
                backbone = build_task(bench, target, share, part='backbone')
                candidates[BACKBONE] = backbone, require_allocation(backbone)
            except AutoDFPError as error:
                rows[BACKBONE] = dict(unreachable=str(error))
        for name, (task, plan) in candidates.items():
            if name in rows or name not in wanted:
                continue
            metric = task.evaluate(plan, reward, final=name != EPISODE)
            rows[name] = dict(metric=metric, **left_of(task, plan))
            report(result, f'{target} {share:g} {name}: {metric:.4f}')
    return result
