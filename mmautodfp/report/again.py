"""A report made again, from nothing but a work dir."""

import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mmautodfp.errors import AutoDFPError
from mmautodfp.fileio import check_state_fits, load_tensors
from mmautodfp.latency import measure_latency
from mmautodfp.registry import HOOKS, MODELS, build
from mmautodfp.surgery import PruningPlan, Restore, apply_plan
from mmautodfp.surgery.slim import replace_tensor

from .evidence import Evidence, collect, describe_device
from .page import FOLDER, Report

LATENCY_REPEAT = 10


def remake_report(work_dir: str | os.PathLike, again: bool = False, trust_checkpoint: bool = False) -> Path:
    """Make the report of a finished run once more.

    Args:
        work_dir (str | os.PathLike): What ``tools/prune.py`` left behind.
        again (bool): Build the dense and the pruned model and look at them again, even if ``report/evidence.json``
            tells what the run saw of them. Defaults to False: only where that file is missing.
        trust_checkpoint (bool): Allow a dense checkpoint whose reading can run code in it. Defaults to False.

    Returns:
        Path: The page.

    Raises:
        AutoDFPError: The folder holds no finished run; with ``again``, a model cannot be built or loaded. Without it,
            the report says so where the models would have been looked at.
    """
    report = Report(work_dir)
    path = report.work_dir / FOLDER / 'evidence.json'
    if again or not path.is_file():
        try:
            evidence = _look_again(report, trust_checkpoint)
        except AutoDFPError as error:
            if again:
                raise
            report.missing |= dict.fromkeys(('channels', 'sizes', 'latency', 'pictures'), str(error))
            return report.write()
        measure_times(evidence, report.work_dir)
        evidence.to_json(path)
        report = Report(work_dir)
    return report.write()


def measure_times(evidence: Evidence, work_dir: str | os.PathLike) -> None:
    """Put the latency of the run's models into the evidence; ``summary.json`` and ``pruned.py`` must be there."""

    def measure() -> dict[str, float]:
        found = measure_latency(work_dir, LATENCY_REPEAT)
        return {name: seconds['module'] for name, seconds in found.items()}

    evidence.gather('latency', measure)
    evidence.device = '' if 'latency' in evidence.missing else describe_device()


def _look_again(report: Report, trust: bool) -> Evidence:
    if not report.config_file.is_file():
        raise AutoDFPError(f'the models were to be built again, but their config {report.config_file} is not there')
    cfg = Config.fromfile(report.config_file)
    hook = build(HOOKS, cfg.autodfp.to_dict() | dict(resume=False))
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(cfg.model).to('cuda' if torch.cuda.is_available() else 'cpu')
    model.eval()
    _load(model, cfg.load_from, trust)
    target = model.get_submodule(hook.module)
    plan = PruningPlan.from_json(report.work_dir / 'strategy.json')
    hook.reconstructor.ensure_fitted(target, model)
    pruned = _load_pruned(model, target, plan, report.work_dir / 'pruned.pth')
    pruned.swap()
    widths = {row['name']: row['widths'] for row in report.summary['results'] if 'widths' in row}
    settings = dict(needs_data=hook.reward.needs_data, clustering=hook.clustering)
    return collect(model, target, plan, hook.reconstructor, pruned.swap, cfg, widths, **settings)


def _load_pruned(model: nn.Module, target: nn.Module, plan: PruningPlan, checkpoint: Path) -> Restore:
    """Make a dense model the pruned one of a checkpoint, in tensors of its own."""
    restore = apply_plan(target, plan)
    for layer in model.modules():
        restore.remember(layer)
        for store in (layer._parameters, layer._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    replace_tensor(layer, name, tensor)
    _load(model, checkpoint, trust=False)
    return restore


def _load(model: nn.Module, checkpoint: str | os.PathLike, trust: bool) -> None:
    content = load_tensors(checkpoint, trust=trust)
    state = content.get('state_dict', content)
    adapt = getattr(model, 'adapt_state_dict', None)
    state = adapt(state) if adapt else state
    check_state_fits(state, model, checkpoint)
    model.load_state_dict({key.removeprefix('module.'): value for key, value in state.items()}, strict=False)
