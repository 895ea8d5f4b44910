"""A search from beginning to end: start or resume it, play its episodes, choose among the finalists."""

import json
import logging
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import AGENTS, build, build_switched
from mmautodfp.utils.settings import Count, Share, Whole, checked

from .agent import Agent
from .finalists import NUM_FINALISTS, Finalist, judge_finalists
from .history import History, Progress
from .objectives import Objectives, pareto_set, require_no_race
from .racing import Racing
from .ranks import on_every_rank, on_main
from .reward_facts import RewardFacts
from .searcher import Searcher, as_number, load_search
from .task import PruningTask
from .undisturbed import undisturbed

LONG_SEARCH = 500  # episodes: from here on, a race saves more than it costs


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        plan (PruningPlan): The best one: of the finalists, if there are any, else by the reward.
        reward (float): Its reward in the search; of several objectives its utility.
        history (History): Of all episodes, those before a resume included.
        seconds (float): What this run took, without the runs before a resume.
        image_evaluations (dict[str, int]): How many images were evaluated (``done``), and how many would have been
            without a race (``without_racing``); empty if the reward does not tell its images.
        finalists (list[Finalist]): The plans that were judged, in the order of their rewards. Defaults to none.
        objectives (Objectives | None): If there were several. Defaults to None.
        episode (int | None): The one that played the plan. Defaults to None: no search found it.
    """

    plan: PruningPlan
    reward: float
    history: History
    seconds: float
    image_evaluations: dict[str, int]
    finalists: list[Finalist] = field(default_factory=list)
    objectives: Objectives | None = None
    episode: int | None = None

    @property
    def metric(self) -> float:
        """The plan's metric; it differs from :attr:`reward` if there were several objectives."""
        return self.history.stages[self.episode][-1] if self.objectives else self.reward

    @property
    def pareto(self) -> list[int]:
        """The episodes whose plans no other beats in all objectives; empty without objectives."""
        return pareto_set(self.history.outcomes)


