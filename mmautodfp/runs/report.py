"""Making a report again, from a work dir alone."""

import os
from pathlib import Path

from jinja2 import UndefinedError
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmautodfp.api import PruningTask
from mmautodfp.graph import join_path
from mmautodfp.hooks import read_settings
from mmautodfp.outputs.report import Evidence, Report, collect, measure_times
from mmautodfp.outputs.report.page import FOLDER
from mmautodfp.surgery import PruningPlan, Restore, apply_plan, replace_tensor
from mmautodfp.utils import AutoDFPError, in_one_line
from mmautodfp.utils.fileio import fit_state, load_weights, read_state
from mmautodfp.utils.registry import MODELS, REWARDS, build
from mmautodfp.utils.timing import device_at_hand

# Errors that JSON which was changed by hand may lead to.
EDITED = (LookupError, TypeError, ValueError, AttributeError, UndefinedError)


def remake_report(work_dir: str | os.PathLike, again: bool = False, trust_checkpoint: bool = False) -> Path:
    """Make the report of a finished run once more.

    Args:
        work_dir (str | os.PathLike): What ``tools/prune.py`` left behind.
        again (bool): Build the dense and the pruned model and measure them again, even if ``report/evidence.json``
            holds what the run measured. Defaults to False: only if that file is missing.
        trust_checkpoint (bool): Allow a dense checkpoint whose reading can run code in it. Defaults to False.

    Returns:
        Path: The page.

    Raises:
        AutoDFPError: The folder holds no finished run, or a file of it was changed; with ``again``, a model cannot be
            built or loaded. Without ``again``, the report says so in its place.
    """
    try:
        return _remake(work_dir, again, trust_checkpoint)
    except AutoDFPError:
        raise
    except EDITED as error:
        raise AutoDFPError(
            f'the report of {work_dir} was to be made from its files, but summary.json, or another of them, is not as '
            f'a run leaves it ({in_one_line(error)}); put back what was changed, or run again to make it anew'
        ) from error


def _remake(work_dir: str | os.PathLike, again: bool, trust_checkpoint: bool) -> Path:
    report = Report(work_dir)
    path = report.work_dir / FOLDER / 'evidence.json'
    if again or not path.is_file():
        try:
            evidence = _look_again(report, trust_checkpoint)
        except AutoDFPError as error:
            if again:
                raise
            report.miss(str(error))
            return report.write()
        measure_times(evidence, report.work_dir)
        evidence.to_json(path)
        report = Report(work_dir)
    return report.write()


def _look_again(report: Report, trust: bool) -> Evidence:
    if not report.config_file.is_file():
        raise AutoDFPError(f'the models were to be built again, but their config {report.config_file} is not there')
    cfg = Config.fromfile(report.config_file)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    model = MODELS.build(cfg.model).to(device_at_hand())
    model.eval()
    load_weights(model, cfg.load_from, trust)
    told = read_settings(cfg.autodfp.to_dict())
    task = PruningTask.build(
        model,
        told.target,
        constraint=1.0,
        reconstructor=told.reconstructor,
        allocate=False,
        clustering=told.clustering,
        residual_streams=told.residual_streams,
    )
    plan = PruningPlan.from_json(report.work_dir / 'strategy.json')
    pruned = load_pruned(task, plan, report.work_dir / 'pruned.pth')
    pruned.swap()
    widths = {row['name']: row['widths'] for row in report.summary['results']}
    return collect(task, plan, pruned.swap, cfg, widths, build(REWARDS, told.reward).needs_data)


def load_pruned(task: PruningTask, plan: PruningPlan, checkpoint: Path) -> Restore:
    """Turn a task's dense model into the pruned one of a checkpoint; its dense tensors are kept for the way back."""
    restore = apply_plan(task.module, plan, groups=task.groups)
    state, device = fit_state(read_state(checkpoint), task.model, checkpoint), next(task.model.parameters()).device
    for path, layer in task.model.named_modules():
        restore.remember(layer)
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            new = state.get(join_path(path, name), tensor)  # a bias may be new
            if new is not None:
                replace_tensor(layer, name, new.to(device))
    return restore
