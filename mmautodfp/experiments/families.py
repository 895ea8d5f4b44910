"""Which of MMDetection's families of detectors can be pruned as a whole; ``tools/benchmark.py families`` runs it."""

import gc
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

from mmautodfp.costs import measure_positions, model_costs
from mmautodfp.graph import ChannelGroup, outputs_of, samples_of
from mmautodfp.kernels import dead_leaves
from mmautodfp.reconstruction import PruneOnly
from mmautodfp.search.survey import survey_target
from mmautodfp.surgery import PruningPlan, apply_plan
from mmautodfp.utils import in_one_line
from mmautodfp.utils.configs import forget_weights

from .mmdet_folders import FAMILIES, FURTHER, OTHERS, SAME

MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
SIZE = 256  # side of the image on which FLOPs are counted; twice that where it is too small

#: The survey's reasons in words; predictors are never pruned and not named.
REASONS = {
    'gives an output of the model|feeds (max|argmax|sort)|is not run when': '',
    'does not come out the same': 'what cannot be proven',
    'bmm|native_layer_norm|grid_sampler|softmax|feeds mm,': 'attention, softmax and LayerNorm',
    'tensor of fixed size': 'what position codes, queries or boxes are added to',
    'no layer that could make up': 'what no layer reads, such as offsets',
    'shares .* with other channels': 'outputs that are split behind a norm',
    'feeds sum': 'what is summed up over channels',
    'in an order that is not known': 'channels that are read in another order',
    'shares its samples out': 'inputs of deformable convolutions in several groups',
    'feeds convolution': 'what convolutions of other kinds read',
    'does not read channel by channel': 'channels that become places of a map',
}
FAILURES = {
    'mmpretrain': 'needs the package mmpretrain',
    'timm': 'needs the package timm',
    'transformers': 'needs the package transformers, and words with each image',
    'GPU memory usage': 'needs the package fairscale, and words with each image',
    "'list' object has no attribute": 'calls layers with lists of maps',
    'process group': 'can be built in a distributed run alone (MMSyncBN)',
    '_gt_instances': 'wants a ground truth to be run',
    'device cpu not found': 'uses an operation of mmcv that runs on GPUs alone',
}


