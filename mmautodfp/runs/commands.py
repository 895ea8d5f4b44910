"""What ``tools/prune.py`` and ``tools/test.py`` do, callable from Python."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.command_line import option_of
from mmautodfp.utils.fileio import claimed, pickle_allowed
from mmautodfp.utils.registry import HOOKS, build

from .checkpoints import find_checkpoint
from .configs import add_settings, load_config, override_settings, require_other_folder, use_pictures
from .data import require_data, require_pictures
from .frontier import require_model, take_point
from .runner import build_runner, run_test


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
    search: bool = False,
    from_frontier: str | None = None,
    limits: Mapping[str, str] | None = None,
    images: str | None = None,
) -> dict[str, float]:
    """Prune a trained detector, after a search or without one, write the result and evaluate it.

    Args:
        config (str | os.PathLike): Config file, or the name of one of ours. Without an ``autodfp`` entry it is pruned
            as ``configs/_base_/zero_data.py`` says: without data and without a search.
        checkpoint (str | None): Weights of the dense model, file or URL. Defaults to the config's ``load_from``.
        work_dir (str | None): Where the results go. Defaults to the config's, else ``work_dirs/<config name>``.
        preserve_ratio (float | None): Overrides ``autodfp.budget.preserve_ratio``.
        episodes (int | None): Overrides ``autodfp.num_episodes``.
        seed (int | None): Overrides ``autodfp.seed``.
        resume (bool): Go on from ``search.pth`` in the work dir. Defaults to False.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'. Defaults to 'none'.
        trust_checkpoint (bool): Allow a checkpoint whose reading can run code in it. Defaults to False.
        cfg_options (dict | None): Further overrides, dotted keys to values.
        search (bool): A config without an ``autodfp`` entry is pruned as ``configs/_base_/autodfp.py`` says: with a
            search that is rewarded on its val images. Defaults to False.
        from_frontier (str | None): A ``frontier.json``, of which a point is pruned without a search. Defaults to None.
        limits (Mapping[str, str] | None): Which point, see :func:`mmautodfp.frontier.choose`. Defaults to None.
        images (str | None): Folder of pictures, annotated or not, that least squares are learned on. Defaults to None:
            drawn images.

    Returns:
        dict[str, float]: Metrics of the test loop on the pruned model; empty if the reward needs no data: then no data
        set is opened.

    Raises:
        AutoDFPError: The request cannot be met; one sentence says why.
    """
    cfg = load_config(config, work_dir, launcher, cfg_options)
    _require_sense(
        from_frontier, limits, dict(preserve_ratio=preserve_ratio, episodes=episodes, resume=resume, search=search)
    )
    choice = None if from_frontier is None else take_point(cfg, from_frontier, limits or {})
    settings = 'autodfp' if search else 'zero_data'
    added = add_settings(cfg, settings)
    if search and not added:
        raise AutoDFPError(
            f"--search is for configs without settings, but {config} has an 'autodfp' entry; leave out --search"
        )
    options = cfg_options or {}
    budget = options.get('autodfp.budget')
    limited = 'autodfp.budget.limit' in options or (isinstance(budget, dict) and 'limit' in budget)
    if preserve_ratio is not None and limited:
        raise AutoDFPError('--preserve-ratio and autodfp.budget.limit both set the limit; leave out one of them')
    override_settings(cfg, preserve_ratio, episodes, seed)
    if images is not None:
        use_pictures(cfg, images)
        require_pictures(images)
    cfg.autodfp.resume = resume or cfg.autodfp.get('resume', False)
    hook = build(HOOKS, cfg.autodfp.to_dict())
    hook.choice, hook.trusted = choice, trust_checkpoint
    if hook.settings.resume and not (Path(cfg.work_dir) / 'search.pth').is_file():
        raise AutoDFPError(
            f'a search was to be resumed, but there is no search.pth in {cfg.work_dir}; leave out --resume'
        )
    others = cfg.get('custom_hooks') or []
    if not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
        raise AutoDFPError(f'custom_hooks of {config} is to be a list of dicts, got {others!r}')
    # The state dict already holds the averaged weights; an EMAHook would put dense ones into the pruned model.
    cfg.custom_hooks = [other for other in others if 'EMAHook' not in str(other.get('type'))]
    if hook.reward.needs_data:
        require_data(cfg, 'val', 'test')
    require_other_folder(cfg, kept=hook.settings.resume)  # a search goes on with the config that its run has kept
    cfg.load_from = find_checkpoint(checkpoint or cfg.get('load_from'), config)
    with claimed(cfg.work_dir) if launcher == 'none' else nullcontext():  # ranks share it
        runner = build_runner(cfg, trust_checkpoint)
        if choice is not None:
            require_model(choice, cfg)
        if added:
            data = 'no data' if images is None else f'no data but the pictures in {images}'
            searched = 'a search without annotations' if hook.settings.num_episodes > 1 else 'no search'
            how = 'a search on its val images' if search else f'{data} and {searched} (--search: one on its val images)'
            runner.logger.info(f"{config} has no 'autodfp' entry, so it gets configs/_base_/{settings}.py: {how}")
        runner.register_hook(hook)
        with pickle_allowed(trust_checkpoint):  # mmengine reads the checkpoint once more
            return run_test(runner) if hook.reward.needs_data else _prune_without_data(runner, hook)


def _require_sense(from_frontier: str | None, limits: Mapping[str, str] | None, of_a_search: Mapping[str, Any]) -> None:
    if from_frontier is None and limits:
        first = option_of(next(iter(limits)))
        raise AutoDFPError(f'{first} chooses a point of a frontier; name it with --from-frontier')
    given = [option_of(name) for name, value in of_a_search.items() if value not in (None, False)]
    if from_frontier is not None and given:
        raise AutoDFPError(f'--from-frontier prunes what has been measured, without a search; leave out {given[0]}')


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
        return run_test(runner)


def _prune_without_data(runner: Runner, hook: Hook) -> dict[str, float]:
    """Do what a test does, but for the test loop itself, which would open the data set."""
    runner.call_hook('before_run')
    runner.load_or_resume()
    hook.before_test(runner)
    hook.after_test_epoch(runner)
    runner.call_hook('after_run')
    return {}
