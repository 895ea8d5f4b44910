"""Checks whether the data of a config is there, before a model is built and a search is run."""

import inspect
import os
from typing import Any

from mmengine.config import Config
from mmengine.fileio import exists

from mmautodfp.reconstruction.images import Pictures
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.configs import inner_dataset
from mmautodfp.utils.fileio import load_json
from mmautodfp.utils.registry import DATASETS, build


def require_data(cfg: Config, *splits: str) -> None:
    """Check whether splits of a config can be evaluated.

    Args:
        cfg (Config): Is not changed.
        *splits (str): Some of 'val' and 'test'.

    Raises:
        AutoDFPError: A part of the config, or a file that it names, is missing.
    """
    for split in splits:
        missing = [key for key in (f'{split}_dataloader', f'{split}_evaluator', f'{split}_cfg') if not cfg.get(key)]
        if missing:
            raise AutoDFPError(f'{cfg.filename} has no {" and no ".join(missing)}; an evaluation needs it')
        dataset = _find_dataset(cfg, split)
        if _is_own(dataset.type):
            build(DATASETS, dict(dataset))  # raises an error if something is missing
        else:
            _require_annotations(cfg, split, dataset)


def require_pictures(folder: str) -> None:
    """Raise :class:`AutoDFPError` if there is no such folder, or no picture in it."""
    Pictures(folder, scale=None, rgb=True, keep_ratio=True)


def _find_dataset(cfg: Config, split: str) -> dict:
    """Config of the data set itself, without others that wrap it."""
    loader = cfg[f'{split}_dataloader']
    if not isinstance(loader, dict):
        raise AutoDFPError(f'{split}_dataloader of {cfg.filename} is to be a dict, got {loader!r}')
    dataset = loader.get('dataset')
    if isinstance(dataset, dict):
        dataset = inner_dataset(dataset)
    if not isinstance(dataset, dict) or not dataset.get('type'):
        found = f'a dict of {", ".join(map(str, dataset))}' if isinstance(dataset, dict) else repr(dataset)
        raise AutoDFPError(f'{split}_dataloader.dataset of {cfg.filename} is to be a dict with a type, got {found}')
    return dataset


def _is_own(kind: str | type) -> bool:
    name = kind.__module__ if inspect.isclass(kind) else str(kind)  # a class in configs of MMEngine's Python style
    return name.startswith('mmautodfp.')


def _require_annotations(cfg: Config, split: str, dataset: dict) -> None:
    evaluators = cfg[f'{split}_evaluator']
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    if not all(isinstance(evaluator, dict) for evaluator in evaluators):
        raise AutoDFPError(f'{split}_evaluator of {cfg.filename} is to be a dict or a list of them, got {evaluators!r}')
    root, file = dataset.get('data_root') or '', dataset.get('ann_file') or ''
    others = [evaluator.get('ann_file') or '' for evaluator in evaluators]
    if not all(isinstance(path, str) for path in (root, file, *others)):
        raise AutoDFPError(
            f'data_root and ann_file of {split}_dataloader.dataset and {split}_evaluator are to be paths, check '
            f'{cfg.filename}'
        )
    files = [(f'{split}_dataloader.dataset', os.path.join(root, file))]
    files += [(f'{split}_evaluator', path) for path in others]
    for name, path in files:
        if path and not exists(path, backend_args=dataset.get('backend_args')):
            raise AutoDFPError(
                f'{name} names the annotations {path}, but there is no such file; put the data there or set '
                'data_root and ann_file'
            )
    for path, name in {path: name for name, path in files if str(path).endswith('.json')}.items():
        if os.path.isfile(path):
            load_json(path, f'the annotation file of {name}')  # tells of a damaged one


def require_images(dataset: Any, name: str) -> None:
    """Look whether the images of a data set are there, without reading them.

    Args:
        dataset (Any): One that does not tell its files is not looked at.
        name (str): Whose it is to the user, such as 'test_dataloader'.

    Raises:
        AutoDFPError: A file is missing.
    """
    if not hasattr(dataset, 'get_data_info'):
        return
    paths = [dataset.get_data_info(index).get('img_path') for index in range(len(dataset))]
    missing = [index for index, path in enumerate(paths) if isinstance(path, str) and not os.path.exists(path)]
    if not missing:
        return
    try:
        dataset[missing[0]]  # images may lie elsewhere than on this machine
    except Exception:  # a storage may fail in any way
        raise AutoDFPError(
            f'{len(missing)} of the {len(paths)} images that {name} names cannot be found, first {paths[missing[0]]}; '
            'put the data there or set data_root and data_prefix'
        ) from None
