"""What a search works on: a dense model, its channel groups, the limits of a plan."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmautodfp.costs import Budget, Constraint, ModelCosts, divisors_of, read_constraint, round_widths
from mmautodfp.graph import ChannelGroup, group_statistics, outputs_first
from mmautodfp.kernels import rank_channels
from mmautodfp.reconstruction import Reconstructor
from mmautodfp.surgery import PruningPlan, Restore, allocate_widths, allocation_path, apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import RECONSTRUCTORS, build
from mmautodfp.utils.settings import Count, NotNegative, TwoOrMore, checked

from .agent import AgentSpec
from .counting import count_costs
from .environment import PruningEnv, RatioRange
from .ranks import on_every_rank, on_main
from .state import Clustering, LayerState, layer_state, scale_states
from .survey import Survey, survey_target
from .undisturbed import undisturbed


@dataclass
class PruningTask:
    """A dense model, its channel groups, and the limits of a plan. :meth:`build` makes one.

    Attributes:
        model (nn.Module): The whole model, in eval mode.
        module (nn.Module): The part of it that is pruned.
        target (str): What was asked for; the parts of a list joined with commas.
        path (str): Path of the module in the model; '' for the model itself.
        groups (list[ChannelGroup]): What can be pruned, in forward order, L of them.
        left (list[str]): What cannot be pruned, a line for each reason.
        costs (ModelCosts): Of any widths of the groups.
        constraint (Constraint): Bound to the costs.
        reconstructor (Reconstructor): Fitted to the module.
        ratios (RatioRange): Range of the groups' preserve ratios.
        rankings (list[Tensor]): [N] each, L of them: channels in the order in which they stay.
        l2_rankings (list[Tensor]): The same by their l2 norms, as the baselines keep them.
        allocation (list[int] | None): [L], the reconstructor's own choice of widths; None if it has none.
        clustering (Clustering): DBSCAN's settings for the agent's states.
        bias_threshold (float): t of Eq. 17.
        example_input (Any): What the model is called with, to measure it; None if there is no example.
    """

    model: nn.Module
    module: nn.Module
    target: str
    path: str
    groups: list[ChannelGroup]
    left: list[str]
    costs: ModelCosts
    constraint: Constraint
    reconstructor: Reconstructor
    ratios: RatioRange
    rankings: list[Tensor] = field(default_factory=list)
    l2_rankings: list[Tensor] = field(default_factory=list)
    allocation: list[int] | None = None
    clustering: Clustering = field(default_factory=Clustering)
    bias_threshold: float = 0.5
    example_input: Any = None

    @classmethod
    @torch.inference_mode(False)
    @torch.no_grad()
    @checked('a pruning task')
    def build(
        cls,
        model: nn.Module,
        target: str | Sequence[str] | Survey = 'backbone',
        example_input: Any = None,
        constraint: Constraint | Budget | dict | Sequence[Budget | dict] | float | str | None = None,
        reconstructor: Reconstructor | dict | None = None,
        channel_divisor: Count = 1,
        p_min: float = 0.2,
        p_max: float = 1.0,
        allocate: bool = True,
        clustering: dict[str, Any] | None = None,
        bias_threshold: NotNegative = 0.5,
        residual_streams: bool | None = None,
        also_measure: Sequence[Literal['params', 'flops', 'latency', 'memory']] = (),
    ) -> 'PruningTask':
        """Build a task. In a distributed run all ranks must call it; if it fails on one, all of them end.

        Args:
            model (nn.Module): Trained; it is put into eval mode.
            target (str | Sequence[str] | Survey): What to prune: the path of a part, whose outputs keep their shapes;
                'model' for all of a detector but its predictors; a list of parts, between which groups are pruned too;
                '' for all of a model whose blocks are known; or what :func:`.survey_target` found. Defaults to
                'backbone'.
            example_input (Any): What the model is called with, to count FLOPs and memory and to measure latency: a
                tuple of arguments, a dict of named ones, or a single one. Defaults to None: only parameters are
                counted.
            constraint (Constraint | Budget | dict | Sequence[Budget | dict] | float | str | None): The limit, or its
                config, or several, or the share of the target's parameters that stays, as a number or such as '60%'.
                Defaults to None: 0.9.
            reconstructor (Reconstructor | dict | None): The compensation, or its config. Defaults to None:
                :class:`mmautodfp.reconstruction.SyntheticLeastSquares`, which needs no data.
            channel_divisor (int): Groups keep a multiple of it or all channels. Defaults to 1.
            p_min (float): Least share of channels that any group keeps. Defaults to 0.2.
            p_max (float): Largest share. Defaults to 1.
            allocate (bool): Ask the reconstructor for its own choice of widths. Defaults to True.
            clustering (dict | None): Settings of :class:`.Clustering`. Defaults to None: its own.
            bias_threshold (float): t of Eq. 17, 0 or more. Defaults to 0.5.
            residual_streams (bool | None): Also prune what blocks add up, where all its readers are in the target.
                Defaults to None: if the target is 'model' or a list.
            also_measure (Sequence[str]): Costs to measure though no limit is on them, for the objectives of a search:
                'params', 'flops', 'latency' or 'memory'. Defaults to none.

        Raises:
            AutoDFPError: There is no such part, nothing in it can be pruned, or the constraint cannot be met.
        """
        model.eval()
        limit, ratios = read_constraint(constraint), RatioRange(p_min, p_max)
        clusters = Clustering(**(clustering or {}))
        survey = target
        if not isinstance(survey, Survey):
            survey = survey_target(model, target, example_input, residual_streams)
        module, groups = survey.module, survey.groups
        if not isinstance(reconstructor, Reconstructor):
            reconstructor = build(RECONSTRUCTORS, reconstructor or dict(type='SyntheticLeastSquares'))
        costs = count_costs(model, survey, reconstructor, example_input, limit, also_measure, channel_divisor)
        divisors = divisors_of([group.block for group in groups], channel_divisor)
        least = round_widths(p_min, [group.num_channels for group in groups], divisors)
        on_every_rank(lambda: limit.bind(costs, least, channel_divisor, divisors))
        on_every_rank(lambda: reconstructor.ensure_fitted(module, model, groups))
        task = cls(
            *(model, module, survey.target, survey.path, groups, survey.left, costs, limit, reconstructor, ratios),
            clustering=clusters,
            bias_threshold=bias_threshold,
            example_input=example_input,
        )
        # On other devices, sums may differ in their last digits, and so may the order of channels.
        task.rankings, task.l2_rankings = on_main(task._rank)
        if allocate:
            task.allocation, task.error_curves = on_main(lambda: (task.allocated_widths(), task.error_curves))
        return task

    def _rank(self) -> tuple[list[Tensor], list[Tensor]]:
        l2 = [_rank_by_norm(self.module, group) for group in self.groups]
        own = [self.reconstructor.ranking(group) for group in self.groups]
        return [norm if ranking is None else ranking.cpu() for ranking, norm in zip(own, l2, strict=True)], l2

    @cached_property
    def error_curves(self) -> list[Tensor] | None:
        """[N + 1] each, L of them, see :meth:`.Reconstructor.error_curves`; computed when first needed."""
        curves = self.reconstructor.error_curves(self.groups, self.rankings)
        return None if curves is None else [curve.cpu() for curve in curves]

    def allocated_widths(self) -> list[int] | None:
        """The reconstructor's own choice of widths [L], computed from :attr:`error_curves`; None if it has none."""
        if self.error_curves is None:
            return None
        return allocate_widths(self.error_curves, self.constraint, self._widest)

    def follow_env(self) -> None:
        """Take over rankings, allocation and error curves from :attr:`env`, where a resumed search has set them."""
        self.rankings, self.allocation = self.env.rankings, self.env.start
        vars(self).pop('error_curves', None)  # of the rankings before; computed again if env has none
        if self.env.curves is not None:
            self.error_curves = self.env.curves

    @property
    def _widest(self) -> list[int]:
        return round_widths(self.ratios.high, self.dense_widths, self.constraint.divisors)

    @property
    def dense_widths(self) -> list[int]:
        """[L]."""
        return [group.num_channels for group in self.groups]

    @cached_property
    def layer_states(self) -> list[LayerState]:
        """[L], what the agent sees of the groups (Eq. 17)."""
        return [
            layer_state(index, *group_statistics(self.module, group), self.clustering, self.bias_threshold)
            for index, group in enumerate(self.groups)
        ]

    @cached_property
    def env(self) -> PruningEnv:
        """The task as an episode."""
        names, states = [group.name for group in self.groups], scale_states(self.layer_states)
        curves = None if self.allocation is None else self.error_curves
        return PruningEnv(names, self.rankings, states, self.constraint, self.ratios, self.allocation, curves)

    def plan(self, widths: Sequence[int], rankings: Sequence[Tensor] | None = None) -> PruningPlan:
        """The plan that keeps the first-ranked channels of each group.

        Args:
            widths (Sequence[int]): [L].
            rankings (Sequence[Tensor] | None): [N] each. Defaults to None: :attr:`rankings`.
        """
        return PruningPlan.of([group.name for group in self.groups], rankings or self.rankings, widths)

    def uniform_plan(self, rankings: Sequence[Tensor] | None = None) -> PruningPlan:
        """The plan with one ratio for all groups, the largest within the limits; ``rankings`` as of :meth:`plan`."""
        ratio = min(self.ratios.high, self.constraint.uniform_ratio())
        return self.plan(round_widths(ratio, self.dense_widths, self.constraint.divisors), rankings)

    def allocated_plan(self) -> PruningPlan | None:
        """The reconstructor's own plan, which needs no search; None if it has none."""
        return None if self.allocation is None else self.plan(self.allocation)

    @checked('nested widths')
    def nested_widths(self, num_points: TwoOrMore, start: float = 1.0) -> tuple[list[list[int]], bool]:
        """Widths [L] from the dense model down to the least that can be reached, each no wider than the one before.

        The costs that the limits are on fall in even steps; where the limits lie does not matter.

        Args:
            num_points (int): How many, 2 or more. Equal ones are given once.
            start (float): Where they begin, as of :meth:`.Constraint.at`; :attr:`.Constraint.share` is the limit.
                Defaults to 1: at the dense model.

        Returns:
            tuple[list[list[int]], bool]: The widths, widest first; and whether the reconstructor chose them. If it
            cannot, they are uniform.
        """
        shares = [start * (1 - step / (num_points - 1)) for step in range(num_points)]
        path = []
        if start == 1:
            path.append(self.dense_widths)
            del shares[0]
        known = self.error_curves is not None
        if known:
            path += allocation_path(self.error_curves, self.constraint, self._widest, shares)
        else:
            ratios = (min(self.ratios.high, self.constraint.at(share).uniform_ratio()) for share in shares)
            path += [round_widths(ratio, self.dense_widths, self.constraint.divisors) for ratio in ratios]
        return [widths for place, widths in enumerate(path) if widths not in path[:place]], known

    def describe(self) -> str:
        """A text: how much can be pruned, a line for each reason why the rest cannot, and the limits."""
        groups = '1 prunable group' if len(self.groups) == 1 else f'{len(self.groups)} prunable groups'
        head = f'{groups} in the {type(self.module).__name__} {self.target!r}; left alone:'
        return '\n'.join([head, *(f'  {line}' for line in self.left), *self.constraint.table()])

    def require_dense(self) -> None:
        """Raise an :class:`AutoDFPError` if the model is pruned at the moment."""
        for group in self.groups:
            left = len(outputs_first(self.module.get_submodule(group.name)))
            if left < group.offset + group.width:
                raise AutoDFPError(
                    f'the {type(self.model).__name__} is pruned at the moment: {group.name} has {left} outputs; call '
                    'restore() of the plan that was applied, or build a new task for it as it is'
                )

    @property
    def undistilled(self) -> 'PruningTask':
        """The same task without a distillation after the full pass (:attr:`.Reconstructor.undistilled`)."""
        other = copy.copy(self)  # keeps the error curves, which may have taken minutes
        other.reconstructor = self.reconstructor.undistilled
        return other

    @torch.inference_mode(False)
    def apply(self, plan: PruningPlan, final: bool = False) -> Restore:
        """Prune the model in place; arguments and result as of :func:`mmautodfp.surgery.apply_plan`.

        Raises:
            AutoDFPError: The model is pruned already.
        """
        self.require_dense()
        return apply_plan(self.module, plan, self.reconstructor, final, self.model, self.groups)

    def evaluate(self, plan: PruningPlan | None, reward: Callable[[nn.Module], float], final: bool = False) -> float:
        """A reward of the model under a plan, or of the dense model for None; the model is dense again afterwards.

        Raises:
            AutoDFPError: The reward changed the model.
        """
        with nullcontext() if plan is None else self.apply(plan, final), undisturbed(self.model):
            return reward(self.model)

    def summary(self, plan: PruningPlan) -> dict[str, dict]:
        """Counts and preserved shares of a plan, see :meth:`mmautodfp.costs.ModelCosts.summary`."""
        return self.costs.summary([plan.widths.get(group.name, group.num_channels) for group in self.groups])

    @property
    def identity(self) -> dict[str, Any]:
        """What a search and its resume must have in common, as plain data."""
        return dict(
            target=self.target,
            groups={group.name: group.num_channels for group in self.groups},
            clustering=repr(sorted(asdict(self.clustering).items())),
            bias_threshold=self.bias_threshold,
            constraint=self.constraint.identity,
            channel_divisor=self.constraint.channel_divisor,
            ratios=[self.ratios.low, self.ratios.high],
            reconstructor=self.reconstructor.identity,
            allocate=self.allocation is not None,
            weights=digest_weights(self.model.state_dict()),
        )

    def agent_spec(self, seed: int = 0, preference: Sequence[float] = ()) -> AgentSpec:
        """The task as an agent sees it; arguments as of :class:`.AgentSpec`."""
        share = 0.5 if self.allocation else self.ratios.to_action(self.constraint.uniform_ratio())
        return AgentSpec(len(self.groups), uniform_action=(share, 0.5), seed=seed, preference=tuple(preference))


def _rank_by_norm(module: nn.Module, group: ChannelGroup) -> Tensor:
    """[N], the channels (blocks of them) by the l2 norms of what the producers make them with."""
    weight = outputs_first(module.get_submodule(group.name))[group.offset : group.offset + group.width]
    if group.others:
        weight, _ = group_statistics(module, group)
    return rank_channels(weight.flatten(1).reshape(group.num_channels, -1)).cpu()


def digest_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and values of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode() + tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
