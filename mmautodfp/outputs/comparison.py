"""The pruned model beside others: the dense one, and plans that need no search."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from mmautodfp.api import PruningTask, SearchResult
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, Reconstructor
from mmautodfp.rewards import Reward
from mmautodfp.search import share_out
from mmautodfp.surgery import PruningPlan, apply_plan

from .artifacts import Row


@dataclass(frozen=True)
class Candidate:
    """A plan and how its pruned channels' work is handed on.

    Attributes:
        name (str): As in the tables.
        plan (PruningPlan): What is kept.
        reconstructor (Reconstructor): The compensation.
    """

    name: str
    plan: PruningPlan
    reconstructor: Reconstructor


def compare(
    task: PruningTask,
    found: SearchResult,
    rewards: Sequence[Reward | None],
    compared: bool = True,
) -> list[Row]:
    """Measure a found plan beside others.

    Args:
        task (PruningTask): Its model is dense.
        found (SearchResult): Whose plan it is.
        rewards (Sequence[Reward | None]): The search's, and the held-out one if there is one.
        compared (bool): Whether there are others; if not, nothing is measured. Defaults to True.
    """
    if not compared:
        return [Row('AutoDFP', found.reward, None, task.summary(found.plan), found.plan.widths)]
    uniform = task.uniform_plan(rankings=task.l2_rankings), task.uniform_plan()
    candidates = choose_candidates(*uniform, task.allocated_plan(), found.plan, task.reconstructor)
    figures = measure(task.model, task.module, candidates, rewards)
    return [
        Row(candidate.name, *values, task.summary(candidate.plan), candidate.plan.widths)
        for candidate, values in zip(candidates, figures, strict=True)
    ]


def choose_candidates(
    published: PruningPlan,
    uniform: PruningPlan,
    allocated: PruningPlan | None,
    found: PruningPlan,
    reconstructor: Reconstructor,
) -> list[Candidate]:
    """Whom a found plan is compared with; itself the last.

    Args:
        published (PruningPlan): Uniform, of the channels with the largest l2 norms, as the baselines choose them.
        uniform (PruningPlan): Uniform, of the channels that the reconstructor would keep.
        allocated (PruningPlan | None): What the reconstructor would choose without a search, if it can tell.
        found (PruningPlan): The search's.
        reconstructor (Reconstructor): Its compensation.
    """
    candidates = [
        Candidate('dense', PruningPlan({}), PruneOnly()),
        Candidate('uniform, pruned only', published, PruneOnly()),
        Candidate('uniform, Neuron Merging', published, NeuronMerging()),
        Candidate('uniform, same compensation', uniform, reconstructor),
        Candidate('AutoDFP', found, reconstructor),
    ]
    if allocated is not None:
        candidates.insert(-1, Candidate('allocated, same compensation', allocated, reconstructor))
    return candidates


def measure(
    model: nn.Module, target: nn.Module, candidates: Sequence[Candidate], metrics: Sequence[Reward | None]
) -> list[list[float | None]]:
    """Evaluate candidates; the ranks of a distributed run share the work out.

    Args:
        model (nn.Module): The dense model.
        target (nn.Module): Its part that the plans prune.
        candidates (Sequence[Candidate]): N of them.
        metrics (Sequence[Reward | None]): M of them, prepared; None is not measured.

    Returns:
        list[list[float | None]]: [N, M].
    """
    return share_out([partial(_measure, model, target, candidate, metrics) for candidate in candidates])


def _measure(
    model: nn.Module, target: nn.Module, candidate: Candidate, metrics: Sequence[Reward | None]
) -> list[float | None]:
    # What a plan that stays gets on top can be dear: once for all metrics.
    with apply_plan(target, candidate.plan, candidate.reconstructor, final=True):
        return [None if metric is None else metric(model) for metric in metrics]
