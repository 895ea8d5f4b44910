"""Several objectives at once: their values for a plan, their weights, and the plans that no other beats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmautodfp.costs import Constraint, Cost, ModelCosts
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import build_settings
from mmautodfp.utils.settings import NotNegative, Positive, settings
from mmautodfp.utils.timing import describe_machine


@settings('a set of objectives')
class Weights:
    """The weight of each objective; the outcome in one of weight 0 is recorded, but changes no reward.

    Attributes:
        metric (float): Weight of the metric, as a share of the dense model's. Above 0.
        params (float | None): Weight of the parameters that are saved, as a share of the dense count. Defaults to None:
            it is no objective.
        flops (float | None): Likewise of the FLOPs.
        latency (float | None): Likewise of the latency.
        memory (float | None): Likewise of the memory.

    Raises:
        AutoDFPError: One is unknown or out of its range.
    """

    metric: Positive
    params: NotNegative | None = None
    flops: NotNegative | None = None
    latency: NotNegative | None = None
    memory: NotNegative | None = None


def read_weights(objectives: Mapping[str, float]) -> dict[str, float]:
    """The fields of :class:`Weights` that are given, the metric's first, divided by their sum.

    Raises:
        AutoDFPError: One is unknown or out of its range, or no cost is named.
    """
    weights = asdict(build_settings(Weights, objectives, 'a set of objectives'))
    named = {name: weight for name, weight in weights.items() if weight is not None}
    if len(named) == 1:
        raise AutoDFPError(
            f'objectives were asked for, but only the metric is named; name a cost beside it '
            f'({", ".join([*weights][1:])}), or leave the objectives out'
        )
    return {name: weight / sum(named.values()) for name, weight in named.items()}


def require_no_race(racing: Any, objectives: Mapping[str, float] | None) -> None:
    """Raise an :class:`AutoDFPError` if a race is asked for together with objectives."""
    if racing and objectives is not None:
        raise AutoDFPError(
            f'racing={racing!r} was asked for together with objectives, but it gives up plans that their Pareto '
            'set may need; leave one of the two out'
        )


@dataclass(frozen=True)
class Objectives:
    """M objectives: each gives a plan a number of about [0, 1], the higher the better.

    Attributes:
        weights (dict[str, float]): Name to weight, the metric's first; they sum to 1. The preference that is asked for.
        costs (list[Cost]): [M - 1], the costs that the other objectives save.
        dense_metric (float): Reward of the dense model, above 0.

    Raises:
        AutoDFPError: It is not above 0.
    """

    weights: dict[str, float]
    costs: list[Cost]
    dense_metric: float

    @classmethod
    def build(
        cls,
        objectives: Mapping[str, float],
        costs: ModelCosts,
        constraint: Constraint,
        dense_metric: Callable[[], float],
    ) -> 'Objectives':
        """Read settings for a model.

        Args:
            objectives (Mapping[str, float]): Fields of :class:`Weights`.
            costs (ModelCosts): Its costs.
            constraint (Constraint): Its limits. An objective is about what a limit on the same cost is about, and
                about the whole model if there is none.
            dense_metric (Callable): Measures the dense model's metric.

        Raises:
            AutoDFPError: A setting is wrong, a cost was not measured, or the dense model's metric is not above 0.
        """
        weights = read_weights(objectives)
        scopes = {budget.metric: budget.scope for budget in reversed(constraint.budgets)}
        found = []
        for name in [*weights][1:]:
            found.append(getattr(costs, name).get(scopes.get(name, 'model')))
            if found[-1] is None:
                raise AutoDFPError(
                    f'an objective on the {name} was asked for, but the task does not know it; give PruningTask.build '
                    f'an example_input and also_measure=[{name!r}]'
                )
        return cls(weights, found, dense_metric())

    def __post_init__(self):
        if self.dense_metric <= 0:
            raise AutoDFPError(
                f'objectives were asked for, but the dense model is rewarded with {self.dense_metric:g}, of which '
                'there is no share; choose a reward that is above 0 for it'
            )

    def outcome(self, metric: float, widths: Sequence[int]) -> list[float]:
        """[M], a plan in each objective: the share of the dense metric that is kept, the share of each cost saved."""
        return [metric / self.dense_metric, *(1 - cost.ratio(widths) for cost in self.costs)]

    def utility(self, outcome: Sequence[float]) -> float:
        """The weighted sum of an outcome [M]."""
        return sum(weight * value for weight, value in zip(self.weights.values(), outcome, strict=True))

    @property
    def identity(self) -> list[str]:
        """What a search and its resume must have in common. Not the weights: they may change."""
        machine = describe_machine() if 'latency' in self.weights else {}
        return [*self.weights, *(machine[name] for name in ('processor', 'gpu') if name in machine)]

    def describe(self) -> dict[str, Any]:
        """The objectives as plain data."""
        return dict(weights=self.weights, dense_metric=self.dense_metric)


def draw_preferences(asked: Sequence[float], count: int, share: float, generator: torch.Generator) -> Tensor:
    """Preferences to learn from, some drawn at random.

    Args:
        asked (Sequence[float]): [M], the preference that is asked for.
        count (int): How many to give.
        share (float): Chance in [0, 1] that one is drawn evenly from all possible ones (Dirichlet); else it is
            ``asked``.
        generator (torch.Generator): Source of the choice.

    Returns:
        Tensor: [count, M], each of them 0 or more and of sum 1.
    """
    drawn = torch.empty(count, len(asked)).exponential_(generator=generator)
    drawn /= drawn.sum(1, keepdim=True)
    is_drawn = torch.rand(count, 1, generator=generator) < share
    return torch.where(is_drawn, drawn, torch.tensor(asked))


def pareto_set(outcomes: Sequence[Sequence[float]]) -> list[int]:
    """Which of the outcomes [E, M] no other beats, which is to be as good in all objectives and better in one.

    Returns:
        list[int]: Ascending; of equal outcomes only the first.
    """
    table, kept = np.asarray(outcomes, float), []
    for index, outcome in enumerate(table):
        as_good, equal = (table >= outcome).all(1), (table == outcome).all(1)
        if not (as_good & ~equal).any() and equal.argmax() == index:
            kept.append(index)
    return kept
