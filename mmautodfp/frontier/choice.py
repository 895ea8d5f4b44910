"""Choosing a point of a frontier: the best within limits."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from mmautodfp.costs import parse_limit
from mmautodfp.search import History, on_every_rank
from mmautodfp.search.run import SearchResult
from mmautodfp.search.task import PruningTask
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.command_line import option_of

from .measure import frontier_identity
from .points import COSTS, Frontier, Point

METRIC = 'min_metric'
LIMITS = (*(f'max_{name}' for name in COSTS), METRIC)


@dataclass(frozen=True)
class Choice:
    """A point of a frontier, to be pruned without a search.

    Attributes:
        frontier (Frontier): Whose point it is.
        index (int): Its place there.
        limits (dict[str, str]): The limits that it was chosen within, as given.
        source (str): Where the frontier came from, for messages.
    """

    frontier: Frontier
    index: int
    limits: dict[str, str]
    source: str = 'the frontier'

    @property
    def point(self) -> Point:
        """The point itself."""
        return self.frontier.points[self.index]

    def __str__(self) -> str:
        within = ' and '.join(f'{option_of(name)} {limit}' for name, limit in self.limits.items()) or 'no limits'
        return (
            f'point {self.index} of {self.source} is pruned, the best within {within}: '
            f'{self.frontier.about.get("metric", "metric")} {self.point.metric:.4f}'
        )

    def describe(self) -> dict[str, Any]:
        """The choice as plain data."""
        return dict(file=self.source, point=self.index, limits=self.limits)

    def found_for(self, task: PruningTask) -> SearchResult:
        """The point as the result of a search without episodes.

        Raises:
            AutoDFPError: The task has another model, or other settings that the pruned model depends on.
        """
        self.frontier.require(frontier_identity(task), self.source)
        on_every_rank(lambda: task.layer_states)  # now, of the dense model, as a search does; used after the pruning
        return SearchResult(self.frontier.plan(self.index), self.point.metric, History(), 0.0, {})


def choose(frontier: Frontier, limits: Mapping[str, str | float], source: str | os.PathLike = 'the frontier') -> Choice:
    """The point with the best metric within all limits; if ``min_metric`` is the only limit, the cheapest point.

    The metric is that on the reward's images, not on held-out ones. Of equally good points the narrowest is taken.

    Args:
        frontier (Frontier): All of its points are measured.
        limits (Mapping[str, str | float]): One or more of 'max_params', 'max_flops', 'max_latency', 'max_memory' and
            'min_metric', to a quantity such as '25M', '120G', '40ms', '500MB' or '0.37', or a percentage of the dense
            model's, such as '60%'. Costs are of the whole model.
        source (str | os.PathLike): Where the frontier came from, for messages. Defaults to 'the frontier'.

    Raises:
        AutoDFPError: A limit cannot be read, its cost was not measured, no point is within the limits (the message
            names the range of the points), or points are missing.
    """
    points = frontier.points
    if not points or not frontier.complete:
        raise AutoDFPError(
            f'a point was to be chosen from {source}, but of its {len(frontier.path)} points {len(points)} have been '
            'measured; the same command of tools/frontier.py goes on'
        )
    if not limits:
        raise AutoDFPError(
            f'a point was to be chosen from {source}, but no limit was named; name one of '
            f'{", ".join(map(option_of, LIMITS))}'
        )
    within = list(range(len(points)))
    for name, text in limits.items():
        values, bound, show = _read(frontier, name, text, source)
        able = [index for index in within if (values[index] >= bound if name == METRIC else values[index] <= bound)]
        if not able:
            before = list(limits)[: list(limits).index(name)]
            among = ' and'.join(f' {option_of(other)} {limits[other]}' for other in before)
            among = f' within{among}' if before else ''
            least, most = (end(values[index] for index in within) for end in (min, max))
            raise AutoDFPError(
                f'{option_of(name)} {text} was asked for, but the points of {source}{among} reach from '
                f'{show(least, True)} to {show(most, False)}; ask for something in this range'
            )
        within = able
    # The last one is the narrowest.
    index = max(within) if set(limits) == {METRIC} else max(within, key=lambda index: (points[index].metric, index))
    return Choice(frontier, index, {name: str(text) for name, text in limits.items()}, str(source))


def _read(
    frontier: Frontier, name: str, text: str | float, source: str | os.PathLike
) -> tuple[list[float], float, Callable[[float, bool], str]]:
    """The values that a limit is on, for each point; the limit; and how to write such a value, rounded up or down."""
    if name not in LIMITS:
        raise AutoDFPError(f'a point was to be chosen by {name}, but there are {", ".join(LIMITS)}')
    points = frontier.points
    if name == METRIC:
        return _read_metric([point.metric for point in points], text)
    cost = name.removeprefix('max_')
    if cost not in frontier.costs():
        raise AutoDFPError(
            f'{option_of(name)} was asked for, but the points of {source} tell {", ".join(frontier.costs())} alone'
        )
    limit, dense = parse_limit(text, cost), points[0].cost(cost)['count']
    values = [point.cost(cost)['count'] for point in points]
    return values, limit.of(dense), lambda value, up: limit.show(value, dense, up)


def _read_metric(values: list[float], text: str | float) -> tuple[list[float], float, Callable[[float, bool], str]]:
    """As :func:`_read`; ``values`` are the metrics of all points, the dense model's first."""
    is_share = str(text).endswith('%')
    try:
        bound = float(str(text).removesuffix('%'))
    except ValueError:
        raise AutoDFPError(
            f'{option_of(METRIC)} {text} was asked for; it takes a number such as 0.37, or a share of the dense '
            "model's metric such as 97%"
        ) from None
    if not is_share:
        return values, bound, lambda value, _: _rounded_down(value, '0.0001')
    dense = values[0]
    if dense <= 0:
        raise AutoDFPError(
            f'{option_of(METRIC)} {text} was asked for, but of a metric of {dense:g}, which the dense model has, there '
            'is no share; name a number'
        )
    # Rounded: the last digits of quotients are chance.
    shares = [round(100 * value / dense, 9) for value in values]
    return shares, bound, lambda value, _: f'{_rounded_down(value, "0.01")}%'


def _rounded_down(value: float, step: str) -> str:
    """Not more than the value, so that it can be asked for."""
    return str(Decimal(str(value)).quantize(Decimal(step), ROUND_FLOOR))
