"""Choosing a point of a frontier: the best within limits."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmautodfp.search import History
from mmautodfp.search.run import SearchResult
from mmautodfp.search.task import PruningTask
from mmautodfp.utils import AutoDFPError

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
        limits (dict[str, str]): What it was chosen by, as it was asked for.
        source (str): Where the frontier came from, for messages.
    """

    frontier: Frontier
    index: int
    limits: dict[str, str]
    source: str = 'the frontier'

    @property
    def point(self) -> Point:
        """What was measured of it."""
        return self.frontier.points[self.index]

    def describe(self) -> dict[str, Any]:
        """It as plain data."""
        return dict(file=self.source, point=self.index, limits=self.limits)

    def found_for(self, task: PruningTask) -> SearchResult:
        """The point as if a search of no episodes had found it.

        Raises:
            AutoDFPError: The task has another model, or other settings that the pruned model depends on.
        """
        asked = frontier_identity(task)
        self.frontier.require(asked, list(asked), self.source)
        return SearchResult(self.frontier.plan(self.index), self.point.metric, History(), 0.0, {})


def choose(frontier: Frontier, limits: Mapping[str, str], source: str | os.PathLike = 'the frontier') -> Choice:
    """The point with the best metric on the reward's images within all limits; with a least metric alone, the cheapest.

    Held-out images are not looked at. Of points that are alike the narrowest is taken.

    Args:
        frontier (Frontier): With one point or more.
        limits (Mapping[str, str]): One or more of 'max_params', 'max_flops', 'max_latency', 'max_memory' and
            'min_metric', to a quantity such as '25M', '120G', '40ms', '500MB' or '0.37', or to a percentage of the
            dense model's, such as '60%'. Costs are of the whole model.
        source (str | os.PathLike): Where the frontier came from, for messages. Defaults to 'the frontier'.

    Raises:
        AutoDFPError: A limit is no quantity, its cost was not measured, or no point is within the limits; the message
            names the range that can be reached.
    """
    points = frontier.points
    if not points or not limits:
        missing = 'no point has been measured yet' if not points else 'no limit was named'
        raise AutoDFPError(f'a point was to be chosen from {source}, but {missing}; name one of {", ".join(LIMITS)}')
    within = range(len(points))
    for name, text in limits.items():
        values, bound, show = _read(frontier, name, text, source)
        able = [index for index in within if (values[index] >= bound if name == METRIC else values[index] <= bound)]
        if not able:
            held = [f'{_option(other)} {limits[other]}' for other in limits if other != name]
            among = f' within {" and ".join(held)}' if len(within) < len(points) else ''
            least, most = (show(end([values[index] for index in within])) for end in (min, max))
            raise AutoDFPError(
                f'{_option(name)} {text} was asked for, but the points of {source}{among} reach from {least} to '
                f'{most}; ask for something in this range'
            )
        within = able
    if set(limits) == {METRIC}:
        index = max(within)  # the narrowest
    else:
        index = max(within, key=lambda index: (points[index].metric, index))
    return Choice(frontier, index, dict(limits), str(source))


def _option(name: str) -> str:
    return f'--{name.replace("_", "-")}'


def _read(
    frontier: Frontier, name: str, text: str, source: str | os.PathLike
) -> tuple[list[float], float, Callable[[float], str]]:
    """What a limit is on, point by point; the limit; and how values of its kind are told. Shares where it is one."""
    if name not in LIMITS:
        raise AutoDFPError(f'a point was to be chosen by {name}, but there are {", ".join(LIMITS)}')
    points, kind = frontier.points, name.partition('_')[2]
    if kind != 'metric' and kind not in frontier.costs():
        raise AutoDFPError(
            f'{_option(name)} was asked for, but the points of {source} tell {", ".join(frontier.costs())} alone'
        )
    share, bound = (True, float(text[:-1]) / 100) if text.endswith('%') else (False, float(text))
    if kind == 'metric':
        dense = points[0].metric
        values = [point.metric / dense if share else point.metric for point in points]
    else:
        values = [point.cost(kind)['ratio' if share else 'count'] for point in points]
    return values, bound, (lambda value: f'{value:.1%}') if share else (lambda value: f'{value:.4g}')
