"""Pruning from Python, without a config and without a Runner."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .costs import Budget, Constraint
from .frontier import Frontier, choose, frontier
from .search.run import SearchResult, search
from .search.task import PruningTask
from .surgery import PruningPlan, Restore
from .utils.settings import Count, checked, require_known

__all__ = ['Frontier', 'PruningResult', 'PruningTask', 'SearchResult', 'choose', 'frontier', 'prune', 'search']


@dataclass(frozen=True)
class PruningResult:
    """A model that was pruned in place.

    Attributes:
        task (PruningTask): What it was pruned by.
        plan (PruningPlan): What was kept.
        restore (Restore): Brings the dense model back; of several, the last one is called first.
        layers (dict[str, dict]): Each changed layer of the target with its new sizes: with these,
            :func:`mmautodfp.surgery.Slim` makes another dense model take the pruned one's state dict. Of a model that
            was pruned twice, ``Slim(Slim(dense, first.layers), second.layers)`` does.
        search (SearchResult | None): How the plan was found; None without a search.
    """

    task: PruningTask
    plan: PruningPlan
    restore: Restore
    layers: dict[str, dict]
    search: SearchResult | None = None


@checked('prune')
def prune(
    model: nn.Module,
    reward: Callable[[nn.Module], float] | None = None,
    constraint: Constraint | Budget | dict | Sequence[Budget | dict] | float | str | None = None,
    target: str | Sequence[str] = 'backbone',
    example_input: Any = None,
    num_episodes: Count = 500,
    search_settings: Mapping[str, Any] | None = None,
    **settings: Any,
) -> PruningResult:
    """Prune a model in place, with a search or without one.

    Args:
        model (nn.Module): Trained; it is put into eval mode.
        reward (Callable | None): As of :func:`search`. Defaults to None: no search, the plan is the one that the
            reconstructor allocates, or the uniform one if it cannot tell.
        constraint (Constraint | Budget | dict | Sequence[Budget | dict] | float | str | None): As of
            :meth:`PruningTask.build`.
        target (str | Sequence[str]): Likewise. Defaults to 'backbone'.
        example_input (Any): Likewise.
        num_episodes (int): Of the search. Defaults to 500.
        search_settings (Mapping | None): Further arguments of :func:`search`. Defaults to None.
        **settings: Further arguments of :meth:`PruningTask.build`.

    Raises:
        AutoDFPError: As of :meth:`PruningTask.build` and :func:`search`.
    """
    further = dict(search_settings or {})
    for function, names in ((search, further), (PruningTask.build, settings)):
        require_known(function, names, 'prune')
    task = PruningTask.build(model, target, example_input, constraint, **settings)
    found = None if reward is None else search(task, reward, num_episodes, **further)
    plan = found.plan if found else task.allocated_plan() or task.uniform_plan()
    restore = task.apply(plan, final=True)
    return PruningResult(task, plan, restore, restore.changes(task.module), found)
