"""The pruned model in comparison with others: the dense one, and plans that need no search."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mmautodfp.api import PruningTask, SearchResult
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, Reconstructor
from mmautodfp.rewards import Reward
from mmautodfp.search import share_out
from mmautodfp.surgery import PruningPlan, Restore, apply_plan

from .artifacts import Row


@dataclass(frozen=True)
class Candidate:
    """A plan and its compensation, to be compared.

    Attributes:
        name (str): As in the tables.
        plan (PruningPlan): What is kept.
        reconstructor (Reconstructor): The compensation.
        applied (Restore | None): Of the plan, if it was applied and undone with :meth:`Restore.swap`, which saves
            another full pass. Defaults to None: it was not.
    """

    name: str
    plan: PruningPlan
    reconstructor: Reconstructor
    applied: Restore | None = None


def compare(
    task: PruningTask,
    found: SearchResult,
    rewards: Sequence[Reward | None],
    compared: bool = True,
    applied: Restore | None = None,
) -> list[Row]:
    """Measure the plan that was found, the dense model, and plans that need no search.

    A distillation is done to the found plan alone, which is then also measured without it. The ranks of a distributed
    run share the work.

    Args:
        task (PruningTask): Its model is dense.
        found (SearchResult): With the plan.
        rewards (Sequence[Reward | None]): The search's, and the held-out one or None.
        compared (bool): False for a row of the found plan alone, with nothing measured. Defaults to True.
        applied (Restore | None): Of the found plan, see :class:`Candidate`. Defaults to None.
    """
    if not compared:
        return [_row(task, 'AutoDFP', found.plan, [found.metric, None])]
    # The baselines keep the channels with the largest l2 norms.
    published = task.uniform_plan(rankings=task.l2_rankings)
    plans = {'uniform, same compensation': task.uniform_plan()}
    if (allocated := task.allocated_plan()) is not None:
        plans['allocated, same compensation'] = allocated
    same = task.reconstructor.undistilled
    distilled = same is not task.reconstructor
    if distilled and found.plan not in plans.values():
        plans['AutoDFP, before distillation'] = found.plan
    candidates = [
        Candidate('dense', PruningPlan({}), PruneOnly()),
        Candidate('uniform, pruned only', published, PruneOnly()),
        Candidate('uniform, Neuron Merging', published, NeuronMerging()),
    ]
    for name, plan in plans.items():
        candidates.append(Candidate(name, plan, same, applied if plan == found.plan and not distilled else None))
    candidates.append(Candidate('AutoDFP', found.plan, task.reconstructor, applied))
    figures = share_out([partial(_measure, task, candidate, rewards) for candidate in candidates])
    return [_row(task, one.name, one.plan, values) for one, values in zip(candidates, figures, strict=True)]


def _row(task: PruningTask, name: str, plan: PruningPlan, values: Sequence[float | None]) -> Row:
    with apply_plan(task.module, plan, groups=task.groups) as restore:
        layers = restore.changes(task.module)
    return Row(name, *values, task.summary(plan), plan.widths, layers)


def _measure(task: PruningTask, candidate: Candidate, rewards: Sequence[Reward | None]) -> list[float | None]:
    measure = lambda: [None if reward is None else reward(task.model) for reward in rewards]
    if candidate.applied is None:
        with apply_plan(task.module, candidate.plan, candidate.reconstructor, True, task.model, task.groups):
            return measure()
    candidate.applied.swap()
    try:
        return measure()
    finally:
        candidate.applied.swap()
