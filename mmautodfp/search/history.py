"""The episodes of a search so far, and what is reported after each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from .environment import Rollout


@dataclass
class History:
    """The episodes so far, E of them.

    Attributes:
        rewards (list[float]): [E].
        widths (list[list[int]]): [E, L], channels kept.
        lams (list[list[float]]): [E, L].
        seconds (list[float]): [E]; the episodes of a round share its time.
        stages (list[list[float]]): [E], the metric after each stage that was evaluated: all, unless a race ended early.
        outcomes (list[list[float]]): [E, M], each plan's value in each of several objectives; the reward is then their
            weighted sum. Empty without objectives.
    """

    rewards: list[float] = field(default_factory=list)
    widths: list[list[int]] = field(default_factory=list)
    lams: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stages: list[list[float]] = field(default_factory=list)
    outcomes: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def best(self) -> int:
        """The first episode with the highest reward."""
        return max(range(len(self)), key=self.rewards.__getitem__)

    def add(self, rollout: Rollout, reward: float, stages: list[float], seconds: float, outcome: list[float]) -> None:
        """Append an episode; its outcome is empty without objectives."""
        self.rewards.append(reward)
        self.widths.append(rollout.widths)
        self.lams.append(rollout.lams)
        self.seconds.append(seconds)
        self.stages.append(stages)
        if outcome:
            self.outcomes.append(outcome)

    def state_dict(self) -> dict[str, Tensor]:
        """As tensors; stages that were not evaluated are nan."""
        longest = max(map(len, self.stages), default=0)
        padded = [row + [math.nan] * (longest - len(row)) for row in self.stages]
        return dict(
            rewards=torch.tensor(self.rewards, dtype=torch.float64),
            widths=torch.tensor(self.widths),
            lams=torch.tensor(self.lams, dtype=torch.float64),
            seconds=torch.tensor(self.seconds, dtype=torch.float64),
            stages=torch.tensor(padded, dtype=torch.float64),
            **(dict(outcomes=torch.tensor(self.outcomes, dtype=torch.float64)) if self.outcomes else {}),
        )

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> 'History':
        """Undo :meth:`state_dict`."""
        columns = {item.name: state[item.name].tolist() for item in fields(cls) if item.name in state}
        columns['stages'] = [[value for value in row if not math.isnan(value)] for row in columns['stages']]
        return cls(**columns)

    def require_whole(self, dense: Sequence[int]) -> None:
        """Raise a ValueError unless there are whole episodes, one or more, of groups of ``dense`` [L] channels."""
        lengths = {name: len(column) for name, column in vars(self).items() if column or name != 'outcomes'}
        if len(set(lengths.values())) > 1 or not self.rewards:
            raise ValueError(f'its episodes were to be equally many and at least one, but are {lengths}')
        if not all(map(math.isfinite, self.rewards)):
            raise ValueError('a reward is not finite')
        for widths, lams in zip(self.widths, self.lams, strict=True):
            for width, lam, channels in zip(widths, lams, dense, strict=True):
                if not isinstance(width, int) or not 1 <= width <= channels or not 0 <= lam <= 1:
                    raise ValueError(f'a group of {channels} channels was to keep {width}, at lambda {lam}')


@dataclass(frozen=True)
class Progress:
    """What is reported after each episode.

    Attributes:
        episode (int): Its number, from 0.
        num_episodes (int): How many there will be in all.
        reward (float): Its reward.
        best_reward (float): The highest reward so far.
        improved (bool): Whether its reward is higher than all before.
        seconds (float): How long it took.
        widths (list[int]): [L], channels that its plan keeps.
        eta (float): Seconds that the rest will take at the pace of the last ten.
        scalars (dict[str, float]): What the agent reports of its learning, and the plan's value in each of several
            objectives.
    """

    episode: int
    num_episodes: int
    reward: float
    best_reward: float
    improved: bool
    seconds: float
    widths: list[int]
    eta: float
    scalars: dict[str, float]
