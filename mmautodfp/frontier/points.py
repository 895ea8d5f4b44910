"""A frontier as data: its points, and the files that keep them."""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmautodfp.search import pareto_set
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.configs import read_written
from mmautodfp.utils.fileio import load_json, save_json, save_text
from mmautodfp.utils.settings import Count, check_arguments

FORMAT = 1
#: Name of a cost in limits and pictures, to its name in a point.
COSTS = dict(params='model_params', flops='model_flops', latency='latency', memory='model_memory')
#: Costs that are counted, not measured: they follow from the widths alone.
COUNTED = ('params', 'flops', 'memory')
#: Key of an identity for the caller's own facts, which are compared one by one.
FURTHER = 'further'

_UNITS = dict(latency='_ns', memory='_bytes')  # of the columns of the table


@dataclass(frozen=True)
class Point:
    """A plan that was applied with the full pass, and measured.

    Attributes:
        widths (list[int]): [L], channels that the groups keep.
        metric (float): Metric on the images of the reward, by which points are chosen.
        held_out (float | None): Metric on the held-out images; None if there are none.
        costs (dict[str, dict]): 'model_params', 'module_flops' and so on, as in ``summary.json``; and 'latency', as
            measured, of the whole model in nanoseconds. Each is a ``count`` and its ``ratio`` to the dense one.
        seconds (float): How long pruning and measuring took.
    """

    widths: list[Count]
    metric: float
    held_out: float | None
    costs: dict[str, dict[str, float]]
    seconds: float

    def cost(self, name: str) -> dict | None:
        """Count and ratio of one of :data:`COSTS`; None if it is not known."""
        return self.costs.get(COSTS[name])


