"""Exporting a pruned model as ONNX: compared with torch, and timed in turns with the dense model.

``tools/export_onnx.py`` runs it.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import torch
from mmdet.models.detectors import BaseDetector, SingleStageDetector
from mmengine.config import Config
from mmengine.logging import print_log
from pydantic import Field
from torch import Tensor, nn

from mmautodfp.utils import AutoDFPError, first_line
from mmautodfp.utils.configs import type_name
from mmautodfp.utils.fileio import atomic_path, save_json
from mmautodfp.utils.settings import Count, checked
from mmautodfp.utils.timing import describe_machine, median_in_turns

from .models import build_model, input_channels, input_size, load_model, require

Opset = Annotated[int, Field(ge=11)]
TOLERANCE = 1e-4  # largest error, relative to the largest value of an output


class Part(nn.Module):
    """A model, or its first layers, as a function from preprocessed images to tensors.

    Args:
        name (str): 'backbone_neck', 'detector' or 'classifier'.
        model (nn.Module): The whole model, in eval mode.
        run (Callable): From images [B, C, H, W] to a tensor, or to lists or tuples of tensors, also nested.
        words (Sequence[str]): Names of the outermost items that ``run`` returns. Defaults to none: their numbers.
    """

    def __init__(self, name: str, model: nn.Module, run: Callable[[Tensor], Any], words: Sequence[str] = ()):
        super().__init__()
        self.name = name
        self.model = model
        self.words = words
        self._run = run
        self.eval()  # the exporter would put it, and the model in it, back into training mode

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor for _, tensor in self.named_outputs(images))

    def named_outputs(self, images: Tensor) -> list[tuple[str, Tensor]]:
        """Outputs for ``images`` [B, C, H, W], each with its name."""
        return list(_flatten(self._run(images), self.words))


def _flatten(values: Any, words: Sequence[str], name: str = '') -> Iterator[tuple[str, Tensor]]:
    if isinstance(values, Tensor):
        yield name or 'output', values
        return
    for index, value in enumerate(values):
        word = words[index] if index < len(words) else str(index)
        yield from _flatten(value, (), f'{name}_{word}' if name else word)


@checked('an export')
def export_onnx(
    config: str | os.PathLike,
    checkpoint: str | None = None,
    work_dir: str | None = None,
    size: tuple[Count, Count] | None = None,
    batch: Count = 1,
    opset: Opset = 17,
    repeat: Count = 20,
    trust_checkpoint: bool = False,
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a model's parts as ONNX files with dynamic batch and size, and ``export.json``.

    Args:
        config (str | os.PathLike): The ``pruned.py`` of a run; the config of any other model of MMEngine works too.
        checkpoint (str | None): Its weights, file or URL. Defaults to the config's ``load_from``.
        work_dir (str | None): Where the files go. Defaults to ``onnx`` beside the config.
        size (tuple[int, int] | None): Height and width to check and time at. Defaults to None: those that the run
            counted FLOPs with, else those of the config's test pipeline.
        batch (int): Images to check and time with. Defaults to 1.
        opset (int): Version of ONNX's operators, 11 or later. Defaults to 17.
        repeat (int): Measurements of each latency, of which the median is taken. Defaults to 20.
        trust_checkpoint (bool): Allow a checkpoint whose reading can run code in it. Defaults to False.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.

    Returns:
        dict[str, Any]: Content of ``export.json``: for each part the file, its outputs, its errors (see
        :func:`check_onnx`), and bytes, parameters and seconds on a processor of the pruned and, if it differs, the
        dense model.

    Raises:
        AutoDFPError: A number is out of its range, onnx or onnxruntime is missing, the model cannot be built, loaded or
            written, or a file does not agree with torch.
    """
    folder = Path(work_dir or Path(config).parent / 'onnx')
    cfg, checkpoint, pruned = load_model(config, checkpoint, folder, trust_checkpoint, cfg_options)
    dense_config = _without_slim(cfg.model.to_dict())
    dense = build_model(Config(dict(cfg, model=dense_config))) if dense_config != cfg.model.to_dict() else None
    shape = (batch, input_channels(pruned), *(size or input_size(cfg)))
    report = dict(config=str(config), checkpoint=str(checkpoint), input=list(shape), opset=opset, parts={})
    for part in parts_of(pruned):
        twin = next((other for other in parts_of(dense) if other.name == part.name), None) if dense else None
        report['parts'][part.name] = _export_part(part, twin, folder, shape, opset, repeat)
    report['machine'] = describe_machine()
    report['versions'] = {name: require(name).__version__ for name in ('onnx', 'onnxruntime')}
    save_json(report, folder / 'export.json')
    for line in table(report, folder, type(pruned).__name__):
        print_log(line)
    return report


