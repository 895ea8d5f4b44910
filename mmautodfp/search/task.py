"""What a search works on: a dense model, what of it can be pruned, what limits a plan."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from mmautodfp.costs import (
    Budget,
    Constraint,
    Constraints,
    LatencyBudget,
    ModelCosts,
    ParamBudget,
    measure_latency_costs,
    measure_positions,
    model_costs,
    round_widths,
)
from mmautodfp.graph import PrunableUnit, UnitSurvey, survey_units, unit_statistics
from mmautodfp.kernels import rank_channels
from mmautodfp.reconstruction import Reconstructor
from mmautodfp.surgery import PruningPlan, Restore, allocation_of, apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import BUDGETS, RECONSTRUCTORS, build
from mmautodfp.utils.settings import Count, checked

from .agent import AgentSpec
from .environment import PruningEnv, RatioRange
from .ranks import on_every_rank, on_main
from .state import Clustering, LayerState, layer_state, scale_states


@dataclass
class PruningTask:
    """A dense model, what of it can be pruned, and what limits a plan. :meth:`build` makes one.

    Attributes:
        model (nn.Module): The whole model, in eval mode.
        module (nn.Module): The part of it that is pruned.
        target (str): Its path in the model; '' for the model itself.
        groups (list[PrunableUnit]): What can be pruned, in forward order, L of them.
        left (list[str]): What stays, a line for each reason.
        costs (ModelCosts): Of any widths of the groups.
        constraint (Constraint): Bound to the costs.
        reconstructor (Reconstructor): Fitted to the module.
        ratios (RatioRange): Range of the groups' preserve ratios.
        rankings (list[Tensor]): [N] each, L of them: channels in the order in which they stay.
        l2_rankings (list[Tensor]): The same by their l2 norms, as the baselines keep them.
        allocation (list[int] | None): [L], widths that the reconstructor would choose; None if it cannot tell.
        clustering (dict): DBSCAN's settings for the agent's states.
        bias_threshold (float): t of Eq. 17.
    """

    model: nn.Module
    module: nn.Module
    target: str
    groups: list[PrunableUnit]
    left: list[str]
    costs: ModelCosts
    constraint: Constraint
    reconstructor: Reconstructor
    ratios: RatioRange
    rankings: list[Tensor] = field(default_factory=list)
    l2_rankings: list[Tensor] = field(default_factory=list)
    allocation: list[int] | None = None
    clustering: dict[str, Any] = field(default_factory=dict)
    bias_threshold: float = 0.5

    @classmethod
    @torch.no_grad()
    @checked('a pruning task')
    def build(
        cls,
        model: nn.Module,
        target: str = 'backbone',
        example_input: Any = None,
        constraint: Constraint | dict | Sequence[dict | Budget] | float | None = None,
        reconstructor: Reconstructor | dict | None = None,
        channel_divisor: Count = 1,
        p_min: float = 0.2,
        p_max: float = 1.0,
        allocate: bool = True,
        clustering: dict[str, Any] | None = None,
        bias_threshold: float = 0.5,
    ) -> 'PruningTask':
        """Look at a model. In a distributed run all ranks must call it; what fails on one ends it on all.

        Args:
            model (nn.Module): Trained; it is put into eval mode.
            target (str): Path of the part to prune; '' for all of it. Defaults to 'backbone'.
            example_input (Any): What the model is called with, to count FLOPs and to measure latency: a tuple of
                arguments, a dict of named ones, or a single one. Defaults to None: only parameters are counted.
            constraint (Constraint | dict | Sequence[dict | Budget] | float | None): The limit, or its config, or
                several, or the share of the target's parameters that stays. Defaults to None: 0.9.
            reconstructor (Reconstructor | dict | None): The compensation, or its config. Defaults to None:
                :class:`mmautodfp.reconstruction.SyntheticLeastSquares`, which needs no data.
            channel_divisor (int): Groups keep a multiple of it or all channels. Defaults to 1.
            p_min (float): Least share of channels that any group keeps. Defaults to 0.2.
            p_max (float): Largest. Defaults to 1.
            allocate (bool): Ask the reconstructor which widths it would choose. Defaults to True.
            clustering (dict | None): Settings of :class:`.Clustering`. Defaults to None: its own.
            bias_threshold (float): t of Eq. 17. Defaults to 0.5.

        Raises:
            AutoDFPError: There is no such part, nothing in it can be pruned, or the constraint cannot be met.
        """
        model.eval()
        limit, ratios = read_constraint(constraint), RatioRange(p_min, p_max)
        states = asdict(Clustering(**(clustering or {})))
        module, found = survey_target(model, target)
        if not isinstance(reconstructor, Reconstructor):
            reconstructor = build(RECONSTRUCTORS, reconstructor or dict(type='SyntheticLeastSquares'))
        costs = _count(model, module, found.units, example_input, limit, channel_divisor)
        dense = [group.num_channels for group in found.units]
        on_every_rank(lambda: limit.bind(costs, round_widths(p_min, dense, channel_divisor), channel_divisor))
        on_every_rank(lambda: reconstructor.ensure_fitted(module, model))
        task = cls(
            *(model, module, target, found.units, found.describe_left(), costs, limit, reconstructor, ratios),
            clustering=states,
            bias_threshold=bias_threshold,
        )
        # Sums on other devices may differ in their last digits, and the order of channels with them.
        task.rankings, task.l2_rankings, task.allocation = on_main(lambda: task._rank_and_allocate(allocate))
        return task

    def _rank_and_allocate(self, allocate: bool) -> tuple[list[Tensor], list[Tensor], list[int] | None]:
        l2 = [rank_channels(self.module.get_submodule(group.name).weight).cpu() for group in self.groups]
        own = [self.reconstructor.ranking(group) for group in self.groups]
        rankings = [norm if ranking is None else ranking.cpu() for ranking, norm in zip(own, l2, strict=True)]
        if not allocate:
            return rankings, l2, None
        widest = round_widths(self.ratios.high, self.dense_widths, self.constraint.channel_divisor)
        return rankings, l2, allocation_of(self.reconstructor, self.groups, rankings, self.constraint, widest)

    @property
    def dense_widths(self) -> list[int]:
        """[L]."""
        return [group.num_channels for group in self.groups]

    @cached_property
    def layer_states(self) -> list[LayerState]:
        """[L], what the agent sees of the groups (Eq. 17)."""
        statistics = [unit_statistics(self.module, group) for group in self.groups]
        return [
            layer_state(index, weight, bn, threshold=self.bias_threshold, **self.clustering)
            for index, (weight, bn) in enumerate(statistics)
        ]

    @cached_property
    def env(self) -> PruningEnv:
        """The task as an episode."""
        names, states = [group.name for group in self.groups], scale_states(self.layer_states)
        return PruningEnv(names, self.rankings, states, self.constraint, self.ratios, self.allocation)

    def plan(self, widths: Sequence[int], lam: float = 0.5, rankings: Sequence[Tensor] | None = None) -> PruningPlan:
        """The plan that keeps the first-ranked channels of each group.

        Args:
            widths (Sequence[int]): [L].
            lam (float): lambda of Eq. 16, for all groups. Defaults to 0.5.
            rankings (Sequence[Tensor] | None): [N] each. Defaults to None: :attr:`rankings`.
        """
        return PruningPlan.of([group.name for group in self.groups], rankings or self.rankings, widths, lam)

    def uniform_plan(self, lam: float = 0.5, rankings: Sequence[Tensor] | None = None) -> PruningPlan:
        """The plan with one ratio for all groups, the largest within the constraint; arguments as of :meth:`plan`."""
        ratio = self.constraint.uniform_ratio()
        return self.plan(round_widths(ratio, self.dense_widths, self.constraint.channel_divisor), lam, rankings)

    def allocated_plan(self) -> PruningPlan | None:
        """The plan that the reconstructor would choose without a search; None if it cannot tell."""
        return None if self.allocation is None else self.plan(self.allocation)

    def describe(self) -> str:
        """How much can be pruned, and a line for each reason why the rest cannot."""
        head = f'{len(self.groups)} prunable units in the {type(self.module).__name__} {self.target!r}; left alone:'
        return '\n'.join([head, *(f'  {line}' for line in self.left)])

    def apply(self, plan: PruningPlan, final: bool = False) -> Restore:
        """Prune the model in place; arguments and result as of :func:`mmautodfp.surgery.apply_plan`."""
        return apply_plan(self.module, plan, self.reconstructor, final, self.model)

    def evaluate(self, plan: PruningPlan, reward: Callable[[nn.Module], float], final: bool = False) -> float:
        """What a reward says of the model under a plan; the model is dense again afterwards."""
        with self.apply(plan, final):
            return reward(self.model)

    def summary(self, plan: PruningPlan) -> dict[str, dict]:
        """Counts and preserved shares of a plan, see :meth:`mmautodfp.costs.ModelCosts.summary`."""
        return self.costs.summary([plan.widths.get(group.name, group.num_channels) for group in self.groups])

    @property
    def identity(self) -> dict[str, Any]:
        """What a search and one that resumes it must share, as plain data."""
        return dict(
            target=self.target,
            groups={group.name: group.num_channels for group in self.groups},
            clustering=repr(sorted(self.clustering.items())),
            bias_threshold=self.bias_threshold,
            constraint=self.constraint.identity,
            channel_divisor=self.constraint.channel_divisor,
            ratios=[self.ratios.low, self.ratios.high],
            reconstructor=self.reconstructor.identity,
            allocate=self.allocation is not None,
            weights=digest_weights(self.model),
        )

    def agent_spec(self, seed: int = 0) -> AgentSpec:
        """The task as an agent sees it."""
        share = 0.5 if self.allocation else self.ratios.to_action(self.constraint.uniform_ratio())
        return AgentSpec(len(self.groups), uniform_action=(share, 0.5), seed=seed)


def _count(
    model: nn.Module,
    module: nn.Module,
    groups: list[PrunableUnit],
    example_input: Any,
    limit: Constraint,
    channel_divisor: int,
) -> ModelCosts:
    """What the limit is on, and FLOPs if there is an example; latency is measured on the first rank, for all alike."""
    if example_input is None:
        for budget in limit.budgets:
            if budget.metric != 'params':
                raise AutoDFPError(
                    f'a limit on the {budget.metric} was asked for, but without an example_input they cannot be told; '
                    'give one, or limit the parameters'
                )
        return replace(model_costs(model, module, groups, {}), flops={})
    run = partial(call_model, model, example_input)
    positions: dict[nn.Module, int] = {}
    on_every_rank(lambda: positions.update(measure_positions(model, run)))
    costs = model_costs(model, module, groups, positions)
    for budget in limit.budgets:
        if isinstance(budget, LatencyBudget):
            measure = partial(measure_latency_costs, model, module, groups, run, budget, channel_divisor)
            costs = replace(costs, latency=on_main(measure))
    return costs


def read_constraint(settings: Constraint | dict | Sequence[dict | Budget] | float | None) -> Constraint:
    """The limit that is described: by itself, a config, several that hold at once, or a share of the parameters."""
    if isinstance(settings, Constraint):
        return copy.deepcopy(settings)  # a task binds it to its own costs
    if isinstance(settings, Real) and not isinstance(settings, bool):
        return ParamBudget(float(settings))
    if isinstance(settings, list | tuple):
        return Constraints([copy.deepcopy(one) if isinstance(one, Budget) else build(BUDGETS, one) for one in settings])
    if settings is None or isinstance(settings, dict):
        settings = dict(type='ParamBudget') | (settings or {})
    return build(BUDGETS, settings)


def survey_target(model: nn.Module, target: str) -> tuple[nn.Module, UnitSurvey]:
    """The part of a model at a path, and what can be pruned in it.

    Raises:
        AutoDFPError: There is no such part, or nothing to prune in it.
    """
    module = find_module(model, target)
    found = survey_units(module)
    if not found.units:
        reasons = '; '.join(found.describe_left()) or 'no convolution and no linear layer'
        raise AutoDFPError(f'there is nothing to prune in the {type(module).__name__} {target!r}, which has {reasons}')
    return module, found


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The submodule at a path; an :class:`AutoDFPError` names what is there if it is not."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        children = ', '.join(name for name, _ in model.named_children())
        raise AutoDFPError(
            f'module {path!r} was to be pruned, but the {type(model).__name__} has no such part; it has {children}'
        ) from None


@torch.no_grad()
def call_model(model: nn.Module, example_input: Any) -> Any:
    """Call a model with an example: a tuple of arguments, a dict of named ones, or a single one."""
    if isinstance(example_input, Mapping):
        return model(**example_input)
    return model(*example_input) if isinstance(example_input, tuple) else model(example_input)


def digest_weights(model: nn.Module) -> str:
    """SHA-256 over the names and values of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