@dataclass
class Frontier:
    """Nested plans of a model and their figures, the dense model first.

    Attributes:
        groups (list[str]): Names of the groups, L of them.
        rankings (list[list[int]]): [N] each, channels in the order in which they stay.
        path (list[list[int]]): [P, L], widths of all points, measured or not.
        identity (dict): What the points depend on: weights, settings, images, machine.
        about (dict): Further facts for readers of the files, such as the metric's name.
        points (list[Point]): The measured ones, in the order of the path.
    """

    groups: list[str]
    rankings: list[list[int]]
    path: list[list[Count]]
    identity: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether all points are measured."""
        return len(self.points) == len(self.path)

    def plan(self, index: int) -> PruningPlan:
        """The plan of a point."""
        rankings = [torch.tensor(ranking) for ranking in self.rankings]
        return PruningPlan.of(self.groups, rankings, self.path[index])

    def costs(self) -> list[str]:
        """Which of :data:`COSTS` the points have."""
        return [name for name in COSTS if self.points and self.points[0].cost(name) is not None]

    def dominated(self) -> list[bool]:
        """For each point, whether another has no higher cost, and a better metric, or the same and a lower cost.

        Latency does not count: plans are nested, so a narrower one takes longer by chance only.
        """
        names = [name for name in COUNTED if name in self.costs()]
        worth = [(point.metric, *(-point.cost(name)['count'] for name in names)) for point in self.points]
        best = {worth[index] for index in pareto_set(worth)}
        return [values not in best for values in worth]

    def save(self, path: str | os.PathLike) -> None:
        """Write ``path`` and, beside it, the same points as a table (CSV); each in one step."""
        points = [
            asdict(point) | dict(dominated=dominated)
            for point, dominated in zip(self.points, self.dominated(), strict=True)
        ]
        save_json(asdict(self) | dict(format=FORMAT, points=points), path)
        save_text(self._table(), Path(path).with_suffix('.csv'))

    def _table(self) -> str:
        text, names = io.StringIO(), self.costs()
        writer = csv.writer(text, lineterminator='\n')
        heads = [f'{name}{unit}' for name in names for unit in (_UNITS.get(name, ''), '_ratio')]
        writer.writerow(['point', 'metric', 'held_out', *heads, 'dominated', 'seconds'])
        for index, (point, dominated) in enumerate(zip(self.points, self.dominated(), strict=True)):
            costs = [point.cost(name)[key] for name in names for key in ('count', 'ratio')]
            writer.writerow([index, point.metric, point.held_out, *costs, int(dominated), round(point.seconds, 2)])
        return text.getvalue()

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'Frontier':
        """Read what :meth:`save` wrote.

        Raises:
            AutoDFPError: The file is missing, damaged, no frontier or another version's.
        """
        content = load_json(path, 'the frontier')
        found = content.get('format') if isinstance(content, Mapping) and 'path' in content else None
        if found != FORMAT:
            raise AutoDFPError(
                f'{path} was expected to be a frontier of format {FORMAT}, found '
                f'{"none" if found is None else f"format {found}"}; name the frontier.json that tools/frontier.py wrote'
            )
        try:
            points = [Point(**{k: v for k, v in row.items() if k != 'dominated'}) for row in content['points']]
            made = cls(*(content[name] for name in ('groups', 'rankings', 'path', 'identity', 'about')), points)
            for point in points:
                check_arguments(Point, vars(point), f'a point of {path}')
                for cost in point.costs.values():
                    cost['count'], cost['ratio']
        except (KeyError, TypeError, AttributeError) as error:
            raise AutoDFPError(f'{path} lacks what a frontier holds: {type(error).__name__} {error}') from None
        check_arguments(cls, vars(made), str(path))
        if [point.widths for point in points] != made.path[: len(points)]:
            raise AutoDFPError(f'{path} holds points of other widths than its path; delete it, and measure them anew')
        if wrong := made._find_wrong():
            raise AutoDFPError(f'{path} is damaged: {wrong}; delete it, and measure the points anew')
        return made

    def _find_wrong(self) -> str | None:
        """In what its parts, each of the right type, contradict each other."""
        sizes = list(map(len, self.rankings))
        if len(sizes) != len(self.groups):
            return f'it has {len(self.groups)} groups and {len(sizes)} rankings'
        if any(sorted(ranking) != list(range(size)) for ranking, size in zip(self.rankings, sizes, strict=True)):
            return 'a ranking does not name each channel of its group once'
        if not self.path or self.path[0] != sizes:
            return 'its path does not begin with all channels'
        if any(len(widths) != len(sizes) or any(map(int.__gt__, widths, sizes)) for widths in self.path):
            return 'its path has widths that its rankings do not allow'
        if self.identity.get('groups') not in (None, dict(zip(self.groups, sizes, strict=True))):
            return 'its groups are not those that its points were measured with'
        kinds = {frozenset(point.costs) for point in self.points}
        if len(kinds) > 1 or any(COSTS['params'] not in costs for costs in kinds):
            return f'some of its points lack costs that others have, or {COSTS["params"]}'
        if 'allocated' not in self.about:
            return 'about.allocated is missing'
        if not isinstance(self.identity.get(FURTHER, {}), dict):
            return 'identity.further is no dict'
        return None

    def require(self, asked: Mapping[str, Any], source: str | os.PathLike) -> None:
        """Refuse the points if they were measured with something else.

        Args:
            asked (Mapping): What the identity is to be, as plain data; keys that it does not name are not compared.
            source (str | os.PathLike): Where the points came from, for the message.

        Raises:
            AutoDFPError: Something differs; it is named.
        """
        different = [name for name, value in asked.items() if self.identity.get(name) != value]
        different = [name.replace('_', ' ') for name in different if name != FURTHER]
        if FURTHER in asked:
            known, wanted = self.identity[FURTHER], asked[FURTHER]
            different += [
                name for name in known | wanted if read_written(known.get(name)) != read_written(wanted.get(name))
            ]
        if different:
            others = ' and other '.join(different[:3]) + (' and more' if len(different) > 3 else '')
            raise AutoDFPError(
                f'{source} was measured with other {others} than what is asked for now; name another work dir '
                'for another frontier, or ask for what it was measured with'
            )
