"""Models that are to be exported or measured, built from their configs."""

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

from mmdet.models.backbones.csp_darknet import Focus
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmautodfp.surgery  # noqa: F401, registers Slim
from mmautodfp.runs import find_checkpoint, load_config
from mmautodfp.utils import AutoDFPError, last_line
from mmautodfp.utils.configs import size_of_tests
from mmautodfp.utils.fileio import load_json, load_weights


def load_model(
    config: str | os.PathLike, checkpoint: str | None, folder: Path, trust: bool, cfg_options: dict[str, Any] | None
) -> tuple[Config, str, nn.Module]:
    """What is exported to a folder: the config, where its weights are, and the model with them.

    Arguments and errors as of :func:`.export_onnx`.
    """
    for package in ('onnx', 'onnxruntime'):
        require(package)
    cfg = load_config(config, str(folder), 'none', cfg_options)
    checkpoint = find_checkpoint(checkpoint or cfg.get('load_from'), config)
    model = build_model(cfg)
    load_weights(model, checkpoint, trust)
    return cfg, checkpoint, model


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, with random weights, in eval mode."""
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    if not isinstance(cfg.get('model'), dict):
        raise AutoDFPError(f'{cfg.filename} was to be exported, but it has no model')
    try:
        model = MODELS.build(cfg.model)
    except AutoDFPError:
        raise
    except Exception as error:  # whatever a wrong setting leads to inside of a model
        raise AutoDFPError(f'the model of {cfg.filename} cannot be built: {last_line(error)}') from None
    model.eval()
    return model


def input_size(cfg: Config, config: Path, otherwise: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width that the run counted FLOPs with, or those of the test pipeline, or ``otherwise``."""
    with contextlib.suppress(AutoDFPError, KeyError, TypeError):
        summary = load_json(config.parent / 'summary.json', 'the summary')
        return tuple(summary['flops_input'][2:])
    found = size_of_tests(cfg) or otherwise
    if found is not None:
        return found
    raise AutoDFPError(f'{config} does not say how large its images are; name height and width with --size')


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes; YOLOX's first layer makes four of each before it convolves them."""
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d | Focus))
    return first.conv.in_channels // 4 if isinstance(first, Focus) else first.in_channels


def require(package: str, command: str = 'pip install onnx onnxruntime') -> Any:
    """Import a package that an export needs; if it is missing, an error that names the command to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise AutoDFPError(f'{package} is needed to export but is not installed; {command}') from None
