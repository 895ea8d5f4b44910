"""A config's model, loaded, and its task, ready to be measured."""

import contextlib
import io
import logging
import os
from typing import Any

from mmengine.runner import Runner

from mmautodfp.hooks import AutoDFPHook
from mmautodfp.runs import build_runner, find_checkpoint, load_search_config
from mmautodfp.utils.registry import HOOKS, build


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