def parts_of(model: nn.Module) -> list[Part]:
    """The parts of a model that can be exported.

    A detector has 'backbone_neck', and if it has a single stage, also 'detector' with the outputs of its head for each
    level, before boxes are decoded and suppressed. Any other model is a 'classifier'.
    """
    if not isinstance(model, BaseDetector):
        return [Part('classifier', model, lambda images: model(images, mode='tensor'), ('logits',))]
    parts = [Part('backbone_neck', model, lambda images: [model.extract_feat(images)], ('feats',))]
    if isinstance(model, SingleStageDetector):
        words = tuple(signature(model.bbox_head.loss_by_feat).parameters)
        parts.append(Part('detector', model, lambda images: model(images, mode='tensor'), words))
    return parts


def _export_part(
    part: Part, dense: Part | None, folder: Path, shape: Sequence[int], opset: int, repeat: int
) -> dict[str, Any]:
    path = folder / f'{part.name}.onnx'
    with atomic_path(path) as scratch:
        outputs = write_onnx(part, scratch, shape, opset)
        checked = check_onnx(part, scratch, shape)
    with tempfile.TemporaryDirectory() as unused:
        models = dict(pruned=(part, path))
        if dense is not None:  # with random weights, which do not matter to size and latency
            models = dict(dense=(dense, Path(unused) / 'dense.onnx'), **models)
            write_onnx(*models['dense'], shape, opset)
        images = torch.rand(shape)
        calls: dict[str, Callable[[], Any]] = {}
        for name, (model, file) in models.items():
            calls[f'{name} torch'] = partial(model, images)
            calls[f'{name} onnxruntime'] = partial(open_session(file).run, None, dict(images=images.numpy()))
        seconds = median_in_turns(calls, repeat)
        figures = {
            name: dict(
                bytes=file.stat().st_size,
                params=sum(p.numel() for p in _used(model)),
                seconds={engine: seconds[f'{name} {engine}'] for engine in ('torch', 'onnxruntime')},
            )
            for name, (model, file) in models.items()
        }
    return dict(file=path.name, outputs=outputs, checked=checked, **figures)


def _used(part: Part) -> list[nn.Parameter]:
    """Parameters of the layers that a part runs."""
    if part.name != 'backbone_neck':
        return list(part.model.parameters())
    modules = [part.model.backbone, *([part.model.neck] if part.model.with_neck else [])]
    return [parameter for module in modules for parameter in module.parameters()]


def write_onnx(part: Part, path: Path, shape: Sequence[int], opset: int = 17) -> list[str]:
    """Write a part as ONNX with dynamic batch, height and width.

    Args:
        part (Part): What to write.
        path (Path): The file.
        shape (Sequence[int]): Shape [B, C, H, W] of the images to trace with.
        opset (int): Version of ONNX's operators. Defaults to 17.

    Returns:
        list[str]: Names of the outputs. The input is called ``images``.

    Raises:
        AutoDFPError: The part does not take images of this shape, or an operator cannot be written.
    """
    images = torch.rand(tuple(shape))
    try:
        with torch.inference_mode():
            outputs = part.named_outputs(images)
    except RuntimeError as error:
        raise AutoDFPError(
            f'the {part.name} does not take images of shape {list(images.shape)}, with which it was to be exported '
            f'({first_line(error)}); name the height and width that it takes with --size'
        ) from None
    axes = {'images': {0: 'batch', 2: 'height', 3: 'width'}}
    for name, tensor in outputs:
        axes[name] = {0: 'batch'} | ({2: f'{name}_height', 3: f'{name}_width'} if tensor.ndim == 4 else {})
    names = [name for name, _ in outputs]
    # The newer exporter, the default from torch 2.9 on, puts the weights into a second file with the temporary name.
    tracer = dict(dynamo=False) if 'dynamo' in signature(torch.onnx.export).parameters else {}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')  # of the tracer about shapes, which check_onnx() checks
            torch.onnx.export(
                part,
                images,
                str(path),
                opset_version=opset,
                input_names=['images'],
                output_names=names,
                dynamic_axes=axes,
                **tracer,
            )
        require('onnx').checker.check_model(str(path))
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        raise AutoDFPError(f'the {part.name} cannot be written as ONNX of opset {opset}: {first_line(error)}') from None
    return names


