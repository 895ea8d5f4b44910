"""The loop of a search: play an episode, learn from it, save, and resume where it stopped."""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor

from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError, in_one_line
from mmautodfp.utils.fileio import load_tensors, save_tensors

from .agent import Agent, Trajectory, require_settings
from .environment import PruningEnv, Rollout
from .history import History, Progress
from .objectives import Objectives
from .racing import Racing
from .ranks import on_main, share_out

FORMAT = 4
# An episode's reward, the metric after each stage, and the outcome [M], which is empty without objectives.
Result = tuple[float, list[float], list[float]]


@dataclass(eq=False)
class Searcher:
    """Plays the episodes of a search and keeps its state.

    In a distributed run, the episodes of a round are evaluated side by side, one on each rank. Only rank 0 acts and
    learns, in the order of the ranks, and sends the plans to the others: with the same number of ranks, a run gives the
    same result again.

    Attributes:
        env (PruningEnv): The task.
        agent (Agent): Chooses the actions.
        evaluate (Callable): From a plan to a generator of its metric after each of ``num_stages`` stages; the generator
            is closed early where a race is lost.
        num_episodes (int): Episodes in all, those before a resume included; 1 or more.
        checkpoint (Path | None): File that rank 0 saves the search to after every round. Defaults to None: not saved.
        identity (dict): JSON-able facts that must be the same on a resume, such as the budget and a digest of the
            weights. Defaults to none.
        report (Callable | None): Called with a :class:`Progress` after each episode. Defaults to None.
        num_stages (int): Defaults to 1.
        racing (Racing | None): Stops hopeless plans between stages. Defaults to None: none is stopped.
        objectives (Objectives | None): Weigh the metric against costs: an episode's reward is then the utility.
            Defaults to None: the metric is the reward.
        opening (Sequence[Tensor]): [L, 2] each, actions in [0, 1] that the first episodes play instead of the agent's
            own; the agent learns from them too. Defaults to none; to be set before :meth:`run`.
        history (History): Of the episodes so far.
        judged (dict): What :func:`.finalists.judge_finalists` has found, as plain data; saved with the search.
    """

    env: PruningEnv
    agent: Agent
    evaluate: Callable[[PruningPlan], Generator[float, None, None]]
    num_episodes: int
    checkpoint: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    report: Callable[[Progress], None] | None = None
    num_stages: int = 1
    racing: Racing | None = None
    objectives: Objectives | None = None
    opening: Sequence[Tensor] = ()
    history: History = field(default_factory=History)
    judged: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Play the episodes that are left.

        If an error or an interrupt ends it, the checkpoint holds all rounds that were finished.
        """
        while len(self.history) < self.num_episodes:
            self._round()
            on_main(self.save)

    def save(self) -> None:
        """Write the checkpoint, if there is one. Only between rounds: within one, the agent's random state is ahead."""
        if self.checkpoint:
            save_tensors(self.state_dict(), self.checkpoint)

    def plan(self, episode: int) -> PruningPlan:
        """The plan that an episode played."""
        return self.env.plan(self.history.widths[episode], self.history.lams[episode])

    @property
    def best_reward(self) -> float:
        """The highest reward so far."""
        return self.history.rewards[self.history.best]

    @property
    def weighs_errors(self) -> bool:
        """Whether actions weigh the groups' errors; not with objectives, as a cheaper plan may be wanted."""
        return self.objectives is None and self.env.curves is not None

    def _round(self) -> None:
        """Play one episode a rank, or as many as are left."""
        start = time.perf_counter()
        first = len(self.history)
        episodes = range(first, min(first + get_world_size(), self.num_episodes))
        rollouts = on_main(lambda: [self._act(episode) for episode in episodes])
        results = share_out([partial(self._evaluate, *pair) for pair in zip(episodes, rollouts, strict=True)])
        scalars = on_main(lambda: [self._learn(*pair) for pair in zip(rollouts, results, strict=True)])
        seconds = (time.perf_counter() - start) / len(episodes)
        for rollout, (reward, stages, outcome), told in zip(rollouts, results, scalars, strict=True):
            improved = not len(self.history) or reward > self.best_reward
            self.history.add(rollout, reward, stages, seconds, outcome)
            if self.report:
                self.report(self._progress(improved, told))

    def _act(self, episode: int) -> Rollout:
        self.agent.begin_episode(episode)
        act = self.agent.act
        if episode < len(self.opening):
            actions = iter(self.opening[episode])
            act = lambda _: next(actions)
        return self.env.rollout(act, weigh_errors=self.weighs_errors)

    def _evaluate(self, episode: int, rollout: Rollout) -> Result:
        with contextlib.closing(self.evaluate(self.env.plan(rollout.widths, rollout.lams))) as found:
            metrics = (as_number(metric, f'episode {episode} was rewarded') for metric in found)
            if self.racing:
                metric, stages = self.racing.run(episode, metrics, self.num_stages, self.history.stages)
            else:
                *_, metric = metrics
                stages = [metric]
        if self.objectives is None:
            return metric, stages, []
        outcome = self.objectives.outcome(metric, rollout.widths)
        return self.objectives.utility(outcome), stages, outcome

    def _learn(self, rollout: Rollout, result: Result) -> dict[str, float]:
        reward, _, outcome = result
        # float64: a rounded reward could make another plan the best.
        last = torch.tensor(outcome or reward, dtype=torch.float64)
        rewards = torch.zeros(len(rollout.actions), *last.shape, dtype=torch.float64)
        rewards[-1] = last
        scalars = self.agent.learn(Trajectory(self.env.states, rollout.actions, rewards))
        return scalars | dict(zip(self.objectives.weights, outcome, strict=True)) if self.objectives else scalars

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
            eta=sum(recent) / len(recent) * (self.num_episodes - len(history)),
            scalars=scalars,
        )

    def state_dict(self) -> dict[str, Any]:
        """The whole search: agent, history, identity. Plain enough for ``torch.load(weights_only=True)``."""
        return dict(
            format=FORMAT,
            identity=self.identity,
            # Computed again, say with another number of threads, they may differ, and so would the plans' channels.
            rankings=list(self.env.rankings),
            start=None if self.env.start is None else list(self.env.start),
            curves=None if self.env.curves is None else list(self.env.curves),
            agent=self.agent.state_dict(),
            history=self.history.state_dict(),
            **(dict(finalists=self.judged) if self.judged else {}),
            **(dict(objectives=self.objectives.describe()) if self.objectives else {}),
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, with the rankings that it holds.

        The objectives may have other weights than before: all rewards are computed again with the present ones.

        Raises:
            AutoDFPError: It is a search for something else, or damaged; the message says what.
        """
        require_settings('search', self.identity, state['identity'])
        try:
            self._take_over(state)
        except AutoDFPError:
            raise
        except Exception as error:  # the file may hold anything
            raise AutoDFPError(
                f'the search to resume is damaged ({in_one_line(error)}); start a new one, or put back a search.pth '
                'that was kept elsewhere'
            ) from error

    def _take_over(self, state: dict[str, Any]) -> None:
        history = History.from_state_dict(state['history'])
        if self.objectives:
            history.rewards = [self.objectives.utility(outcome) for outcome in history.outcomes]
        dense = [len(ranking) for ranking in self.env.rankings]
        history.require_whole(dense)
        rankings, curves = state['rankings'], state['curves']
        found = [torch.arange(n)[ranking].sort().values for n, ranking in zip(dense, rankings, strict=True)]
        if not all(torch.equal(channels, torch.arange(n)) for n, channels in zip(dense, found, strict=True)):
            raise ValueError('its rankings are not of all channels')
        if curves is not None and [len(curve) for curve in curves] != [n + 1 for n in dense]:
            raise ValueError('its error curves are not of all channels')
        self.agent.load_state_dict(state['agent'])
        self.env.set_channels(rankings, state['start'], curves)
        self.history, self.judged = history, dict(state.get('finalists', {}))


def load_search(path: Path) -> dict[str, Any]:
    """Read the state of a :class:`Searcher` from its checkpoint.

    Raises:
        AutoDFPError: The file is missing, damaged, no search or another version's.
    """
    state = load_tensors(path, 'the search to resume')
    found = state.get('format')
    if found != FORMAT and 'history' not in state:
        raise AutoDFPError(f'a search was to be resumed from {path}, but that holds none; name a search.pth')
    if found != FORMAT:
        raise AutoDFPError(
            f'{path} holds a search of format {found}, which another version of mmautodfp wrote, and this one goes on '
            f'with format {FORMAT} alone; finish it with that version, or start a new search'
        )
    kinds = dict(identity=dict, rankings=list, agent=dict, history=dict)
    wrong = [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]
    wrong += [name for name in ('start', 'curves') if name not in state]
    if wrong:
        raise AutoDFPError(f'{path} lacks the {wrong[0]} of a search; start a new one')
    return state


def as_number(reward: Any, told: str) -> float:
    """A reward as a number.

    Args:
        reward (Any): What a reward or a judge returned.
        told (str): What happened, for the message, such as 'episode 3 was rewarded'.

    Raises:
        AutoDFPError: It is no finite number.
    """
    with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):  # torch's: of several numbers
        if math.isfinite(number := float(reward)):
            return number
    raise AutoDFPError(
        f'{told} with {reward}, but a reward is a finite number; look into it, then go on: what came before it is '
        'kept, if a file keeps it'
    )
