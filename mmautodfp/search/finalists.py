"""Finalists: the best plans of a search, judged once more after the full pass, to choose one of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mmengine.dist import get_world_size

from mmautodfp.surgery import PruningPlan

from .history import History
from .ranks import on_main, share_out
from .searcher import Searcher, as_number

NUM_FINALISTS = 10


@dataclass(frozen=True)
class Finalist:
    """One of the best plans of a search, judged after the full pass.

    Attributes:
        episode (int): The one that played it, from 0.
        reward (float): Its reward in the search.
        metric (float): What the judge said; with several objectives the utility with that metric.
        together (float): Mean of the two, weighted with their numbers of images; ``metric`` alone if reward and judge
            cannot be compared.
        chosen (bool): Whether it is the best of them.
    """

    episode: int
    reward: float
    metric: float
    together: float
    chosen: bool


def best_episodes(history: History, count: int) -> list[int]:
    """The episodes with the highest rewards, best first; of those with the same widths only the best, or earliest.

    Plans that a race stopped are left out: their rewards are predictions.

    Args:
        history (History): Of one episode or more.
        count (int): How many, if there are as many.
    """
    complete = max(map(len, history.stages))
    whole = [episode for episode in range(len(history)) if len(history.stages[episode]) == complete]
    distinct: dict[tuple[int, ...], int] = {}
    for episode in sorted(whole, key=lambda episode: -history.rewards[episode]):
        distinct.setdefault(tuple(history.widths[episode]), episode)
    return list(distinct.values())[:count]


def judge_finalists(
    searcher: Searcher,
    evaluate: Callable[[PruningPlan | None], float],
    count: int,
    judge: Sequence[Any],
    logger: logging.Logger,
    num_images: tuple[int, int],
) -> list[Finalist]:
    """Judge the best plans of a search that has ended; those whose figures its checkpoint holds are not judged again.

    In a distributed run each rank takes one at a time. All ranks must call it.

    The judge's few images alone often rank two good plans wrongly. So the reward counts too, though it was measured
    before the full pass: each counts by its number of images.

    Args:
        searcher (Searcher): Saves each figure in its checkpoint as soon as it is known.
        evaluate (Callable): Gives the judge's figure of a plan after the full pass, or for None, of the dense model.
        count (int): How many plans, if as many differ in widths.
        judge (Sequence): Identity of the judge, as plain data: kept figures of another judge do not count.
        logger (logging.Logger): Gets the table.
        num_images (tuple[int, int]): Of the reward and of the judge; (0, 1): the judge alone decides.

    Returns:
        list[Finalist]: By falling reward. The one with the best mean of both is chosen, of equal ones the first. Empty
        if there are fewer than two.

    Raises:
        AutoDFPError: The judge gives no finite number.
    """
    episodes = best_episodes(searcher.history, count)
    if len(episodes) < 2:
        return []
    if searcher.judged.get('judge') != list(judge):
        searcher.judged = dict(judge=list(judge), metrics={})
    metrics: dict[int, float] = searcher.judged['metrics']
    missing, ranks = [episode for episode in episodes if episode not in metrics], get_world_size()
    logger.info(f'{len(missing)} of the {len(episodes)} best plans are to be finished and judged')
    for first in range(0, len(missing), ranks):
        batch = missing[first : first + ranks]
        metrics.update(zip(batch, share_out([partial(_judge, searcher, evaluate, one) for one in batch]), strict=True))
        on_main(searcher.save)
    worth, rewards = metrics, searcher.history.rewards
    if searcher.objectives:
        worth = _utilities(searcher, evaluate)
    seen, judged = num_images
    together = {one: (seen * rewards[one] + judged * worth[one]) / (seen + judged) for one in episodes}
    chosen = max(episodes, key=together.__getitem__)
    found = [Finalist(one, rewards[one], worth[one], together[one], chosen=one == chosen) for one in episodes]
    logger.info('\n'.join(_table(found)))
    return found


def _judge(searcher: Searcher, evaluate: Callable[[PruningPlan], float], episode: int) -> float:
    return as_number(evaluate(searcher.plan(episode)), f'the finalist of episode {episode} was judged')


def _utilities(searcher: Searcher, evaluate: Callable[[PruningPlan | None], float]) -> dict[int, float]:
    """The utilities of the judged episodes, with the judge's metric as a share of what it says of the dense model."""
    judged, widths = searcher.judged, searcher.history.widths
    if 'dense_metric' not in judged:
        judged['dense_metric'] = on_main(lambda: as_number(evaluate(None), 'the dense model was judged'))
        on_main(searcher.save)
    objectives = replace(searcher.objectives, dense_metric=judged['dense_metric'])
    return {
        episode: objectives.utility(objectives.outcome(metric, widths[episode]))
        for episode, metric in judged['metrics'].items()
    }


def _table(found: Sequence[Finalist]) -> list[str]:
    lines = [
        'the best plans of the search, and what the judge says of them after the full pass:',
        f'{"episode":>9}{"reward":>10}{"judged":>10}{"together":>10}',
    ]
    for one in found:
        mark = '  chosen' if one.chosen else ''
        lines.append(f'{one.episode + 1:>9}{one.reward:>10.4f}{one.metric:>10.4f}{one.together:>10.4f}{mark}')
    return lines
