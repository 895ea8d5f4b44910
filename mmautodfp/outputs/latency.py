"""How long a dense and a pruned model take, measured side by side."""

import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

from mmautodfp.surgery import shrink
from mmautodfp.utils.fileio import load_json
from mmautodfp.utils.registry import MODELS
from mmautodfp.utils.timing import median_in_turns

#: Rows of a comparison that are measured, one of each shape.
ROWS = {
    'dense': 'dense',
    'uniform': 'uniform, same compensation',
    'allocated': 'allocated, same compensation',
    'AutoDFP': 'AutoDFP',
}


def measure_latency(run: str | os.PathLike, repeat: int = 50) -> dict[str, dict[str, float]]:
    """Latency of the models of a run, in turns, so that a change of pace meets all alike.

    One random image of the size that FLOPs were counted with, on the device at hand, with the weights' values left
    random: they do not matter to the pruned module's speed.

    Args:
        run (str | os.PathLike): Work dir with ``pruned.py`` and ``summary.json``.
        repeat (int): Measurements of each, of which the median counts. Defaults to 50.

    Returns:
        dict[str, dict[str, float]]: Names of :data:`ROWS` that the run has, to ``module``, seconds of the module.

    Raises:
        AutoDFPError: A file of the run is missing.
    """
    run = Path(run)
    summary = load_json(run / 'summary.json', 'the summary of the run')
    widths = {row['name']: row['widths'] for row in summary['results']}
    module = Config.fromfile(run / 'pruned.py').model
    for part in summary['module'].split('.'):
        module = module[part]
    shape = summary['flops_input']
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    models = {name: _build(module, widths[row], device) for name, row in ROWS.items() if row in widths}
    image = torch.rand(shape, device=device)
    calls = {name: lambda model=model: model(image) for name, model in models.items()}
    return {name: dict(module=seconds) for name, seconds in median_in_turns(calls, repeat).items()}


def _build(module: dict, widths: dict[str, int], device: str) -> torch.nn.Module:
    if DefaultScope.get_current_instance() is None:
        init_default_scope('mmdet')
    model = MODELS.build(module.module).to(device)
    shrink(model, widths)
    model.eval()  # mmdet's ResNet returns None
    return model
