"""Measuring a frontier: one fit, then point after point; each is saved as soon as it is measured."""

import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.logging import MMLogger
from torch import nn

from mmautodfp.search import on_main, share_out
from mmautodfp.search.example import call_whole
from mmautodfp.search.reward_facts import RewardFacts
from mmautodfp.search.searcher import as_number
from mmautodfp.search.task import PruningTask
from mmautodfp.search.undisturbed import undisturbed
from mmautodfp.surgery import Restore
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.settings import TwoOrMore, checked
from mmautodfp.utils.timing import describe_machine, minutes_of, seconds_of

from .points import FURTHER, Frontier, Point

NUM_POINTS = 21  # steps of 5 %, the dense model included
MIN_ROUNDS, MAX_ROUNDS, ENOUGH = 7, 50, 1.0  # of a latency; after so many seconds the least number is enough


@checked('a frontier')
def frontier(
    task: PruningTask,
    reward: Callable[[nn.Module], float],
    held_out: Callable[[nn.Module], float] | None = None,
    num_points: TwoOrMore = NUM_POINTS,
    file: str | os.PathLike | None = None,
    about: Mapping[str, Any] | None = None,
    logger: logging.Logger | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Frontier:
    """Measure nested plans from the dense model down; the model is dense before and after.

    Every plan gets the full pass, so what is measured is what a point is when it is pruned later, except that a
    distillation would follow then. Latency is measured in turns with the dense model's, if the task has an example
    input.

    Args:
        task (PruningTask): What to prune. The costs that its limits are on fall in even steps; where the limits lie
            does not matter.
        reward (Callable): From the model, pruned for the moment, to a finite number, higher is better. Points are
            chosen by it.
        held_out (Callable | None): The same on images that nothing is chosen by. Defaults to None: not measured.
        num_points (int): Points in all, 2 or more, see :meth:`.PruningTask.nested_widths`. Defaults to 21.
        file (str | os.PathLike | None): JSON file for the points, with a CSV file beside it; each point is written when
            it is measured, and points that the file holds are not measured again. Defaults to None: nothing is
            written.
        about (Mapping | None): Further facts, JSON-able, for readers of the file. A file that exists gets those that it
            lacks. Defaults to None.
        logger (logging.Logger | None): Defaults to None: MMEngine's current one.
        identity (Mapping | None): Further facts, JSON-able, that must be the same when the file is gone on with.
            Defaults to None.

    Raises:
        AutoDFPError: There are too few points, a reward is not finite, or the file holds another frontier.
    """
    if file is not None and Path(file).is_dir():
        raise AutoDFPError(f'a frontier was to be kept in {file}, but that is a folder; name a file in it')
    if file is not None and Path(file).suffix == '.csv':
        raise AutoDFPError(f'a frontier was to be kept in {file}, which is the name of its table; let it end in .json')
    task = task.undistilled
    task.require_dense()
    logger = logger or MMLogger.get_current_instance()
    found = on_main(lambda: _begin(task, _facts(task, reward, held_out, num_points, identity), file, about))
    if not found.about['allocated']:
        logger.info(
            f'{type(task.reconstructor).__name__} does not tell which widths it would choose: the points are uniform '
            'plans'
        )
    if found.points:
        logger.info(f'{len(found.points)} of {len(found.path)} points are known from {file}')
    ranks, took = get_world_size(), []
    for first in range(len(found.points), len(found.path), ranks):
        start = time.perf_counter()
        indices = range(first, min(first + ranks, len(found.path)))
        new = share_out([partial(_measure, task, found, index, reward, held_out) for index in indices])
        found.points += [_on_one_scale(point, (found.points or new)[0]) for point in new]
        if file is not None:
            on_main(lambda: found.save(file))
        took.append(time.perf_counter() - start)
        rounds = -(-(len(found.path) - len(found.points)) // ranks)
        for index in indices:
            logger.info(_line(found, index, statistics.mean(took) * rounds))
    return found


def frontier_identity(task: PruningTask) -> dict[str, Any]:
    """What the pruned model of a plan depends on, as plain data."""
    known = task.identity
    return {name: known[name] for name in ('weights', 'target', 'groups', 'reconstructor')}


def _facts(
    task: PruningTask,
    reward: Callable[[nn.Module], float],
    held_out: Callable[[nn.Module], float] | None,
    num_points: int,
    further: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What points depend on, as JSON would give it back."""
    facts = frontier_identity(task) | dict(
        channel_divisor=task.constraint.channel_divisor,
        p_min_and_p_max=[task.ratios.low, task.ratios.high],
        budget=[[budget.metric, budget.scope] for budget in task.constraint.budgets],
        reward=RewardFacts.of(reward).identity,
        held_out_images=held_out and RewardFacts.of(held_out).identity,
        number_of_points=num_points,
        input=[cost(cost.dense) for cost in task.costs.flops.values()],
        machine=describe_machine(),  # latencies of two machines cannot be compared
    )
    return json.loads(json.dumps(facts | ({FURTHER: dict(further)} if further else {}), default=str))


def _begin(
    task: PruningTask, identity: dict[str, Any], file: str | os.PathLike | None, about: Mapping[str, Any] | None
) -> Frontier:
    """The frontier that the file holds, or one without points."""
    if file is None or not Path(file).is_file():
        names, rankings = [group.name for group in task.groups], [ranking.tolist() for ranking in task.rankings]
        path, chosen = task.nested_widths(identity['number_of_points'])
        return Frontier(names, rankings, path, identity, dict(about or {}, allocated=chosen))
    found = Frontier.load(file)
    if FURTHER in identity:  # which earlier versions did not write
        found.identity.setdefault(FURTHER, identity[FURTHER])
    found.require(identity, file)
    lacking = {name: fact for name, fact in (about or {}).items() if name not in found.about}
    if lacking:  # another caller began the file
        found.about |= lacking
        found.save(file)
    return found


def _measure(
    task: PruningTask,
    found: Frontier,
    index: int,
    reward: Callable[[nn.Module], float],
    held_out: Callable[[nn.Module], float] | None,
) -> Point:
    start, widths = time.perf_counter(), found.path[index]
    # No full pass for the dense model: it could only do harm.
    restore = Restore() if widths == task.dense_widths else task.apply(found.plan(index), final=True)
    with restore:
        told = f'point {index} of the frontier was rewarded'
        with undisturbed(task.model):
            metric = as_number(reward(task.model), told)
            other = None if held_out is None else as_number(held_out(task.model), f'{told} on held-out images')
        latency = _latency(task, restore)
    return Point(widths, metric, other, task.costs.summary(widths) | latency, time.perf_counter() - start)


@torch.inference_mode()
def _latency(task: PruningTask, restore: Restore) -> dict[str, dict]:
    """The 'latency' of a point, measured in turns with the dense model's; empty without an example input."""
    if task.example_input is None:
        return {}
    call = partial(call_whole, task.model, task.example_input)
    rounds: list[list[float]] = []
    begun = time.perf_counter()
    # The first three rounds are slower. Short calls are measured more often: they vary more.
    while len(rounds) < 3 + MIN_ROUNDS or (len(rounds) < 3 + MAX_ROUNDS and time.perf_counter() - begun < ENOUGH):
        rounds.append([])
        for _ in ('dense', 'pruned'):
            restore.swap()
            rounds[-1].append(seconds_of(call))
    seconds = statistics.median(dense for dense, _ in rounds[3:])
    ratio = statistics.median(pruned / dense for dense, pruned in rounds[3:])
    return dict(latency=dict(count=round(1e9 * ratio * seconds), ratio=ratio))


def _on_one_scale(point: Point, dense: Point) -> Point:
    """The point, its latency computed from the dense point's and its ratio: the machine's speed may have changed."""
    if 'latency' not in point.costs:
        return point
    ratio = 1.0 if point.widths == dense.widths else point.costs['latency']['ratio']
    latency = dict(count=round(ratio * dense.costs['latency']['count']), ratio=ratio)
    return replace(point, costs=point.costs | dict(latency=latency))


def _line(found: Frontier, index: int, eta: float) -> str:
    point = found.points[index]
    costs = '  '.join(f'{name} {point.cost(name)["ratio"]:4.0%}' for name in found.costs())
    held_out = '' if point.held_out is None else f'  held-out {point.held_out:.4f}'
    name = found.about.get('metric', 'metric')
    return (
        f'point {index + 1}/{len(found.path)}  {costs}  {name} {point.metric:.4f}{held_out}  {point.seconds:.1f} s  '
        f'eta {minutes_of(eta)}'
    )
