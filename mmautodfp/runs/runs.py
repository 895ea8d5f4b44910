"""What the command-line tools do, callable from Python."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import check_state_fits, pickle_allowed
from mmautodfp.utils.registry import HOOKS, build

from .checkpoints import adapt_state, find_checkpoint, read_state
from .configs import last_line, load_config, load_search_config, require_data

T = TypeVar('T')


def prune(
    config: str | os.PathLike,
    checkpoint: str | None = None,
    work_dir: str | None = None,
    preserve_ratio: float | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    resume: bool = False,
    launcher: str = 'none',
    trust_checkpoint: bool = False,
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Search a plan for a trained detector, prune it, write the result and evaluate it.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry, see ``configs/_base_/autodfp.py``.
        checkpoint (str | None): Weights of the dense model, file or URL. Defaults to the config's ``load_from``.
        work_dir (str | None): Where the results go. Defaults to the config's, else ``work_dirs/<config name>``.
        preserve_ratio (float | None): Overrides ``autodfp.budget.preserve_ratio``.
        episodes (int | None): Overrides ``autodfp.num_episodes``.
        seed (int | None): Overrides ``autodfp.seed``.
        resume (bool): Go on from ``search.pth`` in the work dir. Defaults to False.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'. Defaults to 'none'.
        trust_checkpoint (bool): Allow a checkpoint whose reading can run code in it. Defaults to False.
        cfg_options (dict | None): Further overrides, dotted keys to values.

    Returns:
        dict[str, float]: Metrics of the test loop on the pruned model; none if the reward needs no data, for then
        no data set is opened.

    Raises:
        AutoDFPError: The request cannot be met; one sentence says why.
    """
    cfg = load_search_config(config, work_dir, preserve_ratio, episodes, seed, launcher, cfg_options)
    cfg.autodfp.resume = resume or cfg.autodfp.get('resume', False)
    hook = build(HOOKS, cfg.autodfp.to_dict())
    if hook.resume and not (Path(cfg.work_dir) / 'search.pth').is_file():
        raise AutoDFPError(
            f'a search was to be resumed, but there is no search.pth in {cfg.work_dir}; leave out --resume'
        )
    others = cfg.get('custom_hooks') or []
    if not isinstance(others, list) or not all(isinstance(other, dict | Hook) for other in others):
        raise AutoDFPError(f'custom_hooks of {config} is to be a list of dicts, got {others!r}')
    # The state dict already holds the averaged weights; the hook would swap dense ones into the pruned model.
    cfg.custom_hooks = [o for o in others if 'EMAHook' not in str(o.get('type') if isinstance(o, dict) else type(o))]
    if hook.reward.needs_data:
        require_data(cfg, 'val', 'test')
    cfg.load_from = find_checkpoint(checkpoint or cfg.get('load_from'), config)
    runner = build_runner(cfg, trust_checkpoint)
    runner.register_hook(hook)
    with pickle_allowed(trust_checkpoint):  # mmengine reads the checkpoint once more
        return _test(runner) if hook.reward.needs_data else _prune_without_data(runner, hook)


def evaluate(
    config: str | os.PathLike,
    checkpoint: str,
    work_dir: str | None = None,
    launcher: str = 'none',
    trust_checkpoint: bool = False,
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Evaluate a detector, dense or pruned, on the config's test set; arguments as in :func:`prune`.

    Returns:
        dict[str, float]: Metrics of the test loop.

    Raises:
        AutoDFPError: The request cannot be met; one sentence says why.
    """
    cfg = load_config(config, work_dir, launcher, cfg_options)
    require_data(cfg, 'test')
    cfg.load_from = find_checkpoint(checkpoint, config)
    runner = build_runner(cfg, trust_checkpoint)
    with pickle_allowed(trust_checkpoint):
        return _test(runner)


def _prune_without_data(runner: Runner, hook: Hook) -> dict[str, float]:
    """What a test does to a runner, but not the test itself: it and the hooks behind it open the data set."""
    runner.call_hook('before_run')
    runner.load_or_resume()
    hook.before_test(runner)
    hook.after_test_epoch(runner)
    runner.call_hook('after_run')
    return {}


def _build(cfg: Config, build_part: Callable[[], T]) -> T:
    """Build a part of what a config describes; mmengine's many ways to fail in one sentence."""
    try:
        return build_part()
    except AutoDFPError:
        raise
    except Exception as error:
        raise AutoDFPError(
            f'{cfg.filename} does not describe what can be built: {type(error).__name__} {last_line(error)}'
        ) from None


def _test(runner: Runner) -> dict[str, float]:
    _build(runner.cfg, lambda: runner.test_loop)  # now, not after the search
    try:
        return runner.test()
    except FileNotFoundError as error:  # from a worker of the data loader it comes with the worker's traceback
        reason = str(error).strip().splitlines()[-1]
        raise AutoDFPError(f'a file is needed that is not there: {reason}') from None


def build_runner(cfg: Config, trust_checkpoint: bool = False) -> Runner:
    """A runner whose ``load_from`` has been read and found to fit the model."""
    if not isinstance(cfg.get('model'), dict):
        raise AutoDFPError(f'{cfg.filename} is to describe a model with a dict, got model={cfg.get("model")!r}')
    state = read_state(cfg.load_from, trust_checkpoint)
    if cfg.get('launcher') == 'pytorch' and not torch.cuda.is_available():
        runner = _cpu_ranks_runner(cfg)
    else:
        runner = _build(cfg, lambda: Runner.from_cfg(cfg))
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    check_state_fits(adapt_state(state, model), model, cfg.load_from)
    return runner


def _cpu_ranks_runner(cfg: Config) -> Runner:
    """A distributed runner without GPUs; mmengine's defaults ask for one, for the group and for the model's wrapper."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    runner = Runner.from_cfg(cfg)
    runner.cfg.pop('model_wrapper_cfg')  # of this run, not of the pruned model's config
    return runner
