"""The interface for pruning from Python, without a config and without a Runner."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.logging import MMLogger
from torch import nn

from .costs import Budget, Constraint
from .frontier import Frontier, choose, frontier
from .search.run import SearchResult, search
from .search.task import PruningTask
from .surgery import PruningPlan, Restore
from .utils.settings import Count, checked, require_known

__all__ = ['Frontier', 'PruningResult', 'PruningTask', 'SearchResult', 'choose', 'frontier', 'prune', 'search']


@dataclass(frozen=True, repr=False)
class PruningResult:
    """Result of pruning a model in place.

    Attributes:
        task (PruningTask): The task, with the model.
        plan (PruningPlan): Which channels of each group are kept.
        restore (Restore): Call it to get the dense model back. If the model was pruned several times, call the last one
            first.
        layers (dict[str, dict]): Path in the target of each changed layer, to its new sizes. With them,
            :func:`mmautodfp.surgery.Slim` makes another dense model fit the pruned one's state dict; for a model that
            was pruned twice, use ``Slim(Slim(dense, first.layers), second.layers)``.
        search (SearchResult | None): The search that found the plan. Defaults to None: there was none.
    """

    task: PruningTask
    plan: PruningPlan
    restore: Restore
    layers: dict[str, dict]
    search: SearchResult | None = None

    def __repr__(self) -> str:
        costs = self.task.summary(self.plan)
        shares = (f'{name.replace("_", " ")} {cost["ratio"]:.1%}' for name, cost in costs.items() if 'ratio' in cost)
        return f'PruningResult({len(self.plan.groups)} groups; of the dense costs: {", ".join(shares)})'


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
    """Prune a model in place, with a search or without one; MMEngine's log says what is going on.

    Args:
        model (nn.Module): Trained; it is put into eval mode.
        reward (Callable | None): As of :func:`search`. Defaults to None: there is no search. The plan is then the one
            allocated by the reconstructor's error curves, or the uniform plan if it has none.
        constraint (Constraint | Budget | dict | Sequence[Budget | dict] | float | str | None): As of
            :meth:`PruningTask.build`. Defaults to None: 90 % of the target's parameters.
        target (str | Sequence[str]): As of :meth:`PruningTask.build`. Defaults to 'backbone'.
        example_input (Any): As of :meth:`PruningTask.build`. Defaults to None.
        num_episodes (int): Episodes of the search. Defaults to 500.
        search_settings (Mapping | None): Further arguments of :func:`search`. Defaults to None.
        **settings: Further arguments of :meth:`PruningTask.build`.

    Raises:
        AutoDFPError: As of :meth:`PruningTask.build` and :func:`search`.
    """
    further = dict(search_settings or {})
    require_known(search, further, 'prune')
    own = [name for name in inspect.signature(prune).parameters if name != 'settings']
    require_known(PruningTask.build, settings, 'prune', own)
    logger = MMLogger.get_current_instance()
    logger.info('channels that can be pruned are looked for, and their compensation is fitted, which can take minutes')
    task = PruningTask.build(model, target, example_input, constraint, **settings)
    logger.info(task.describe())
    found = None if reward is None else search(task, reward, num_episodes, **further)
    plan = found.plan if found else task.allocated_plan() or task.uniform_plan()
    logger.info('the plan is applied, which can take minutes')
    restore = task.apply(plan, final=True)
    result = PruningResult(task, plan, restore, restore.changes(task.module), found)
    logger.info(repr(result))
    return result
