"""Configs as the command line names them, with its overrides put in and what is missing told at once."""

import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import exists

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import DATASETS, build


def load_config(
    config: str | os.PathLike, work_dir: str | None, launcher: str, cfg_options: dict[str, Any] | None
) -> Config:
    """Read a config and put in what the command line says; errors in one sentence."""
    if not Path(config).is_file():
        raise AutoDFPError(f'config {config} was asked for, but there is no such file')
    try:
        cfg = Config.fromfile(config)
        cfg.merge_from_dict(cfg_options or {})
    except Exception as error:  # a config is a program, and may fail in any way
        raise AutoDFPError(f'config {config} cannot be read: {type(error).__name__} {last_line(error)}') from None
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise AutoDFPError('--launcher pytorch was asked for, but this process was not started by torchrun; use it')
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(config).stem}'
    return cfg


def load_search_config(
    config: str | os.PathLike,
    work_dir: str | None = None,
    preserve_ratio: float | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    launcher: str = 'none',
    cfg_options: dict[str, Any] | None = None,
) -> Config:
    """A config with the overrides that :func:`prune` takes.

    Raises:
        AutoDFPError: It cannot be read, or has no settings of a search.
    """
    cfg = load_config(config, work_dir, launcher, cfg_options)
    if not isinstance(cfg.get('autodfp'), dict):
        raise AutoDFPError(
            f"{config} was to be pruned, but it has no 'autodfp' entry; put '_base_/autodfp.py' among its bases"
        )
    if preserve_ratio is not None and isinstance(cfg.autodfp.get('budget'), list | tuple):
        raise AutoDFPError(
            f'--preserve-ratio sets the limit of one budget, but {config} has {len(cfg.autodfp.budget)}; '
            'set each with --cfg-options autodfp.budget.0.preserve_ratio=...'
        )
    overrides = {'budget.preserve_ratio': preserve_ratio, 'num_episodes': episodes, 'seed': seed}
    cfg.merge_from_dict({f'autodfp.{key}': value for key, value in overrides.items() if value is not None})
    return cfg


def require_data(cfg: Config, *splits: str) -> None:
    """Miss annotation files before a model is built and a search is run, not after."""
    for split in splits:
        missing = [key for key in (f'{split}_dataloader', f'{split}_evaluator', f'{split}_cfg') if not cfg.get(key)]
        if missing:
            raise AutoDFPError(f'{cfg.filename} has no {" and no ".join(missing)}; an evaluation needs it')
        if not isinstance(cfg[f'{split}_dataloader'], dict):
            raise AutoDFPError(
                f'{split}_dataloader of {cfg.filename} is to be a dict, got {cfg[f"{split}_dataloader"]!r}'
            )
        dataset = cfg[f'{split}_dataloader'].get('dataset')
        if not isinstance(dataset, dict) or not dataset.get('type'):
            found = f'a dict of {", ".join(map(str, dataset))}' if isinstance(dataset, dict) else repr(dataset)
            raise AutoDFPError(f'{split}_dataloader.dataset of {cfg.filename} is to be a dict with a type, got {found}')
        while isinstance(dataset.get('dataset'), dict):  # wrapped
            dataset = dataset.dataset
        if str(dataset.get('type')).startswith('mmautodfp.'):
            build(DATASETS, dataset.to_dict())  # says itself what it misses
            continue
        evaluators = cfg[f'{split}_evaluator']
        evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
        if not all(isinstance(evaluator, dict) for evaluator in evaluators):
            raise AutoDFPError(
                f'{split}_evaluator of {cfg.filename} is to be a dict or a list of them, got {evaluators!r}'
            )
        if not isinstance(dataset.get('ann_file') or '', str) or not isinstance(dataset.get('data_root') or '', str):
            raise AutoDFPError(
                f'data_root and ann_file of {split}_dataloader.dataset are to be paths, check {cfg.filename}'
            )
        files = {
            f'{split}_dataloader.dataset': os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
        }
        files |= {f'{split}_evaluator': evaluator.get('ann_file') for evaluator in evaluators}
        for name, file in files.items():
            if file and not exists(file, backend_args=dataset.get('backend_args')):
                raise AutoDFPError(
                    f'{name} names the annotations {file}, but there is no such file; put the data there or set '
                    'data_root and ann_file'
                )


def last_line(error: Exception) -> str:
    """The end of an error's message, which is where mmengine and torch say what was wrong."""
    return (str(error).strip().splitlines() or [''])[-1].strip()
