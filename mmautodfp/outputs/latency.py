"""The latency of a dense and a pruned model, measured in turns."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

from mmautodfp.graph import is_detector, samples_of
from mmautodfp.surgery import Slim
from mmautodfp.utils.fileio import load_json
from mmautodfp.utils.registry import MODELS
from mmautodfp.utils.timing import device_at_hand, median_in_turns

#: Names of what is measured, to their rows of the comparison: one of each shape.
ROWS = {
    'dense': 'dense',
    'uniform': 'uniform, same compensation',
    'allocated': 'allocated, same compensation',
    'AutoDFP': 'AutoDFP',
}


def measure_latency(run: str | os.PathLike, repeat: int = 50) -> dict[str, float]:
    """Latency of what a run pruned, dense and in the shapes of its rows.

    They take turns, so that a change of the machine's speed affects all alike. The input is a random image of the size
    that FLOPs were counted on, on the device at hand. Weights are random too: their values do not matter to the speed.
    A detector that was pruned as a whole makes boxes.

    Args:
        run (str | os.PathLike): Work dir with ``pruned.py`` and ``summary.json``.
        repeat (int): Measurements of each, of which the median is taken. Defaults to 50.

    Returns:
        dict[str, float]: Those names of :data:`ROWS` that the run has, to seconds.

    Raises:
        AutoDFPError: A file of the run is missing.
    """
    summary = load_json(Path(run) / 'summary.json', 'the summary of the run')
    known = {row['name'] for row in summary['results']}
    models = build_models(run, [name for name, row in ROWS.items() if row in known])
    image = torch.rand(summary['flops_input'], device=device_at_hand())
    calls = {name: partial(infer, model, image) for name, model in models.items()}
    return median_in_turns(calls, repeat)


def build_models(run: str | os.PathLike, names: Sequence[str]) -> dict[str, torch.nn.Module]:
    """What a run pruned, dense and in the shapes of its rows, with random weights, on the device at hand.

    Args:
        run (str | os.PathLike): Work dir with ``pruned.py`` and ``summary.json``.
        names (Sequence[str]): Of :data:`ROWS`. 'dense' needs no row.
    """
    run = Path(run)
    summary = load_json(run / 'summary.json', 'the summary of the run')
    rows = dict(dense=dict(layers={})) | {row['name']: row for row in summary['results']}
    config = Config.fromfile(run / 'pruned.py').model
    if DefaultScope.get_current_instance() is None:
        init_default_scope('mmdet')
    models = {name: Slim(dense_module(config, summary['module']), rows[ROWS[name]]['layers']) for name in names}
    for model in models.values():
        model.to(device_at_hand()).eval()
    return models


def dense_module(config: dict, module: str) -> torch.nn.Module:
    """A module as it was before its last pruning, with random weights.

    Args:
        config (dict): ``model`` of the run's ``pruned.py``.
        module (str): Path of the module; '' for the whole model.
    """
    if 'slim_type' not in config:  # a part alone, as earlier versions wrote it
        for part in module.split('.'):
            config = config[part]
        return MODELS.build(config['module'])
    *before, _ = config['layers'] if isinstance(config['layers'], list) else [config['layers']]
    return MODELS.build(dict(config, layers=before)).get_submodule(module)


@torch.inference_mode()
def infer(model: torch.nn.Module, images: torch.Tensor) -> Any:
    """What a detector finds in preprocessed images [B, C, H, W], or what another model says of them."""
    return model(images, samples_of(images), mode='predict') if is_detector(model) else model(images)
