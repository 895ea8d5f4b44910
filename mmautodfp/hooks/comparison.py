"""The pruned model beside others: the dense one, and plans that need no search."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from mmautodfp.rewards import Reward
from mmautodfp.search import share_out
from mmautodfp.surgery import NeuronMerging, PruneOnly, PruningPlan, Reconstructor, apply_plan

from .artifacts import Row

if TYPE_CHECKING:
    from .autodfp_hook import AutoDFPHook


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


def compare(hook: 'AutoDFPHook', plan: PruningPlan, reward: float) -> list[Row]:
    """Measure a found plan beside others, or only count what it keeps if the hook compares nothing.

    Args:
        hook (AutoDFPHook): Prepared; its model is dense.
        plan (PruningPlan): What the search found.
        reward (float): Of that plan in the search.
    """
    widths = lambda chosen: [chosen.widths.get(unit.name, unit.num_channels) for unit in hook.units]
    counts = lambda chosen: hook.costs.summary(widths(chosen))
    if not hook.compare:
        return [Row('AutoDFP', reward, None, counts(plan), plan.widths)]
    unseen = len(hook.held_out.images) if hook.held_out else 0
    hook.logger.info(f'comparing on the search images and on {unseen} that it has not seen')
    env = hook.env
    contestants = choose_contestants(
        env.uniform_plan(rankings=hook.l2_rankings), env.uniform_plan(), env.allocated_plan, plan, hook.reconstructor
    )
    figures = measure(hook.model, hook.target, contestants, [hook.reward, hook.held_out])
    return [
        Row(contestant.name, *values, counts(contestant.plan), contestant.plan.widths)
        for contestant, values in zip(contestants, figures, strict=True)
    ]


def choose_contestants(
    published: PruningPlan,
    uniform: PruningPlan,
    allocated: PruningPlan | None,
    found: PruningPlan,
    reconstructor: Reconstructor,
) -> list[Contestant]:
    """Whom a found plan is compared with; itself the last.

    Args:
        published (PruningPlan): Uniform, of the channels with the largest l2 norms, as the baselines choose them.
        uniform (PruningPlan): Uniform, of the channels that the reconstructor would keep.
        allocated (PruningPlan | None): What the reconstructor would choose without a search, if it can tell.
        found (PruningPlan): The search's.
        reconstructor (Reconstructor): Its compensation.
    """
    contestants = [
        Contestant('dense', PruningPlan({}), PruneOnly()),
        Contestant('uniform, pruned only', published, PruneOnly()),
        Contestant('uniform, Neuron Merging', published, NeuronMerging()),
        Contestant('uniform, same compensation', uniform, reconstructor),
        Contestant('AutoDFP', found, reconstructor),
    ]
    if allocated is not None:
        contestants.insert(-1, Contestant('allocated, same compensation', allocated, reconstructor))
    return contestants


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
