"""Episodes: play, learn, keep the best plan, save, go on where it stopped."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor

from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_tensors, save_tensors

from .agent import Agent, Trajectory, require_same
from .environment import PruningEnv, Rollout
from .racing import Racing
from .ranks import on_main, share_out

FORMAT = 3


@dataclass
class History:
    """What happened in each episode so far, E of them.

    Attributes:
        rewards (list[float]): [E].
        widths (list[list[int]]): [E, L], channels kept.
        lams (list[list[float]]): [E, L].
        seconds (list[float]): [E]; the episodes of a round share its time.
        stages (list[list[float]]): [E], rewards after each stage that was evaluated: all, unless a race ended early.
    """

    rewards: list[float] = field(default_factory=list)
    widths: list[list[int]] = field(default_factory=list)
    lams: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stages: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def best(self) -> int:
        """The first episode with the highest reward."""
        return max(range(len(self)), key=self.rewards.__getitem__)

    def add(self, rollout: Rollout, reward: float, stages: list[float], seconds: float) -> None:
        """Append an episode."""
        self.rewards.append(reward)
        self.widths.append(rollout.widths)
        self.lams.append(rollout.lams)
        self.seconds.append(seconds)
        self.stages.append(stages)

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
        )

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> 'History':
        """Undo :meth:`state_dict`."""
        columns = {item.name: state[item.name].tolist() for item in fields(cls)}
        columns['stages'] = [[value for value in row if not math.isnan(value)] for row in columns['stages']]
        return cls(**columns)


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
        widths (list[int]): [L], channels that it kept.
        stages (int): After how many stages it was known.
        eta (float): Seconds that the rest will take at the pace of the last ten.
        scalars (dict[str, float]): What the agent reports of its learning.
    """

    episode: int
    num_episodes: int
    reward: float
    best_reward: float
    improved: bool
    seconds: float
    widths: list[int]
    stages: int
    eta: float
    scalars: dict[str, float]