def measure_families(configs: Sequence[str] | None = None, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Prune one detector of each family as a whole, with random weights.

    Args:
        configs (Sequence[str] | None): Relative to MMDetection's configs, without '.py'. Defaults to None: all.
        tell (Callable): Told a row of the table after each. Defaults to print.

    Returns:
        dict[str, Any]: ``results`` of :func:`measure_family`; ``same``, folders with the network of another family;
        ``others``, folders with something else.
    """
    results = []
    for config in all_configs() if configs is None else configs:
        results.append(measure_family(config))
        tell(table_row(results[-1]))
    same = {family: other for family, (_, other) in SAME.items()}
    return dict(mmdet=mmdet.__version__, size=SIZE, results=results, same=same, others=OTHERS)


def all_configs() -> list[str]:
    """One config of each family, and further ones behind it."""
    configs = [f'{family}/{name}' for family, name in FAMILIES.items()]
    return sorted([*configs, *FURTHER], key=lambda config: config.partition('/')[0])


def measure_family(config: str) -> dict[str, Any]:
    """Find out what can be pruned of a detector, and whether it works with half of that pruned.

    Args:
        config (str): Relative to MMDetection's configs, without '.py'.

    Returns:
        dict[str, Any]: ``config`` and ``family``, and ``failed`` with the reason if it could not be built or surveyed;
        otherwise ``groups`` (how many), ``flops`` (share of the model's FLOPs that depends on the groups' widths),
        ``flops_at_half`` (share of the FLOPs with half of each group), ``left`` (lines on what cannot be pruned),
        ``predicts`` (None if the dense detector does not either), ``restored`` and ``seconds``.
    """
    found: dict[str, Any] = dict(family=config.partition('/')[0], config=config)
    started = time.perf_counter()
    try:
        model = build_model(settings_of(config))
    except Exception as error:  # a family's own code may end with anything
        return found | dict(failed=f'cannot be built: {in_one_line(error)}')
    try:
        found |= prune_half(model, SIZE)
    except Exception as error:
        found |= dict(failed=in_one_line(error))
    del model
    gc.collect()
    return found | dict(seconds=round(time.perf_counter() - started, 1))


def settings_of(config: str) -> ConfigDict:
    """The model of a config of MMDetection's, without files of weights and with few regions."""
    model = Config.fromfile(MMDET_CONFIGS / f'{config}.py').model
    forget_weights(model)
    if 'teacher_ckpt' in model:
        model.teacher_ckpt = None
    if 'teacher_config' in model:  # a path in MMDetection's repository
        model.teacher_config = str(MMDET_CONFIGS / model.teacher_config.removeprefix('configs/'))
    first_stage = (model.get('test_cfg') or {}).get('rpn')
    if first_stage:
        first_stage.max_per_img = 50  # an untrained one finds objects everywhere
    return model


def build_model(settings: ConfigDict) -> nn.Module:
    """A detector with random weights in eval mode; nothing is downloaded."""
    register_all_modules()
    torch.manual_seed(0)
    model = MODELS.build(settings)
    if isinstance(levels := getattr(model, 'level_embed', None), nn.Parameter):
        nn.init.normal_(levels)  # deformable DETRs leave it uninitialised
    model.eval()  # which returns None for a student with a teacher
    return model


@torch.no_grad()
def prune_half(model: nn.Module, size: int) -> dict[str, Any]:
    """Prune random halves of all groups, predict on an image of this side or twice it, and restore the model."""
    survey = survey_target(model, 'model')
    try:
        images, positions = _look(model, size)
    except RuntimeError:  # the coarse levels of small images are smaller than some kernels
        images, positions = _look(model, 2 * size)
    flops = model_costs(model, model, survey.groups, positions).flops['model']
    tensors = lambda: [*model.parameters(), *model.buffers()]
    before, values = tensors(), [tensor.clone() for tensor in tensors()]
    plan = half_plan(survey.groups)
    predict = lambda: len(model(images, samples_of(images), mode='predict')) == 1
    restore = apply_plan(model, plan, PruneOnly(), groups=survey.groups)
    try:
        with restore:
            predicts = predict()
    except Exception as problem:
        try:
            predict()
        except Exception:  # the dense one fails too, as SSD's head of MMDetection 3.3.0 does
            predicts = None
        else:
            raise problem from None
    same = all(
        now is then and torch.equal(now, value) for now, then, value in zip(tensors(), before, values, strict=True)
    )
    return dict(
        groups=len(survey.groups),
        flops=round(1 - flops.constant / flops(flops.dense), 4),
        flops_at_half=round(flops.ratio([plan.widths[group.name] for group in survey.groups]), 4),
        left=survey.left,
        predicts=predicts,
        restored=same,
    )


def _look(model: nn.Module, size: int) -> tuple[Tensor, dict[nn.Module, int]]:
    images = dead_leaves(1, (size, size), (127.5,) * 3, (58.0,) * 3)
    return images, measure_positions(model, lambda: outputs_of(model, images))


def half_plan(groups: Sequence[ChannelGroup]) -> PruningPlan:
    """A plan that keeps random halves of all groups."""
    random = torch.Generator().manual_seed(0)
    order: list[Tensor] = [torch.randperm(group.num_channels, generator=random) for group in groups]
    return PruningPlan.of([group.name for group in groups], order, [(len(one) + 1) // 2 for one in order])


def table_row(found: dict[str, Any]) -> str:
    """A row of the table in docs/detectors.md: config, groups, shares of FLOPs, and what cannot be pruned."""
    if 'failed' in found:
        return f'| `{found["config"]}` | - | - | - | {_words_of(found["failed"], FAILURES)} |'
    stays = dict.fromkeys(words for line in found['left'] if (words := _words_of(line, REASONS)))
    if not stays and found['flops'] < 0.9:  # the survey does not see the readers as layers
        stays[REASONS['feeds convolution']] = None
    if not found['predicts']:
        stays['(does not predict here when dense either)'] = None
    shares = ' | '.join(f'{100 * found[name]:.0f} %' for name in ('flops', 'flops_at_half'))
    return f'| `{found["config"]}` | {found["groups"]} | {shares} | {"; ".join(stays)} |'


def _words_of(line: str, known: dict[str, str]) -> str:
    return next((words for pattern, words in known.items() if re.search(pattern, line)), line)
