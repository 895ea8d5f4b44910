"""Reading configs: with types as names or, in MMEngine's Python style, as classes and functions; and written ones."""

import ast
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


def type_name(config: Mapping[str, Any]) -> str:
    """The bare name of a config's type, which may be a name with its scope, a class or a function."""
    kind = config.get('type')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def inner_dataset(config: dict) -> dict:
    """Config of the data set itself, without others that wrap it."""
    while isinstance(config.get('dataset'), dict):
        config = config['dataset']
    return config


def dicts_in(config: Any) -> Iterator[dict]:
    """A config and all dicts in it, each before those inside of it; they may be changed meanwhile."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            yield from dicts_in(value)


def forget_weights(config: Any) -> None:
    """Remove weights from which a model is initialised, ``init_cfg`` and ``pretrained``, from its config, in place."""
    for part in dicts_in(config):
        for name in ('init_cfg', 'pretrained'):
            if part.get(name):
                part[name] = None


def name_nms(config: Any) -> None:
    """Replace mmcv's NMS functions in a model's config, in place, with their bare names, such as ``nms``.

    MMEngine writes a function down with its module, ``mmcv.ops.nms``, which mmcv does not find: the config that a run
    leaves would not work.
    """
    for part in dicts_in(config):
        if getattr(part.get('type'), '__module__', '') == 'mmcv.ops.nms':
            part['type'] = part['type'].__name__


def read_written(fact: Any) -> Any:
    """Undo ``repr`` where that works: two written dicts may have the same keys in another order."""
    if isinstance(fact, str):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(fact)
    return fact


def scale_of_tests(cfg: Mapping[str, Any]) -> tuple[tuple[int, int] | None, bool]:
    """Width and height that a config's test images are resized to, and whether their ratio is kept.

    Of several sizes it is the middle one; if the pipeline tells none, it is None.
    """
    from mmdet.utils import get_test_pipeline_cfg

    # A classifier may have no pipeline, and others report a wrong one.
    with contextlib.suppress(RuntimeError, AttributeError, TypeError):
        for step in get_test_pipeline_cfg(cfg):
            if 'Resize' not in str(step.get('type')):
                continue
            sizes = step.get('scales') or [step.get('scale') or (step.get('width'), step.get('height'))]
            if isinstance(sizes[0], tuple | list) and isinstance(sizes[0][0], tuple | list):
                sizes = sizes[0]
            size = sizes[len(sizes) // 2]
            if isinstance(size, int):  # as Resize takes it, and ResizeShortestEdge
                size = (step.get('max_size') or size, size)
            if isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, int) for side in size):
                return tuple(size), step.get('keep_ratio', 'max_size' in step)
    return None, True


def size_of_tests(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of a config's test images, with padding; None if its pipeline tells none.

    Images that keep their ratio are assumed to be in landscape format and as large as possible.
    """
    scale, keep_ratio = scale_of_tests(cfg)
    if scale is None:
        return None
    divisor = ((cfg.get('model') or {}).get('data_preprocessor') or {}).get('pad_size_divisor', 1)
    height, width = sorted(scale) if keep_ratio else reversed(scale)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor
