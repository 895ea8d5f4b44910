"""The pruning plan: which channels of each group are kept, as plain data."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_json, save_json

FORMAT = 2

#: The key of the groups' plans in each format.
_GROUPS = {1: 'units', 2: 'groups'}


@dataclass(frozen=True)
class GroupPlan:
    """Which channels of one group are kept.

    Attributes:
        keep (tuple[int, ...]): Kept channels, ascending.
        num_channels (int): Dense number of channels N, so that the plan cannot be applied to another width.
        lam (float): lambda of Eq. 16 in [0, 1]: 1 weighs only the cosine distance, 0 only the bias. Defaults to 0.5.
    """

    keep: tuple[int, ...]
    num_channels: int
    lam: float = 0.5

    def __post_init__(self):
        ascending = all(a < b for a, b in zip(self.keep, self.keep[1:], strict=False))
        if not self.keep or not ascending or self.keep[0] < 0 or self.keep[-1] >= self.num_channels:
            raise AutoDFPError(
                f'a plan keeps one or more ascending channels out of 0..{self.num_channels - 1}, got {list(self.keep)}'
            )
        if not 0 <= self.lam <= 1:
            raise AutoDFPError(f'lambda of a plan lies in [0, 1], got {self.lam}')

    @property
    def width(self) -> int:
        """Number of kept channels, K."""
        return len(self.keep)


@dataclass(frozen=True)
class PruningPlan:
    """Which channels of each group of a module are kept.

    Attributes:
        groups (Mapping[str, GroupPlan]): Group name to its plan, in forward order; groups that are absent stay whole.
    """

    groups: Mapping[str, GroupPlan]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        rankings: Sequence[Tensor],
        widths: Sequence[int],
        lams: Sequence[float] | float = 0.5,
    ) -> 'PruningPlan':
        """The plan that keeps each group's first-ranked channels.

        Args:
            names (Sequence[str]): Names of the groups, L of them.
            rankings (Sequence[Tensor]): [N] each, their channels in the order in which they are kept.
            widths (Sequence[int]): [L], how many of them are kept.
            lams (Sequence[float] | float): [L], lambda of each, or one for all. Defaults to 0.5.
        """
        lams = [lams] * len(names) if isinstance(lams, int | float) else lams
        groups = {}
        for name, ranking, width, lam in zip(names, rankings, widths, lams, strict=True):
            groups[name] = GroupPlan(tuple(ranking[:width].sort().values.tolist()), len(ranking), lam)
        return cls(groups)

    @property
    def widths(self) -> dict[str, int]:
        """Group name to the number of kept channels."""
        return {name: group.width for name, group in self.groups.items()}

    def to_dict(self) -> dict:
        """The plan as plain lists and numbers; :meth:`from_dict` reads it."""
        groups = {name: asdict(group) | dict(keep=list(group.keep)) for name, group in self.groups.items()}
        return dict(format=FORMAT, groups=groups)

    @classmethod
    def from_dict(cls, content: dict, source: str = 'a plan') -> 'PruningPlan':
        """Read a plan of :meth:`to_dict`, or of the older format 1; further keys are ignored.

        Args:
            content (dict): The plan as plain data.
            source (str): Where it came from, for messages. Defaults to 'a plan'.

        Raises:
            AutoDFPError: ``content`` is no plan, is of an unknown format or keeps channels that do not exist.
        """
        found = content.get('format') if isinstance(content, dict) else type(content).__name__
        if found not in (1, FORMAT):
            raise AutoDFPError(f'{source} was expected to be a pruning plan of format {FORMAT}, found {found}')
        try:
            groups = {
                name: GroupPlan(tuple(int(i) for i in group['keep']), int(group['num_channels']), float(group['lam']))
                for name, group in content[_GROUPS[found]].items()
            }
        except AutoDFPError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise AutoDFPError(f'{source} lacks what a pruning plan holds: {type(error).__name__} {error}') from None
        return cls(groups)

    def to_json(self, path: str | os.PathLike, **extra) -> None:
        """Write the plan in one step.

        Args:
            path (str | os.PathLike): File to write.
            **extra: JSON-able facts to keep beside the plan.
        """
        save_json(self.to_dict() | extra, path)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> 'PruningPlan':
        """Read a plan; raises an :class:`AutoDFPError` if the file is missing, damaged or no plan."""
        return cls.from_dict(load_json(path, 'the pruning plan'), str(path))
