"""Building the models that are to be exported or measured from their configs."""

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
    """Load the model that is to be exported into a folder; arguments as of :func:`.export_onnx`.

    Returns:
        tuple[Config, str, nn.Module]: The config, the checkpoint's file or URL, and the model in eval mode.

    Raises:
        AutoDFPError: onnx or onnxruntime is missing, or the config or the checkpoint cannot be used.
    """
    for package in ('onnx', 'onnxruntime'):
        require(package)
    cfg = load_config(config, str(folder), 'none', cfg_options)
    checkpoint = find_checkpoint(checkpoint or cfg.get('load_from'), config)
    model = build_model(cfg)
    load_weights(model, checkpoint, trust)
    return cfg, checkpoint, model


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config, with random weights and in eval mode.

    Raises:
        AutoDFPError: The config has no model, or it cannot be built.
    """
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    if not isinstance(cfg.get('model'), dict):
        raise AutoDFPError(f'{cfg.filename} was to be exported or measured, but it has no model')
    try:
        model = MODELS.build(cfg.model)
    except AutoDFPError:
        raise
    except Exception as error:  # a model may raise anything for a wrong setting
        raise AutoDFPError(f'the model of {cfg.filename} cannot be built: {last_line(error)}') from None
    model.eval()
    return model


def input_size(cfg: Config, otherwise: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of the images of a model.

    They are those that the run counted FLOPs on; without a summary of a run, those of the test pipeline; else
    ``otherwise``.

    Args:
        cfg (Config): The config of the model; ``summary.json`` of the run is beside its file.
        otherwise (tuple[int, int] | None): Defaults to None: an error is raised instead.

    Raises:
        AutoDFPError: None of them is known.
    """
    with contextlib.suppress(AutoDFPError, KeyError, TypeError):
        summary = load_json(Path(cfg.filename).parent / 'summary.json', 'the summary')
        return tuple(summary['flops_input'][2:])
    found = size_of_tests(cfg) or otherwise
    if found is not None:
        return found
    raise AutoDFPError(
        f'{cfg.filename or "the config"} does not say how large its images are; name height and width with --size'
    )


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes, from its first convolution; YOLOX's reads four times as many.

    Raises:
        AutoDFPError: It has no convolution.
    """
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d | Focus)), None)
    if first is None:
        raise AutoDFPError(f'a model of images was expected, but the {type(model).__name__} has no convolution')
    return first.conv.in_channels // 4 if isinstance(first, Focus) else first.in_channels


def require(package: str, command: str = 'pip install onnx onnxruntime') -> Any:
    """Import a package that an export needs; if it is missing, raise an :class:`AutoDFPError` with ``command``."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise AutoDFPError(f'{package} is needed to export but is not installed; {command}') from None
