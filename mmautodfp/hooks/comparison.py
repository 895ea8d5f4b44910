"""The pruned model beside others: the dense one, and uniform plans with and without compensation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from mmautodfp.rewards import Reward
from mmautodfp.search import share_out
from mmautodfp.surgery import NeuronMerging, PruneOnly, PruningPlan, Reconstructor, apply_plan


@dataclass(frozen=True)
class Contestant:
    """A plan and how its pruned channels' work is handed on.

    Attributes:
        name (str): As in the tables.
        plan (PruningPlan): What is kept.
        reconstructor (Reconstructor): The compensation.
    """

    name: str
    plan: PruningPlan
    reconstructor: Reconstructor


def choose_contestants(
    published: PruningPlan, uniform: PruningPlan, found: PruningPlan, reconstructor: Reconstructor
) -> list[Contestant]:
    """Whom a found plan is compared with; itself the last.

    Args:
        published (PruningPlan): Uniform, of the channels with the largest l2 norms, as the baselines choose them.
        uniform (PruningPlan): Uniform, of the channels that the reconstructor would keep.
        found (PruningPlan): The search's.
        reconstructor (Reconstructor): Its compensation.
    """
    return [
        Contestant('dense', PruningPlan({}), PruneOnly()),
        Contestant('uniform, pruned only', published, PruneOnly()),
        Contestant('uniform, Neuron Merging', published, NeuronMerging()),
        Contestant('uniform, same compensation', uniform, reconstructor),
        Contestant('AutoDFP', found, reconstructor),
    ]


def measure(
    model: nn.Module, target: nn.Module, contestants: Sequence[Contestant], metrics: Sequence[Reward | None]
) -> list[list[float | None]]:
    """Evaluate contestants; the ranks of a distributed run share the work out.

    Args:
        model (nn.Module): The dense model.
        target (nn.Module): Its part that the plans prune.
        contestants (Sequence[Contestant]): N of them.
        metrics (Sequence[Reward | None]): M of them, prepared; None is not measured.

    Returns:
        list[list[float | None]]: [N, M].
    """
    return share_out([partial(_measure, model, target, contestant, metrics) for contestant in contestants])


def _measure(
    model: nn.Module, target: nn.Module, contestant: Contestant, metrics: Sequence[Reward | None]
) -> list[float | None]:
    # What a plan that stays gets on top can be dear: once for all metrics.
    with apply_plan(target, contestant.plan, contestant.reconstructor, finish=True):
        return [None if metric is None else metric(model) for metric in metrics]
