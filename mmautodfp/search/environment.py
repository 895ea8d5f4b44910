"""The pruning of a network as an episode: one step a group, the reward at the end (section 4.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmautodfp.costs import Constraint, round_widths
from mmautodfp.surgery import PruningPlan, allocate_widths
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.settings import settings

# An action can multiply a group's errors with this number at most, or divide them by it.
LARGEST_WEIGHT = 4.0


@settings('a range of ratios')
class RatioRange:
    """Bounds of each group's preserve ratio, p_min and p_max of Algorithm 1, and which action stands for which ratio.

    Attributes:
        low (float): p_min. Defaults to 0.2.
        high (float): p_max. Defaults to 1.
        middle (float | None): Ratio within the bounds that an action of 0.5 stands for; the ratios below and above it
            are spread over the actions below and above. Defaults to None: all are spread evenly.

    Raises:
        AutoDFPError: The bounds do not ascend within (0, 1].
    """

    low: float = 0.2
    high: float = 1.0
    middle: float | None = None

    def __post_init__(self):
        if not 0 < self.low < self.high <= 1:
            raise AutoDFPError(f'p_min and p_max must satisfy 0 < p_min < p_max <= 1, got {self.low} and {self.high}')

    def to_ratio(self, action: float) -> float:
        """Preserve ratio p of an action in [0, 1]."""
        if self.middle is None:
            return self.low + action * (self.high - self.low)
        # Weighted such that 0.5 gives the middle itself, without a rounding.
        if action < 0.5:
            return (1 - 2 * action) * self.low + 2 * action * self.middle
        return (2 - 2 * action) * self.middle + (2 * action - 1) * self.high

    def to_action(self, ratio: float) -> float:
        """Action in [0, 1] that gives ratio ``p``, as near as the range allows: rounded widths may lie beyond it."""
        if self.middle is None:
            return min(1.0, max(0.0, (ratio - self.low) / (self.high - self.low)))
        if ratio >= self.middle:
            span = self.high - self.middle
            return 0.5 + 0.5 * min(1.0, (ratio - self.middle) / span) if span > 0 else 0.5
        return max(0.0, 0.5 * (ratio - self.low) / (self.middle - self.low)) if self.middle > self.low else 0.0

    def through(self, middle: float) -> 'RatioRange':
        """The same bounds with another :attr:`middle`, or the bound next to it if it lies beyond them."""
        return replace(self, middle=min(self.high, max(self.low, middle)))


@dataclass(frozen=True)
class Rollout:
    """The plan of an episode, and the actions that made it.

    Attributes:
        actions (Tensor): [L, 2] in [0, 1], as executed: the limit may have lowered them.
        widths (list[int]): [L], channels kept.
        lams (list[float]): [L].
    """

    actions: Tensor
    widths: list[int]
    lams: list[float]


@dataclass(eq=False)
class PruningEnv:
    """One episode prunes a network group by group.

    Attributes:
        names (Sequence[str]): The groups' names, L of them, in forward order.
        rankings (Sequence[Tensor]): [N] each, the groups' channels by falling importance.
        states (Tensor): [L, D], what the agent sees at each group.
        constraint (Constraint): Bound to the model, with the least widths of ``ratios``.
        ratios (RatioRange): Range of the preserve ratios.
        start (Sequence[int] | None): [L], widths that were allocated beforehand: an action of 0.5 stands for them (see
            :attr:`RatioRange.middle`). Defaults to None: all ratios are spread evenly.
        curves (Sequence[Tensor] | None): [N + 1] each, the groups' errors where 0 to N channels stay, by which
            ``start`` was allocated. Defaults to None: not known.
        spaces (list[RatioRange]): [L], what actions stand for in each group; follows from ``ratios`` and ``start``.
    """

    names: Sequence[str]
    rankings: Sequence[Tensor]
    states: Tensor
    constraint: Constraint
    ratios: RatioRange
    start: Sequence[int] | None = None
    curves: Sequence[Tensor] | None = None
    spaces: list[RatioRange] = field(init=False)

    def __post_init__(self):
        self.set_channels(self.rankings, self.start, self.curves)

    def set_channels(
        self, rankings: Sequence[Tensor], start: Sequence[int] | None, curves: Sequence[Tensor] | None = None
    ) -> None:
        """Replace these attributes, as a resumed search does."""
        self.rankings = [ranking.cpu() for ranking in rankings]
        self.start = start
        self.curves = curves
        self.spaces = [self.ratios] * len(self.names)
        if start is not None:
            channels = map(len, self.rankings)
            self.spaces = [self.ratios.through(width / n) for width, n in zip(start, channels, strict=True)]

    def rollout(self, act: Callable[[Tensor], Tensor], weigh_errors: bool = True) -> Rollout:
        """Play an episode, without a reward.

        Args:
            act (Callable): From a state [D] to an action [2] in [0, 1]: how much of the group is to stay, and lambda.
            weigh_errors (bool): Where the groups' errors are known, multiply them with a number from 1/4 to 4 that the
                first part of the action stands for, and allocate the widths by these. Defaults to True. Otherwise the
                first part stands for the preserve ratio (see ``start``), which Algorithm 1 bounds so that the groups
                to come can stay within the limit.
        """
        if weigh_errors and self.curves is not None:
            return self._allocate(torch.stack([torch.as_tensor(act(state)) for state in self.states]))
        widths: list[int] = []
        actions = [self._prune_next(widths, act(state)) for state in self.states]
        return Rollout(torch.stack(actions), widths, [action[1].item() for action in actions])

    def _allocate(self, actions: Tensor) -> Rollout:
        """The plan of actions [L, 2] that weigh the groups' errors."""
        weights = LARGEST_WEIGHT ** (2 * actions[:, 0].double() - 1)
        curves = [curve * weight for curve, weight in zip(self.curves, weights, strict=True)]
        dense = [len(ranking) for ranking in self.rankings]
        widest = round_widths(self.ratios.high, dense, self.constraint.divisors)
        return Rollout(actions, allocate_widths(curves, self.constraint, widest), actions[:, 1].tolist())

    def _prune_next(self, widths: list[int], action: Tensor) -> Tensor:
        """Append the next group's width, within the limit, to ``widths``; returns the action as executed, [2]."""
        group = len(widths)
        channels, space = len(self.rankings[group]), self.spaces[group]
        share, lam = (float(value) for value in action)
        (width,) = round_widths(space.to_ratio(share), [channels], self.constraint.divisors[group])  # Eq. 15
        bound = self.constraint.max_width(widths)  # Algorithm 1
        if width > bound:
            width = bound
            share = space.to_action(bound / channels)
        widths.append(width)
        return torch.tensor([share, lam])

    def plan(self, widths: Sequence[int], lams: Sequence[float]) -> PruningPlan:
        """The plan [L] that keeps the ``widths`` highest-ranked channels."""
        return PruningPlan.of(self.names, self.rankings, widths, lams)

    def uniform_actions(self, lam: float) -> Tensor:
        """Actions [L, 2] that make the uniform plan with one lambda."""
        ratio = self.constraint.uniform_ratio()
        return torch.tensor([[space.to_action(ratio), lam] for space in self.spaces])

    def actions(self, widths: Sequence[int], lam: float) -> Tensor:
        """Actions [L, 2] that make a plan with ``widths`` [L], within the limit and the ratios, and one lambda."""
        shares = zip(self.spaces, widths, self.rankings, strict=True)
        return torch.tensor([[space.to_action(width / len(ranking)), lam] for space, width, ranking in shares])
