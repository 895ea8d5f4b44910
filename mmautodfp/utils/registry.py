"""The project's registries in the scope ``mmautodfp``: children of mmengine's, and some of its own.

A config names an object with its scope, ``type='mmautodfp.AutoDFPHook'``; mmengine then imports it by itself.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

from .errors import AutoDFPError
from .settings import check_arguments

T = TypeVar('T')

HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmautodfp', locations=['mmautodfp.hooks'])
MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmautodfp', locations=['mmautodfp.surgery', 'mmautodfp.zoo'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmautodfp', locations=['mmautodfp.zoo'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mmautodfp', locations=['mmautodfp.zoo'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='mmautodfp', locations=['mmautodfp.zoo'])
# How a search chooses its actions: SAC, RandomSearch, CMAES.
AGENTS = Registry('agent', scope='mmautodfp', locations=['mmautodfp.search'])
# How pruned channels are made up for: SimilarityReconstructor, SyntheticLeastSquares, NeuronMerging, PruneOnly.
RECONSTRUCTORS = Registry('reconstructor', scope='mmautodfp', locations=['mmautodfp.reconstruction'])
# What is limited: ParamBudget, FlopBudget, LatencyBudget, MemoryBudget.
BUDGETS = Registry('budget', scope='mmautodfp', locations=['mmautodfp.costs'])
# What a pruned model is worth: CocoReward, AccuracyReward, SyntheticReward.
REWARDS = Registry('reward', scope='mmautodfp', locations=['mmautodfp.rewards'])


def build(registry: Registry, config: dict, **extra: Any) -> Any:
    """Build an object from its config; mistakes in it end in one sentence.

    Args:
        registry (Registry): One of this module's.
        config (dict): ``type`` and arguments.
        **extra: Further arguments; those of ``config`` override them.

    Raises:
        AutoDFPError: The type is unknown, or an argument is, or one has the wrong type.
    """
    if not isinstance(config, dict):
        raise AutoDFPError(f"a {registry.name} is described by a dict such as dict(type='...'), got {config!r}")
    arguments = dict(config)
    name = arguments.pop('type', None)
    cls = name if inspect.isclass(name) else registry.get(name) if isinstance(name, str) and name else None
    if cls is None:
        raise AutoDFPError(
            f'{registry.name} type {name!r} is not known; known are {", ".join(sorted(registry.module_dict))}'
        )
    try:
        inspect.signature(cls).bind(**(extra | arguments))
    except TypeError as error:
        known = ', '.join(inspect.signature(cls).parameters)
        raise AutoDFPError(
            f'{registry.name} {name!r} was asked for, but {error}; its arguments are {known} '
            "(a base config's settings for another type stay unless _delete_=True is among yours)"
        ) from None
    check_arguments(cls, arguments, f'{registry.name} {getattr(cls, "__name__", name)!r}')
    return cls(**(extra | arguments))


def build_settings(cls: Callable[..., T], settings: Mapping[str, Any] | None, what: str, **defaults: Any) -> T:
    """Build a group of settings, a class of :func:`mmautodfp.utils.settings.settings`, from its part of a config.

    Args:
        cls (Callable): The class of the settings.
        settings (Mapping | None): Its arguments; None for none.
        what (str): What the group is to the user, such as 'images'.
        **defaults: Further arguments; those of ``settings`` override them.

    Raises:
        AutoDFPError: ``settings`` is no mapping, or one of them is unknown or not as ``cls`` takes it.
    """
    if settings is not None and not isinstance(settings, Mapping):
        known = ', '.join(inspect.signature(cls).parameters)
        raise AutoDFPError(f'{what} takes a dict of settings, got {settings!r}; known are {known}')
    return cls(**(defaults | dict(settings or {})))


def build_switched(cls: Callable[..., T], settings: Mapping[str, Any] | bool | None, what: str) -> T | None:
    """As :func:`build_settings`, for something optional: True stands for its defaults, False for None."""
    return None if settings is False else build_settings(cls, None if settings is True else settings, what)