@checked('a search')
def search(
    task: PruningTask,
    reward: Callable[[nn.Module], float],
    num_episodes: Count = 500,
    agent: dict | None = None,
    opening_lams: Sequence[Share] = (0.0, 0.5, 1.0),
    racing: Racing | dict | bool | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
    seed: int = 0,
    identity: Mapping[str, Any] | None = None,
    on_episode: Callable[[Progress], None] | None = None,
    logger: logging.Logger | None = None,
    finalists: Whole = NUM_FINALISTS,
    judge: Callable[[nn.Module], float] | None = None,
    objectives: Mapping[str, float] | None = None,
    opening_points: Whole = 10,
) -> SearchResult:
    """Search a plan; the model is dense before and after.

    Args:
        task (PruningTask): What to prune.
        reward (Callable): From the model, pruned for the moment, to a finite number, higher is better. A
            :class:`mmautodfp.rewards.Reward` may say more: the stages that a race stops at, its images, its identity.
        num_episodes (int): In all. Defaults to 500.
        agent (dict | None): Config of the agent. Defaults to None: SAC, see :class:`mmautodfp.search.SACConfig`.
        opening_lams (Sequence[float]): The first episodes play the uniform plan with these lambdas, so that the search
            never ends below it. Where there is an allocated plan, that one comes first, and these are played with
            objectives only. Defaults to (0.0, 0.5, 1.0).
        racing (Racing | dict | bool | None): Stops plans that part of the images show to be hopeless, if the reward
            has several stages. Defaults to None: in searches of 500 episodes or more.
        checkpoint (str | os.PathLike | None): File that keeps the search. Defaults to None: not kept.
        resume (bool): Go on from ``checkpoint``. Defaults to False: an earlier file of that name is put aside.
        seed (int): Seed of the agent. Defaults to 0.
        identity (Mapping | None): Further facts, JSON-able, that one who resumes must share. Defaults to None.
        on_episode (Callable | None): Told of each episode. Defaults to None.
        logger (logging.Logger | None): Defaults to None: MMEngine's current one.
        finalists (int): So many of the plans with the best rewards, distinct in widths, are judged at the end, each
            after the full pass, and the best of them is the result. Defaults to 10; 0 leaves it out.
        judge (Callable | None): Like ``reward``, on what did not reward the search. If both are of one class
            and metric, they are weighed by their images, else the judge alone decides. Defaults to None: there are no
            finalists, and the plan with the best reward is the result.
        objectives (Mapping | None): What the metric and the costs that a plan saves weigh, within the limits of the
            task, such as ``dict(metric=1, flops=0.3)``; see :class:`mmautodfp.search.objectives.Weights`. The best
            plan is the one with the highest weighted sum. A search may be resumed with other weights. Defaults to
            None: the metric alone counts.
        opening_points (int): With objectives, so many nested plans, from the limit down to the least that can be
            reached, are played after the other opening ones: the Pareto set begins with what a frontier would tell, and
            the agent sees plans of all sizes. One alone is left out. Defaults to 10.

    Raises:
        AutoDFPError: A setting is wrong, a reward is not finite, or the search to resume is missing or another one.
    """
    logger = logger or MMLogger.get_current_instance()
    path = None if checkpoint is None else Path(checkpoint)
    if resume and path is None:
        raise AutoDFPError('a search was to be resumed, but no checkpoint is named; name the file that keeps it')
    if path is not None and path.is_dir():
        raise AutoDFPError(f'a search was to be kept in {path}, but that is a folder; name a file in it')
    task.require_dense()
    told = RewardFacts.of(reward)
    # Now: an error for a judge that is not prepared must not come after the search.
    judged_by = RewardFacts.of(judge) if judge is not None and finalists else None
    saved = on_main(partial(load_search, path)) if resume else None
    racing = _read_race(racing, told.stages, objectives, num_episodes, saved, logger)
    goals = _read_objectives(objectives, task, reward, saved)
    spec = task.agent_spec(seed, [] if goals is None else goals.weights.values())
    player: Agent = build(AGENTS, agent or dict(type='SAC'), spec=spec)
    on_every_rank(lambda: task.env)
    name, digest = told.identity
    own = dict(
        reward=name,
        stages=list(told.stages) if racing else None,
        racing=asdict(racing) if racing else None,
        images=digest,
        objectives=goals and goals.identity,
        opening_lams=list(opening_lams),
        seed=seed,
        opening_points=opening_points if goals else None,
    )
    facts = task.identity | own | dict(identity or {})
    searcher = Searcher(
        task.env,
        player,
        partial(_evaluate, task, reward, in_stages=racing is not None),
        num_episodes,
        checkpoint=path if is_main_process() else None,
        identity=json.loads(json.dumps(facts, default=str)),  # a checkpoint with NumPy numbers could not be read
        report=on_episode,
        num_stages=len(told.stages) or 1,
        racing=racing,
        objectives=goals,
    )
    if saved:
        _go_on(searcher, saved, task, logger)
    elif path is not None and is_main_process() and path.exists():
        _put_aside(path, logger)
    # After the resume, which sets the widths that actions are counted from.
    lams = () if searcher.weighs_errors else opening_lams  # no weights of errors make a uniform plan
    searcher.opening = _opening(task, lams, opening_points if goals else 0, len(searcher.history))
    _warn_of_warmup(searcher, logger)
    start = time.perf_counter()
    searcher.run()
    judged: list[Finalist] = []
    if judged_by:
        finish = partial(task.undistilled.evaluate, reward=judge, final=True)
        judged = judge_finalists(searcher, finish, finalists, judged_by.identity, logger, told.images_beside(judged_by))
    history = searcher.history
    best = next((one.episode for one in judged if one.chosen), history.best)
    images = _count_images(told, racing is not None, history)
    seconds = time.perf_counter() - start
    return SearchResult(searcher.plan(best), history.rewards[best], history, seconds, images, judged, goals, best)


