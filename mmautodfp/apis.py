"""What the command-line tools do, callable from Python."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.config import Config
from mmengine.fileio import exists
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.hub import download_url_to_file, get_dir

from .errors import AutoDFPError
from .fileio import check_state_fits, load_tensors, pickle_allowed
from .registry import DATASETS, HOOKS, build

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
        _require_data(cfg, 'val', 'test')
    cfg.load_from = find_checkpoint(checkpoint or cfg.get('load_from'), config)
    runner = build_runner(cfg, trust_checkpoint)
    runner.register_hook(hook)
    with pickle_allowed(trust_checkpoint):  # mmengine reads the checkpoint once more
        return _test(runner) if hook.reward.needs_data else _prune_without_data(runner, hook)


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
    _require_data(cfg, 'test')
    cfg.load_from = find_checkpoint(checkpoint, config)
    runner = build_runner(cfg, trust_checkpoint)
    with pickle_allowed(trust_checkpoint):
        return _test(runner)


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


def _require_data(cfg: Config, *splits: str) -> None:
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


def last_line(error: Exception) -> str:
    """The end of an error's message, which is where mmengine and torch say what was wrong."""
    return (str(error).strip().splitlines() or [''])[-1].strip()


def _test(runner: Runner) -> dict[str, float]:
    _build(runner.cfg, lambda: runner.test_loop)  # now, not after the search
    try:
        return runner.test()
    except FileNotFoundError as error:  # from a worker of the data loader it comes with the worker's traceback
        reason = str(error).strip().splitlines()[-1]
        raise AutoDFPError(f'a file is needed that is not there: {reason}') from None


def find_checkpoint(source: str | None, config: str | os.PathLike) -> str:
    """A local path; URLs are fetched into torch's cache, once."""
    if not source:
        raise AutoDFPError(f'a checkpoint is needed: name one on the command line or as load_from in {config}')
    if not isinstance(source, str):
        raise AutoDFPError(f'load_from in {config} names a checkpoint by its path or URL, got {source!r}')
    if urlparse(source).scheme not in ('http', 'https'):
        return source
    path = Path(get_dir()) / 'checkpoints' / Path(urlparse(source).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            digest = re.search(r'-([0-9a-f]{8,})\.\w+$', path.name)  # OpenMMLab puts it into the name
            download_url_to_file(source, str(path), hash_prefix=digest[1] if digest else None)
        except (URLError, OSError, RuntimeError) as error:
            raise AutoDFPError(
                f'checkpoint {source} cannot be fetched ({error}); fetch it by other means and name the file'
            ) from None
    return str(path)


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


def read_state(checkpoint: str, trust_checkpoint: bool = False) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint; an :class:`AutoDFPError` if it holds none."""
    content = load_tensors(checkpoint, trust=trust_checkpoint)
    state = content.get('state_dict', content)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise AutoDFPError(f"checkpoint {checkpoint} holds no 'state_dict'; found {', '.join(map(str, content))}")
    return state


def adapt_state(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict under the model's own names; a classifier takes those of a bare network too."""
    adapt = getattr(model, 'adapt_state_dict', None)
    return adapt(state) if adapt else state


def _cpu_ranks_runner(cfg: Config) -> Runner:
    """A distributed runner without GPUs; mmengine's defaults ask for one, for the group and for the model's wrapper."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    runner = Runner.from_cfg(cfg)
    runner.cfg.pop('model_wrapper_cfg')  # of this run, not of the pruned model's config
    return runner
