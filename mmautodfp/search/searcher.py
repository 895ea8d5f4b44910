"""Episodes: play, learn, keep the best plan, save, go on where it stopped."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmautodfp.errors import AutoDFPError
from mmautodfp.fileio import load_tensors, save_tensors
from mmautodfp.surgery import PruningPlan

from .agent import Agent, Trajectory, require_same
from .environment import PruningEnv

FORMAT = 1


@dataclass
class History:
    """What happened in each episode so far, E of them.

    Attributes:
        rewards (list[float]): [E].
        widths (list[list[int]]): [E, L], channels kept.
        lams (list[list[float]]): [E, L].
        seconds (list[float]): [E].
    """

    rewards: list[float] = field(default_factory=list)
    widths: list[list[int]] = field(default_factory=list)
    lams: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def best(self) -> int:
        """The first episode with the highest reward."""
        return max(range(len(self)), key=self.rewards.__getitem__)


@dataclass(frozen=True)
class Progress:
    """What is told after each episode.

    Attributes:
        episode (int): Its number, from 0.
        num_episodes (int): How many there will be.
        reward (float): Its reward.
        best_reward (float): The highest so far.
        improved (bool): Whether this one is the highest so far.
        seconds (float): What it took.
        eta (float): Seconds that the rest will take at the pace of the last ten.
        scalars (dict[str, float]): What the agent reports of its learning.
    """

    episode: int
    num_episodes: int
    reward: float
    best_reward: float
    improved: bool
    seconds: float
    eta: float
    scalars: dict[str, float]


class Searcher:
    """Runs a search.

    Args:
        env (PruningEnv): The task.
        agent (Agent): Chooses the actions.
        num_episodes (int): Episodes in all, those before a resume included.
        opening (Sequence[Tensor]): [L, 2] each, actions in [0, 1] that the first episodes play in place of the
            agent's own; it learns from them all the same. Defaults to none.
        checkpoint (Path | None): File that holds the search, written after every ``checkpoint_interval`` episodes and
            at the end. Defaults to None: not kept.
        checkpoint_interval (int): Defaults to 1.
        identity (dict | None): JSON-able facts that must be the same on a resume, such as the budget and a digest of
            the weights. Defaults to None.
        report (Callable | None): Told a :class:`Progress` after each episode. Defaults to None.

    Raises:
        AutoDFPError: A count is below 1.
    """

    def __init__(
        self,
        env: PruningEnv,
        agent: Agent,
        num_episodes: int,
        opening: Sequence[Tensor] = (),
        checkpoint: Path | None = None,
        checkpoint_interval: int = 1,
        identity: dict[str, Any] | None = None,
        report: Callable[[Progress], None] | None = None,
    ):
        for name, value in (('num_episodes', num_episodes), ('checkpoint_interval', checkpoint_interval)):
            if value < 1:
                raise AutoDFPError(f'{name} must be 1 or more, got {value}')
        self.env = env
        self.agent = agent
        self.num_episodes = num_episodes
        self.opening = opening
        self.checkpoint = checkpoint
        self.checkpoint_interval = checkpoint_interval
        self.identity = identity or {}
        self.report = report
        self.history = History()

    def run(self) -> PruningPlan:
        """Play the episodes that are still to come.

        Whatever ends it early, an error or an interrupt, the finished episodes are in the checkpoint.

        Returns:
            PruningPlan: The best plan of all episodes.
        """
        unsaved = None
        try:
            while len(self.history) < self.num_episodes:
                self._episode()
                # Taken between two episodes: in the middle of one, the agent's random state is already ahead.
                unsaved = self.state_dict() if self.checkpoint else None
                if unsaved and len(self.history) % self.checkpoint_interval == 0:
                    save_tensors(unsaved, self.checkpoint)
                    unsaved = None
        finally:
            if unsaved:
                save_tensors(unsaved, self.checkpoint)
        return self.best_plan

    @property
    def best_plan(self) -> PruningPlan:
        """The plan with the highest reward so far; of equal ones the first."""
        best = self.history.best
        return self.env.plan(self.history.widths[best], self.history.lams[best])

    @property
    def best_reward(self) -> float:
        """The highest reward so far."""
        return self.history.rewards[self.history.best]

    def _episode(self) -> None:
        start = time.perf_counter()
        trajectory = self._play(len(self.history))
        scalars = self.agent.learn(trajectory)
        history, reward = self.history, trajectory.rewards[-1].item()
        improved = not len(history) or reward > self.best_reward
        history.rewards.append(reward)
        history.widths.append(list(self.env.widths))
        history.lams.append(list(self.env.lams))
        history.seconds.append(time.perf_counter() - start)
        if self.report:
            recent = history.seconds[-10:]
            eta = sum(recent) / len(recent) * (self.num_episodes - len(history))
            self.report(
                Progress(
                    episode=len(history) - 1,
                    num_episodes=self.num_episodes,
                    reward=reward,
                    best_reward=self.best_reward,
                    improved=improved,
                    seconds=history.seconds[-1],
                    eta=eta,
                    scalars=scalars,
                )
            )

    def _play(self, episode: int) -> Trajectory:
        self.agent.begin_episode(episode)
        state, _ = self.env.reset()
        states, actions, rewards, terminated = [], [], [], False
        while not terminated:
            if episode < len(self.opening):
                action = self.opening[episode][len(states)]
            else:
                action = self.agent.act(state)
            states.append(state)
            state, reward, terminated, _, info = self.env.step(action)
            if not math.isfinite(reward):
                raise AutoDFPError(
                    f'episode {episode} was rewarded with {reward}, which nothing can be learned from; look at the '
                    'reward, then go on with --resume: the search up to here is kept'
                )
            actions.append(info['action'])
            rewards.append(reward)
        # float64 for the rewards: the best plan must not hang on a rounding.
        return Trajectory(torch.stack(states), torch.stack(actions), torch.tensor(rewards, dtype=torch.float64))

    def state_dict(self) -> dict[str, Any]:
        """The whole search: agent, history, identity. Plain enough for ``torch.load(weights_only=True)``."""
        history = self.history
        return dict(
            format=FORMAT,
            identity=self.identity,
            agent=self.agent.state_dict(),
            rewards=torch.tensor(history.rewards, dtype=torch.float64),
            widths=torch.tensor(history.widths),
            lams=torch.tensor(history.lams, dtype=torch.float64),
            seconds=torch.tensor(history.seconds, dtype=torch.float64),
        )

    def resume(self, path: Path) -> None:
        """Go on from a file that an earlier search wrote.

        Raises:
            AutoDFPError: The file is missing, damaged, or of a search for something else; the message names what.
        """
        state = load_tensors(path, 'the search to resume')
        if state.get('format') != FORMAT:
            raise AutoDFPError(f'{path} was expected to hold a search of format {FORMAT}, found {state.get("format")}')
        require_same('search', self.identity, state['identity'])
        self.agent.load_state_dict(state['agent'])
        self.history = History(*(state[name].tolist() for name in ('rewards', 'widths', 'lams', 'seconds')))