def _read_race(
    racing: Racing | dict | bool | None,
    stages: Sequence[int],
    objectives: Mapping[str, float] | None,
    num_episodes: int,
    saved: dict[str, Any] | None,
    logger: logging.Logger,
) -> Racing | None:
    """The race that is asked for. By default the saved search's; a new search has one if it is long."""
    require_no_race(racing, objectives)
    if objectives is not None:
        return None
    by_default = racing is None
    if by_default:
        # A search that is resumed with more episodes must stay the same search.
        racing = saved['identity'].get('racing') or False if saved else num_episodes >= LONG_SEARCH
    race = racing if isinstance(racing, Racing) else build_switched(Racing, racing, 'racing')
    if len(stages) > 1:
        return race
    if race and not by_default:
        logger.warning(
            f'racing={racing!r} was asked for, but a race needs a reward with two or more stages, and this one has '
            f'{len(stages)}; no plan is stopped'
        )
    return None


def _evaluate(task: PruningTask, reward: Callable, plan: PruningPlan, in_stages: bool) -> Generator[float, None, None]:
    if not in_stages:
        yield task.evaluate(plan, reward)
        return
    with task.apply(plan), undisturbed(task.model):  # undone when the generator is closed
        yield from reward.evaluate(task.model)


def _go_on(searcher: Searcher, saved: dict[str, Any], task: PruningTask, logger: logging.Logger) -> None:
    if len(saved['identity'].get('stages') or []) == 1:  # of an earlier version, whose race could stop nothing
        saved['identity'].update(stages=None, racing=None)
    searcher.load_state_dict(saved)
    if searcher.objectives:
        on_main(searcher.save)  # with the rewards that the present weights make
    task.follow_env()
    logger.info(f'resumed after {len(searcher.history)} episodes, best {searcher.best_reward:.4f}')


def _warn_of_warmup(searcher: Searcher, logger: logging.Logger) -> None:
    warmup = getattr(getattr(searcher.agent, 'config', None), 'warmup_episodes', 0)
    if len(searcher.opening) < searcher.num_episodes <= warmup:
        logger.warning(
            f'all {searcher.num_episodes} episodes are warm-up: the plans are random; lower agent.warmup_episodes '
            f'({warmup}) or raise num_episodes'
        )


def _count_images(told: RewardFacts, raced: bool, history: History) -> dict[str, int]:
    """As of :attr:`SearchResult.image_evaluations`."""
    if told.images is None:
        return {}
    whole = len(told.images) * len(history)
    done = sum(told.stages[len(row) - 1] for row in history.stages) if raced else whole
    return dict(done=done, without_racing=whole)


def _opening(task: PruningTask, lams: Sequence[float], num_points: int, played: int) -> list[Tensor]:
    """Actions [L, 2] of each of the first episodes: the allocated plan, if any, then uniform and nested plans."""
    opening = [torch.full((len(task.groups), 2), 0.5)] if task.allocation else []
    opening += [task.env.uniform_actions(lam) for lam in lams]
    # Not if they have been played: a reconstructor may take minutes to find the widths.
    if num_points > 1 and played < len(opening) + num_points:
        nested, _ = on_main(lambda: task.nested_widths(num_points, task.constraint.share))
        opening += [task.env.actions(widths, 0.5) for widths in nested]
    return opening


def _read_objectives(
    objectives: Mapping[str, float] | None, task: PruningTask, reward: Callable, saved: dict[str, Any] | None
) -> Objectives | None:
    if objectives is None:
        return None
    known = (saved or {}).get('objectives', {}).get('dense_metric')
    measure = lambda: as_number(task.evaluate(None, reward), 'the dense model was rewarded')
    dense_metric = partial(on_main, measure) if known is None else lambda: known
    return Objectives.build(objectives, task.costs, task.constraint, dense_metric)


def _put_aside(path: Path, logger: logging.Logger) -> None:
    previous = path.with_name(f'{path.stem}.{time.strftime("%Y%m%d_%H%M%S")}_{os.getpid()}{path.suffix}')
    path.replace(previous)
    logger.warning(f'{path} holds an earlier search, which is not resumed; it is now {previous}')
