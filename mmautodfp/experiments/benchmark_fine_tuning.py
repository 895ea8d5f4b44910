"""Fine-tuning of pruned detectors from several starts; ``tools/benchmark.py fine_tuning`` runs it."""

import copy
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from typing import Annotated, Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import set_random_seed
from pydantic import Field
from torch import nn

from mmautodfp.outputs.config import slim_config
from mmautodfp.runs import build_runner
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import save_tensors
from mmautodfp.utils.settings import Count, Positive, Share, checked

from .bench import Bench, deviation, quiet
from .shares import OURS, UNIFORM, PrunedCopy, build_task, candidates_of, prune_copy

RANDOM = 'random weights'
Factors = Annotated[Sequence[Positive], Field(min_length=1)]
STARTS = (OURS, UNIFORM, RANDOM)


@checked('fine-tuning')
def benchmark_fine_tuning(
    config: str | os.PathLike,
    share: Share = 0.5,
    epochs: Count = 5,
    lr_factors: Factors = (1.0, 0.3, 0.1, 0.03),
    seeds: Count = 3,
    cfg_options: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    report: Callable[[dict[str, Any], str], None] = lambda *_: None,
) -> dict[str, Any]:
    """Train slim detectors for a few epochs from several starts and compare them on the test images.

    The starts are the allocated plan after the full pass, the uniform plan that is pruned only, and random weights in
    the shape of the first: new ones for each seed, initialised by torch in the backbone and by the config in neck and
    heads. Each start is trained with each share of the config's learning rate and the seed 0; the best share on the val
    images is used with the other seeds. The learning rate falls to zero along a cosine.

    Args:
        config (str | os.PathLike): Config whose ``autodfp`` entry has our reconstructor, and which can be trained.
        share (float): Of the backbone's parameters that is kept. Defaults to 0.5.
        epochs (int): Of each training. Defaults to 5.
        lr_factors (Sequence[float]): Shares of the learning rate to choose from. Defaults to 1, 0.3, 0.1 and 0.03.
        seeds (int): Trainings of each start with the best share, with the seeds 0, 1, ... Defaults to 3.
        cfg_options (dict | None): Overrides of the config, dotted keys to values. Defaults to none.
        known (dict | None): An earlier result, whose rows are not measured again. Defaults to None.
        report (Callable): Told the result so far and a line, after each row. Defaults to saying nothing.

    Returns:
        dict[str, Any]: ``dense`` metric; ``left`` by start, the shares of the model's parameters and FLOPs; ``rows`` by
        start, share of the learning rate and seed: the test metric ``before`` and after (``test``), and ``val`` after;
        ``chosen`` by start: the share of the learning rate, and before, mean and deviation of the test metric.

    Raises:
        AutoDFPError: ``known`` was measured with other settings, the config cannot be trained or the share not reached.
    """
    bench = Bench(config, cfg_options=cfg_options)
    _require_training(bench.cfg)
    val = bench.reward_on(bench.cfg.val_dataloader)
    result = bench.take_up(
        known,
        images=dict(val=len(val.images), test=len(bench.reward.images)),
        share=share,
        epochs=epochs,
        optimizer=bench.cfg.optim_wrapper.optimizer.to_dict(),
        reconstructor=bench.settings.reconstructor,
    )
    starts, device = _starts(bench, share), next(bench.model.parameters()).device
    result['left'] = {name: start.left for name, start in starts.items()} | {RANDOM: starts[OURS].left}
    if 'dense' not in result:
        result |= dict(dense=bench.reward(bench.model), rows={}, chosen={})
    report(result, f'dense {result["dense"]:.4f}')

    def measure(name: str, factor: float, seed: int) -> dict[str, float]:
        rows = result['rows'].setdefault(name, {}).setdefault(f'{factor:g}', {})
        if str(seed) not in rows:
            start = starts[OURS if name == RANDOM else name]
            cfg = _training_config(bench.cfg, start, epochs, factor, seed)
            model = _build(cfg, seed, None if name == RANDOM else start.model.state_dict()).to(device)
            before, trained = bench.reward(model), _train(cfg, model)
            row = rows[str(seed)] = dict(before=before, val=val(trained), test=bench.reward(trained))
            told = f'{row["before"]:.4f}, then {row["val"]:.4f} on val and {row["test"]:.4f} on test'
            report(result, f'{name}, {factor:g} of the learning rate, seed {seed}: {told}')
        return rows[str(seed)]

    for name in STARTS:
        best = max(lr_factors, key=lambda factor: measure(name, factor, 0)['val'])
        rows = [measure(name, best, seed) for seed in range(seeds)]
        before, after = ([row[column] for row in rows] for column in ('before', 'test'))
        chosen = dict(lr_factor=best, before=statistics.mean(before), mean=statistics.mean(after))
        result['chosen'][name] = chosen | dict(deviation=deviation(after))
        report(result, f'{name}: {chosen["before"]:.4f}, then {chosen["mean"]:.4f} on test')
    return result


def _require_training(cfg: Config) -> None:
    missing = [name for name in ('train_dataloader', 'train_cfg', 'val_dataloader') if not cfg.get(name)]
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    missing += [] if 'lr' in optimizer else ['optim_wrapper.optimizer.lr']
    if missing:
        raise AutoDFPError(f'{cfg.filename} was to be trained, but it has no {" and no ".join(missing)}')


def _starts(bench: Bench, share: float) -> dict[str, PrunedCopy]:
    candidates = candidates_of(build_task(bench, 'backbone', share))
    return {name: prune_copy(*candidates[name]) for name in (OURS, UNIFORM)}


def _training_config(cfg: Config, start: PrunedCopy, epochs: int, factor: float, seed: int) -> Config:
    """Config of a training of the shapes of a start."""
    slim = slim_config(cfg, start.path, start.layers, None)
    slim.optim_wrapper.optimizer.lr *= factor
    slim.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs)
    slim.param_scheduler = dict(type='CosineAnnealingLR', T_max=epochs, convert_to_iter_based=True)
    slim.randomness = dict(seed=seed)
    # The bench evaluates, and no checkpoints are kept.
    for split, part in product(('val', 'test'), ('dataloader', 'evaluator', 'cfg')):
        slim[f'{split}_{part}'] = None
    slim.default_hooks = dict(slim.get('default_hooks') or {}, checkpoint=None)
    return slim


def _build(cfg: Config, seed: int, state: dict[str, torch.Tensor] | None) -> nn.Module:
    """The slim model, with given weights or, for None, with random ones."""
    set_random_seed(seed)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    if state is not None:
        model.load_state_dict(state)
    return model.eval()


def _train(cfg: Config, model: nn.Module) -> nn.Module:
    """Train a model's weights with MMEngine's Runner."""
    with tempfile.TemporaryDirectory() as scratch, quiet():
        cfg.work_dir, cfg.load_from = scratch, f'{scratch}/start.pth'
        save_tensors(dict(state_dict=model.state_dict()), cfg.load_from)
        runner = build_runner(cfg)
        runner.train()
        return runner.model.eval()