def check_onnx(part: Part, path: Path, shape: Sequence[int]) -> list[dict[str, Any]]:
    """Compare a file with torch at the traced shape, with one more image, and with one more image of a larger size.

    Args:
        part (Part): What was written.
        path (Path): The file.
        shape (Sequence[int]): Shape [B, C, H, W] of the images that were traced.

    Returns:
        list[dict[str, Any]]: For each ``input`` shape that the part takes its ``error``: of all outputs the largest
        difference relative to the largest value.

    Raises:
        AutoDFPError: An error is above 1e-4.
    """
    session = open_session(path)
    batch, channels, height, width = shape
    checked = []
    for other in (shape, (batch + 1, channels, height + 32, width + 64), (batch + 1, channels, height, width)):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(tuple(other), generator=generator)
        try:
            with torch.inference_mode():
                expected = part(images)
        except RuntimeError:  # with a linear layer behind a flattened feature map, the model takes one size only
            continue
        found = session.run(None, {'images': images.numpy()})
        error = max(_relative_error(torch.from_numpy(a), b) for a, b in zip(found, expected, strict=True))
        if not error <= TOLERANCE:
            raise AutoDFPError(
                f'the {part.name} was exported, but at the input {list(other)} onnxruntime differs from torch by '
                f'{error:.1e} of the largest value; allowed is {TOLERANCE:.0e}'
            )
        checked.append(dict(input=list(other), error=error))
    return checked


def _relative_error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float('inf')
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def open_session(path: Path) -> Any:
    """An onnxruntime session of a file on the CPU, with torch's number of threads."""
    runtime = require('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def _without_slim(config: Any) -> Any:
    """A model's config with dense modules in place of slim ones."""
    if isinstance(config, dict):
        if type_name(config) == 'Slim':
            return _without_slim(config['module'])
        if type_name(config) == 'SlimModel':
            rest = {key: value for key, value in config.items() if key not in ('slim_type', 'layers')}
            return _without_slim(rest | dict(type=config['slim_type']))
        return {key: _without_slim(value) for key, value in config.items()}
    return type(config)(map(_without_slim, config)) if isinstance(config, list | tuple) else config


def table(report: dict[str, Any], folder: Path, model: str) -> list[str]:
    """A report of :func:`export_onnx` as a table, line by line."""
    lines = [f'{"at " + "x".join(map(str, report["input"])):24}{"params":>12}{"MB":>8}{"torch ms":>11}{"ORT ms":>9}']
    for name, part in report['parts'].items():
        for kind in ('dense', 'pruned'):
            if kind in part:
                row, seconds = part[kind], part[kind]['seconds']
                lines.append(
                    f'{name + ", " + kind:24}{row["params"]:>12,}{row["bytes"] / 1e6:>8.2f}'
                    f'{1e3 * seconds["torch"]:>11.2f}{1e3 * seconds["onnxruntime"]:>9.2f}'
                )
        error = max(check['error'] for check in part['checked'])
        lines.append(f'  {folder / part["file"]}: within {error:.0e} of torch at {len(part["checked"])} shapes')
    if set(report['parts']) == {'backbone_neck'}:
        lines.append(f'the heads of a {model} need NMS and RoIAlign inside: tools/export_mmdeploy.py exports the whole')
    return lines
