"""Configs in MMEngine's Python style, whose types are classes and functions instead of names; and written ones."""

import ast
import contextlib
from collections.abc import Mapping
from typing import Any


def type_name(config: Mapping[str, Any]) -> str:
    """What a config describes: the bare name of its type, which may be a name with its scope or the thing itself."""
    kind = config.get('type')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def inner_dataset(config: dict) -> dict:
    """Config of a data set without what is wrapped around it."""
    while isinstance(config.get('dataset'), dict):
        config = config['dataset']
    return config


def name_nms(config: Any) -> None:
    """Name mmcv's NMS functions as mmcv looks them up.

    MMEngine writes a function down with its module, ``mmcv.ops.nms``; mmcv takes a bare ``nms`` only, so that the
    written config would not run.

    Args:
        config (Any): Config of a model, changed in place.
    """
    if isinstance(config, dict):
        if getattr(config.get('type'), '__module__', '') == 'mmcv.ops.nms':
            config['type'] = config['type'].__name__
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            name_nms(value)


def read_written(fact: Any) -> Any:
    """What was written with ``repr``, if it can be read: a dumped config has the keys of its dicts in another order."""
    if isinstance(fact, str):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(fact)
    return fact
