"""MMEngine's Runner for a config and a checkpoint; each of its ways to fail ends in one sentence."""

from collections.abc import Callable
from functools import partial
from logging import WARNING, FileHandler, Handler
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmautodfp.utils import AutoDFPError, last_line
from mmautodfp.utils.fileio import fit_state, read_state

from .data import require_images

T = TypeVar('T')


class _Runner(Runner):
    """Leaves the config for later: a run that fails must not put its own beside the results of an earlier one.

    What MMEngine logs while it is built, hundreds of lines on the config, the environment and the hooks, goes into the
    log's file alone; warnings are shown in the terminal too.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._levels: dict[Handler, int] = {}
        try:
            super().__init__(*args, **kwargs)
        finally:
            for handler, level in self._levels.items():
                handler.setLevel(level)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, FileHandler):
                self._levels[handler] = handler.level
                handler.setLevel(max(handler.level, WARNING))
        return logger

    def dump_config(self) -> None:
        pass


def build_runner(cfg: Config, trust_checkpoint: bool = False) -> Runner:
    """A runner whose ``load_from`` has been read and found to fit the model.

    Args:
        cfg (Config): Its ``load_from`` is a local file.
        trust_checkpoint (bool): Allow a checkpoint whose reading can run code in it. Defaults to False.

    Raises:
        AutoDFPError: Something of the config cannot be built, or the checkpoint does not fit.
    """
    if not isinstance(cfg.get('model'), dict):
        raise AutoDFPError(f'{cfg.filename} is to describe a model with a dict, got model={cfg.get("model")!r}')
    state = read_state(cfg.load_from, trust_checkpoint)
    on_cpu_ranks = cfg.get('launcher') == 'pytorch' and not torch.cuda.is_available()
    runner = _build(cfg, partial(_cpu_ranks_runner if on_cpu_ranks else _Runner.from_cfg, cfg))
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    fit_state(state, model, cfg.load_from)
    return runner


def run_test(runner: Runner) -> dict[str, float]:
    """Run a runner's test loop with all its hooks, and give its metrics."""
    loop = _build(runner.cfg, lambda: runner.test_loop)  # for its errors, before the search
    require_images(loop.dataloader.dataset, 'test_dataloader')
    try:
        return runner.test()
    except FileNotFoundError as error:  # that of a data loader's worker holds the worker's traceback
        raise AutoDFPError(f'a file is needed that is not there: {last_line(error)}') from None


def _build(cfg: Config, build_part: Callable[[], T]) -> T:
    try:
        return build_part()
    except AutoDFPError:
        raise
    except Exception as error:
        folder, file = Path(cfg.work_dir).absolute(), getattr(error, 'filename', None)
        if file and (Path(file).absolute().is_relative_to(folder) or folder.is_relative_to(Path(file).absolute())):
            raise AutoDFPError(
                f'{cfg.filename} was to be run in the work dir {cfg.get("work_dir")}, but a file or folder cannot be '
                f'used: {last_line(error)}; see to its rights and its disk, or name another one with --work-dir'
            ) from None
        raise AutoDFPError(
            f'{cfg.filename} does not describe what can be built: {type(error).__name__} {last_line(error)}'
        ) from None


def _cpu_ranks_runner(cfg: Config) -> Runner:
    """A distributed runner without GPUs, which mmengine's defaults for the group and the model's wrapper would need."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    runner = _Runner.from_cfg(cfg)
    runner.cfg.pop('model_wrapper_cfg')  # of this run, not of the pruned model's config
    return runner
