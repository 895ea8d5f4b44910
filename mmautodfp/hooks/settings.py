"""What the hook is told: checked, and made into what the search needs."""

import inspect
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn

from mmautodfp.errors import AutoDFPError
from mmautodfp.registry import BUDGETS, build
from mmautodfp.search import Racing
from mmautodfp.surgery import Budgets, Limit

LONG_SEARCH = 500  # episodes, from which on a race pays


def check_arguments(
    module: str, opening_lams: Sequence[float], clustering: dict[str, Any], counts: dict[str, int]
) -> None:
    """Refuse arguments of the hook that nothing else checks.

    Args:
        module (str): Path of the part to prune.
        opening_lams (Sequence[float]): Lambdas of the opening.
        clustering (dict): DBSCAN's settings; may be empty.
        counts (dict[str, int]): Arguments that count something, by name.

    Raises:
        AutoDFPError: One is out of its range.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise AutoDFPError(f'AutoDFPHook was asked for {name}={value!r}; it must be an integer of 1 or more')
    if not all(0 <= lam <= 1 for lam in opening_lams):
        raise AutoDFPError(f'AutoDFPHook was asked for opening_lams={opening_lams}; each must lie in [0, 1]')
    if not set(clustering) <= {'eps', 'min_samples'}:
        raise AutoDFPError(f'clustering takes eps and min_samples, got {", ".join(clustering)}')
    eps, least = clustering.get('eps', 0.5), clustering.get('min_samples', 5)
    if not (isinstance(eps, int | float) and eps > 0 and isinstance(least, int) and least >= 1):
        raise AutoDFPError(
            f'clustering takes eps above 0 and min_samples of 1 or more, got eps={eps!r}, min_samples={least!r}'
        )
    if not module:
        raise AutoDFPError("AutoDFPHook was asked for module=''; name a part of the model, such as 'backbone'")


def build_budget(settings: dict | Sequence[dict] | None) -> Limit:
    """The limit that a config describes: one, several at once, or the default."""
    if isinstance(settings, list | tuple):
        return Budgets([build(BUDGETS, one) for one in settings])
    return build(BUDGETS, settings or dict(type='ParamBudget'))


def build_racing(settings: dict | bool | None, num_episodes: int) -> Racing | None:
    """The race that a config describes; None stands for one in a search that is long enough.

    Raises:
        AutoDFPError: :class:`mmautodfp.search.Racing` has no such setting.
    """
    if settings is None:
        settings = num_episodes >= LONG_SEARCH
    if settings is False:
        return None
    try:
        return Racing(**({} if settings is True else settings))
    except TypeError:
        known = ', '.join(inspect.signature(Racing).parameters)
        raise AutoDFPError(f'racing was asked for {settings}; it takes True, False or a dict of {known}') from None


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The submodule at a path; an :class:`AutoDFPError` names what is there if it is not."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        children = ', '.join(name for name, _ in model.named_children())
        raise AutoDFPError(
            f'module {path!r} was to be pruned, but the {type(model).__name__} has no such part; it has {children}'
        ) from None


def read_metainfo(runner: Runner, may_open: bool) -> dict[str, Any]:
    """What is known of the data set; its class and the config must do where no file may be opened."""
    if may_open:
        return runner.test_dataloader.dataset.metainfo
    loader = runner.cfg.get('test_dataloader') or {}
    dataset = loader.get('dataset') or {}
    cls = DATASETS.get(dataset['type']) if isinstance(dataset.get('type'), str) else dataset.get('type')
    return {**getattr(cls, 'METAINFO', {}), **(dataset.get('metainfo') or runner.cfg.get('metainfo') or {})}


def search_settings(cfg: Config) -> dict[str, Any]:
    """The search's settings as they can be compared with another run's."""
    return {key: value for key, value in cfg.get('autodfp', {}).items() if key != 'resume'}