class Searcher:
    """Runs a search.

    In a distributed run, the episodes of a round are evaluated side by side, one a rank. Rank 0 alone acts and learns,
    in the order of the ranks, and tells the others the plans; so a run is reproducible for a given number of ranks.

    Args:
        env (PruningEnv): The task.
        agent (Agent): Chooses the actions.
        evaluate (Callable): From a plan to its reward, or to its rewards after each of ``num_stages`` stages.
        num_episodes (int): Episodes in all, those before a resume included.
        opening (Sequence[Tensor]): [L, 2] each, actions in [0, 1] that the first episodes play in place of the
            agent's own; it learns from them all the same. Defaults to none.
        checkpoint (Path | None): File that holds the search, written after every ``checkpoint_interval`` episodes and
            at the end. Defaults to None: not kept.
        checkpoint_interval (int): Defaults to 1.
        identity (dict | None): JSON-able facts that must be the same on a resume, such as the budget and a digest of
            the weights. Defaults to None.
        report (Callable | None): Told a :class:`Progress` after each episode. Defaults to None.
        num_stages (int): Defaults to 1.
        racing (Racing | None): Stops hopeless plans between stages. Defaults to None: none is stopped.

    Raises:
        AutoDFPError: A count is below 1.
    """

    def __init__(
        self,
        env: PruningEnv,
        agent: Agent,
        evaluate: Callable[[PruningPlan], float | Iterator[float]],
        num_episodes: int,
        opening: Sequence[Tensor] = (),
        checkpoint: Path | None = None,
        checkpoint_interval: int = 1,
        identity: dict[str, Any] | None = None,
        report: Callable[[Progress], None] | None = None,
        num_stages: int = 1,
        racing: Racing | None = None,
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
        self.evaluate = evaluate
        self.num_stages = num_stages
        self.racing = racing
        self.history = History()

    def run(self) -> PruningPlan:
        """Play the episodes that are still to come.

        Whatever ends it early, an error or an interrupt, the finished episodes are in the checkpoint.

        Returns:
            PruningPlan: The best plan of all episodes.
        """
        unsaved, saved = None, len(self.history)
        try:
            while len(self.history) < self.num_episodes:
                self._round()
                # Taken between two rounds: in the middle of one, the agent's random state is already ahead.
                unsaved = self.state_dict() if self.checkpoint else None
                if len(self.history) - saved >= self.checkpoint_interval:
                    on_main(partial(self._save, unsaved))
                    unsaved, saved = None, len(self.history)
        finally:
            self._save(unsaved)
        return self.best_plan

    def _save(self, state: dict[str, Any] | None) -> None:
        if state and self.checkpoint:
            save_tensors(state, self.checkpoint)

    @property
    def best_plan(self) -> PruningPlan:
        """The plan with the highest reward so far; of equal ones the first."""
        best = self.history.best
        return self.env.plan(self.history.widths[best], self.history.lams[best])

    @property
    def best_reward(self) -> float:
        """The highest reward so far."""
        return self.history.rewards[self.history.best]

    def _round(self) -> None:
        """As many episodes as there are ranks."""
        start = time.perf_counter()
        first = len(self.history)
        count = min(get_world_size(), self.num_episodes - first)
        rollouts = on_main(lambda: [self._act(first + number) for number in range(count)])
        tasks = [partial(self._evaluate, first + number, rollout) for number, rollout in enumerate(rollouts)]
        results = share_out(tasks)
        scalars = on_main(lambda: [self._learn(*pair) for pair in zip(rollouts, results, strict=True)])
        seconds = (time.perf_counter() - start) / count
        for number, (rollout, (reward, stages)) in enumerate(zip(rollouts, results, strict=True)):
            improved = not len(self.history) or reward > self.best_reward
            self.history.add(rollout, reward, stages, seconds)
            if self.report:
                self.report(self._progress(improved, scalars[number]))

    def _act(self, episode: int) -> Rollout:
        self.agent.begin_episode(episode)
        if episode < len(self.opening):
            actions = iter(self.opening[episode])
            return self.env.rollout(lambda _: next(actions))
        return self.env.rollout(self.agent.act)

    def _evaluate(self, episode: int, rollout: Rollout) -> tuple[float, list[float]]:
        """The reward of an episode, and the rewards after each stage."""
        rewards = self.evaluate(self.env.plan(rollout.widths, rollout.lams))
        rewards = rewards if isinstance(rewards, Iterator) else iter([rewards])
        with contextlib.closing(rewards) if hasattr(rewards, 'close') else contextlib.nullcontext():
            if self.racing:
                reward, stages = self.racing.run(episode, rewards, self.num_stages, self.history.stages)
            else:
                *_, reward = rewards
                stages = [reward]
        if not all(math.isfinite(value) for value in (reward, *stages)):
            raise AutoDFPError(
                f'episode {episode} was rewarded with {reward}, which nothing can be learned from; look at the '
                'reward, then go on with --resume: the search up to here is kept'
            )
        return reward, stages

    def _learn(self, rollout: Rollout, result: tuple[float, list[float]]) -> dict[str, float]:
        # float64 for the rewards: the best plan must not hang on a rounding.
        rewards = torch.zeros(self.env.horizon, dtype=torch.float64)
        rewards[-1] = result[0]
        return self.agent.learn(Trajectory(self.env.states, rollout.actions, rewards))

    def _progress(self, improved: bool, scalars: dict[str, float]) -> Progress:
        history = self.history
        recent = history.seconds[-10:]
        return Progress(
            episode=len(history) - 1,
            num_episodes=self.num_episodes,
            reward=history.rewards[-1],
            best_reward=self.best_reward,
            improved=improved,
            seconds=history.seconds[-1],
            widths=history.widths[-1],
            stages=len(history.stages[-1]),
            eta=sum(recent) / len(recent) * (self.num_episodes - len(history)),
            scalars=scalars,
        )

    def state_dict(self) -> dict[str, Any]:
        """The whole search: agent, history, identity. Plain enough for ``torch.load(weights_only=True)``."""
        return dict(
            format=FORMAT,
            identity=self.identity,
            # Computed anew, with another number of threads say, they may differ, and with them the plans' channels.
            rankings=list(self.env.rankings),
            start=None if self.env.start is None else list(self.env.start),
            agent=self.agent.state_dict(),
            history=self.history.state_dict(),
        )

    def resume(self, path: Path) -> None:
        """Go on from a file that an earlier search wrote.

        Raises:
            AutoDFPError: The file is missing, damaged, or of a search for something else; the message names what.
        """
        self.history, rankings, start = on_main(lambda: self._load(path))
        self.env.set_channels(rankings, start)

    def _load(self, path: Path) -> tuple[History, list[Tensor], list[int] | None]:
        state = load_tensors(path, 'the search to resume')
        if state.get('format') != FORMAT:
            raise AutoDFPError(
                f'{path} was expected to hold a search of format {FORMAT}, found {state.get("format")}, which another '
                'version of mmautodfp wrote; go on with that version or start a new search'
            )
        require_same('search', self.identity, state['identity'])
        self.agent.load_state_dict(state['agent'])
        return History.from_state_dict(state['history']), state['rankings'], state['start']
