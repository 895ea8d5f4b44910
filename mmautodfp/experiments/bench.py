"""What experiments have in common: a config's model, loaded, with its task; earlier results and searches."""

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any

from mmengine.runner import Runner

from mmautodfp.hooks import AutoDFPHook
from mmautodfp.runs import build_runner, find_checkpoint, load_search_config, prune
from mmautodfp.utils.fileio import load_json, require_same, save_json
from mmautodfp.utils.registry import HOOKS, build
from mmautodfp.utils.timing import describe_machine


def load_runner(
    config: str | os.PathLike,
    scratch: str,
    checkpoint: str | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Runner:
    """A runner whose model is loaded; it says nothing.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        scratch (str): Its work dir.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.
    """
    cfg = load_search_config(config, scratch, cfg_options=cfg_options)
    cfg.load_from = find_checkpoint(checkpoint or cfg.get('load_from'), config)
    cfg.log_level = 'ERROR'
    # The scratch folder goes, and a visualizer with a name is kept for the next runner.
    cfg.visualizer = dict(type='mmengine.Visualizer', vis_backends=[])
    with quiet():
        runner = build_runner(cfg)
        runner.load_or_resume()
    return runner


def prepare_hook(
    config: str | os.PathLike,
    scratch: str,
    checkpoint: str | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> tuple[Runner, AutoDFPHook]:
    """A runner and a hook with its task and its rewards; arguments as of :func:`load_runner`."""
    runner = load_runner(config, scratch, checkpoint, cfg_options)
    # A benchmark compares plans as they are: no image is set aside to choose among them.
    hook = build(HOOKS, runner.cfg.autodfp.to_dict() | dict(finalists=0))
    with quiet():
        hook.prepare(runner)
    return runner, hook


def take_up(known: dict[str, Any] | None, asked: dict[str, Any]) -> dict[str, Any]:
    """An earlier result to go on with, or else the settings as the beginning of one; with the machine.

    Raises:
        AutoDFPError: The earlier result was measured with other settings.
    """
    if known:
        require_same(known, asked, 'the earlier result')
    return dict(known or asked, machine=describe_machine())


def search_in(
    folder: Path, config: str | os.PathLike, episodes: int, asked: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """The summary of a search, which is run, gone on with or found finished.

    Args:
        folder (Path): Its work dir.
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        episodes (int): Of the search; one of fewer episodes goes on.
        asked (dict | None): Settings to keep as ``asked.json``, with which alone the search may go on or count as
            finished. Defaults to None: the caller has looked.
        **options: Further arguments of :func:`mmautodfp.runs.prune`.

    Raises:
        AutoDFPError: The folder holds a search with other settings, or the search cannot be run.
    """
    record, summary = folder / 'asked.json', folder / 'summary.json'
    done = load_json(summary, 'a search') if summary.is_file() else {}
    if asked is not None:
        if record.is_file():
            require_same(load_json(record, 'the settings of a search'), asked, f'the search {folder.name}')
        save_json(asked, record)
    if 'test' not in done or done['episodes'] < episodes:
        resume = (folder / 'search.pth').is_file()
        prune(config, work_dir=str(folder), episodes=episodes, resume=resume, **options)
        done = load_json(summary, 'a search')
    return done


@contextlib.contextmanager
def quiet():
    """No tables and no log lines, inside."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
