"""Latency of pruned and dense models; ``tools/benchmark.py latency`` runs it."""

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from mmautodfp.api import PruningTask
from mmautodfp.costs import FlopBudget, LatencyBudget, measure_latency_costs
from mmautodfp.deploy.models import build_model, input_channels, input_size
from mmautodfp.deploy.onnx import Part, open_session, parts_of, write_onnx
from mmautodfp.graph import has_plain_second_stage
from mmautodfp.hooks import read_settings
from mmautodfp.outputs.latency import infer
from mmautodfp.runs import load_search_config
from mmautodfp.search.example import call_model
from mmautodfp.search.survey import find_module
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.timing import describe_machine, device_at_hand, median_in_turns, torch_threads

from .bench import clocks, example_of, random_detector
from .shares import prune_copy

#: Batch sizes on a GPU; one image alone does not keep it busy.
BATCHES = (1, 8)
#: The size to trace at. ONNX files take images of any size, and tracing with large ones is slow.
TRACED = (128, 192)


def benchmark_latency(
    config: str | os.PathLike,
    repeat: int = 10,
    ratio: float = 0.5,
    size: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Latency of a module, dense and pruned uniformly to a share of its FLOPs with the channel divisors 1 and 8.

    Weights are random, as their values do not matter to the speed.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        repeat (int): Measurements of each, in turns, of which the median counts. Defaults to 10.
        ratio (float): Share of the FLOPs that is kept, in (0, 1]. Defaults to 0.5.
        size (Sequence[int] | None): Height and width. Defaults to None: the config's.

    Returns:
        dict[str, Any]: FLOPs, widths and seconds of each; as shares of the dense module's, its latency (``ratio``) and
        the latency that :class:`mmautodfp.costs.LatencyBudget` predicts (``predicted``); the machine.

    Raises:
        AutoDFPError: The ratio cannot be reached.
    """
    cfg = load_search_config(config)
    settings, device = read_settings(cfg.autodfp.to_dict()), device_at_hand()
    module = find_module(build_model(cfg), settings.target).to(device)
    images = torch.rand(1, input_channels(module), *(size or input_size(cfg)), device=device)
    plain, p_min = dict(type='PruneOnly'), settings.p_min
    tasks = {
        divisor: PruningTask.build(module, '', images, FlopBudget(ratio), plain, channel_divisor=divisor, p_min=p_min)
        for divisor in (1, 8)
    }
    task = tasks[1]
    plans = dict(dense=task.plan(task.dense_widths))
    plans |= {f'divisor {divisor}': one.uniform_plan() for divisor, one in tasks.items()}
    calls = {name: partial(prune_copy(task, plan).model, images) for name, plan in plans.items()}
    seconds = median_in_turns(calls, repeat)
    widths = {name: list(plan.widths.values()) for name, plan in plans.items()}
    with tempfile.TemporaryDirectory() as cache:
        table = LatencyBudget(points=3, repeat=3)
        call = lambda: module(images)
        predicted = measure_latency_costs(module, module, task.groups, call, table, cache=cache)['module']
    rows = {
        name: dict(
            flops=task.costs.flops['module'](kept),
            flops_ratio=task.costs.flops['module'].ratio(kept),
            seconds=seconds[name],
            ratio=seconds[name] / seconds['dense'],
            predicted=predicted.ratio(kept),
            widths=kept,
        )
        for name, kept in widths.items()
    }
    return dict(config=str(config), input=list(images.shape), asked=ratio, models=rows, machine=describe_machine())


def benchmark_whole(
    config: str | os.PathLike,
    repeat: int = 5,
    ratio: float = 0.5,
    divisors: Sequence[int] = (8,),
    size: Sequence[int] | None = None,
    threads: Sequence[int] = (1, 2),
    device: str | None = None,
) -> dict[str, Any]:
    """Latency of a detector, dense, pruned uniformly as a whole, and pruned uniformly in its backbone alone.

    Weights are random. They find next to nothing, so post-processing has little to do; the second stage gets as many
    regions as usual. On a processor 'torch' is timed from images to boxes, 'onnxruntime' from images to the outputs of
    the heads: a one-stage detector at once, of a two-stage one the first stage, and the second on pooled features.

    Args:
        config (str | os.PathLike): Config of a detector; of an ``autodfp`` entry, only ``p_min`` is used.
        repeat (int): Measurements of each, in turns, of which the median counts. Defaults to 5.
        ratio (float): Share of the whole detector's FLOPs that is kept, in (0, 1]; the backbone alone is pruned as far
            as it can be if it cannot reach that. Defaults to 0.5.
        divisors (Sequence[int]): Channel divisors. Defaults to (8,).
        size (Sequence[int] | None): Height and width. Defaults to None: the config's.
        threads (Sequence[int]): Numbers of threads to measure with on a processor. Defaults to (1, 2).
        device (str | None): 'cpu' or 'cuda'. Defaults to None: a GPU if there is one.

    Returns:
        dict[str, Any]: For each model FLOPs, parameters and widths. On a processor, by number of threads and engine:
        wall-clock ``seconds``, ``cpu_seconds`` summed over the cores, and their ratios ``ratio`` and ``cpu_ratio`` to
        the dense model's; for onnxruntime, of each part and of the ``sum``. On a GPU, by batch size and precision
        ('float16' is torch's automatic mixed precision): ``seconds`` and ``ratio`` of 'torch', from images to boxes,
        and of the 'network', without post-processing. The machine.

    Raises:
        AutoDFPError: The config is not one of a detector, or the whole detector cannot reach the ratio.
    """
    cfg, model, images = random_detector(config, size)
    tasks = _plan_all(model, images, ratio, divisors, read_settings(cfg.get('autodfp') or {}).p_min)
    models, rows = {}, {}
    for name, (task, plan) in tasks.items():
        models[name] = prune_copy(task, plan).model
        counts = task.summary(plan)
        rows[name] = {key: counts[f'model_{key}'] for key in ('flops', 'params')} | dict(widths=plan.widths)
    if (device or device_at_hand()) == 'cuda':
        for name, figures in _on_gpu(models, images, repeat).items():
            rows[name] |= figures
        threads = ()
    for count in threads:
        with torch_threads(count), tempfile.TemporaryDirectory() as scratch:
            calls = _calls(models, images, cfg, Path(scratch))
            seconds = _in_turns(calls, repeat)
        for name, row in rows.items():
            own, dense = ({key: pair for (of, key), pair in seconds.items() if of == who} for who in (name, 'dense'))
            row[f'threads_{count}'] = _by_engine(own, dense)
    return dict(
        config=Path(config).as_posix(),
        input=list(images.shape),
        asked=ratio,
        repeat=repeat,
        models=rows,
        machine=describe_machine() | dict(threads=list(threads), load_average=list(os.getloadavg())),
    )


def _plan_all(
    model: nn.Module, images: torch.Tensor, ratio: float, divisors: Sequence[int], p_min: float
) -> dict[str, tuple[PruningTask, PruningPlan]]:
    example, plain, found = example_of(images), dict(type='PruneOnly'), {}
    for divisor in divisors:
        settings = dict(channel_divisor=divisor, p_min=p_min, allocate=False)
        whole = PruningTask.build(model, 'model', example, FlopBudget(ratio, 'model'), plain, **settings)
        backbone = PruningTask.build(model, 'backbone', example, FlopBudget(1.0, 'model'), plain, **settings)
        (budget,) = backbone.constraint.budgets
        budget.limit = max(budget.least, int(ratio * budget.dense))  # as far as it can be pruned
        for name, task in dict(whole=whole, backbone=backbone).items():
            found[f'{name}, divisor {divisor}'] = task, task.uniform_plan()
    task, _ = found[f'whole, divisor {divisors[0]}']
    return dict(dense=(task, task.plan(task.dense_widths))) | found


def _calls(
    models: dict[str, nn.Module], images: torch.Tensor, cfg: Config, folder: Path
) -> dict[tuple[str, str], Callable[[], Any]]:
    """Calls to time, by model and 'torch' or the part that onnxruntime runs."""
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for number, (name, model) in enumerate(models.items()):
        calls[name, 'torch'] = partial(infer, model, images)
        for part, shape in _parts_to_time(model, cfg):
            path = folder / f'{number}_{part.name}.onnx'
            is_image = shape is None
            write_onnx(part, path, (1, 3, *TRACED) if is_image else shape)
            given = dict(images=(images if is_image else torch.rand(shape)).numpy())
            calls[name, part.name] = partial(open_session(path).run, None, given)
    return calls


def _parts_to_time(model: nn.Module, cfg: Config) -> list[tuple[Part, tuple[int, ...] | None]]:
    """A detector's parts from images to the outputs of its heads, each with the shape of its input; None for images."""
    if not has_plain_second_stage(model):
        whole = next((part for part in parts_of(model) if part.name == 'detector'), None)
        if whole is None:
            raise AutoDFPError(f'the {type(model).__name__} cannot be exported in parts, so its latency is not told')
        return [(whole, None)]
    regions = cfg.model.test_cfg.rpn.max_per_img
    head, extractor = model.roi_head.bbox_head, model.roi_head.bbox_roi_extractor
    first = Part('first_stage', model, lambda images: model.rpn_head(model.extract_feat(images)), ('scores', 'boxes'))
    second = Part('second_stage', model, head, ('scores', 'boxes'))
    return [(first, None), (second, (regions, extractor.out_channels, *extractor.roi_layers[0].output_size))]


def _on_gpu(models: dict[str, nn.Module], images: torch.Tensor, repeat: int) -> dict[str, dict[str, Any]]:
    """Seconds of each model on a GPU, and their ratios to the dense one's, by batch size and precision."""
    figures: dict[str, dict[str, Any]] = {name: {} for name in models}
    for model in models.values():
        model.cuda().requires_grad_(False)  # else autocast would convert some weights once and others each time
    for batch, precision in itertools.product(BATCHES, ('float32', 'float16')):
        given = images.cuda().expand(batch, -1, -1, -1).contiguous()
        calls = {(name, 'torch'): partial(infer, model, given) for name, model in models.items()}
        calls |= {(name, 'network'): partial(call_model, model, example_of(given)) for name, model in models.items()}
        with torch.autocast('cuda', torch.float16, enabled=precision == 'float16'):
            seconds = median_in_turns(calls, repeat)
        for (name, part), own in seconds.items():
            row = figures[name].setdefault(f'batch_{batch}', {}).setdefault(precision, {})
            row[part] = dict(seconds=own, ratio=own / seconds['dense', part])
    return figures


@torch.inference_mode()
def _in_turns(calls: dict[Any, Callable[[], Any]], repeat: int) -> dict[Any, np.ndarray]:
    """Median wall-clock and processor seconds [2] of each call, all called once per round, after a round of warm-up."""
    found: dict[Any, list[np.ndarray]] = {name: [] for name in calls}
    for _ in range(repeat + 1):
        for name, call in calls.items():
            start = clocks()
            call()
            found[name].append(clocks() - start)
    return {name: np.median(values[1:], 0) for name, values in found.items()}


def _by_engine(own: dict[str, np.ndarray], dense: dict[str, np.ndarray]) -> dict[str, Any]:
    """Seconds and ratios of one model with torch, and with onnxruntime by part and in all."""
    figures = {key: _figures(own[key], dense[key]) for key in own}
    whole = figures.pop('torch')
    total = _figures(*(sum(values[key] for key in figures) for values in (own, dense)))
    return dict(torch=whole, onnxruntime=figures | dict(sum=total))


def _figures(own: np.ndarray, dense: np.ndarray) -> dict[str, float]:
    names = ('seconds', 'cpu_seconds', 'ratio', 'cpu_ratio')
    return dict(zip(names, [*own.tolist(), *(own / dense).tolist()], strict=True))
