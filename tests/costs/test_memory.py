import random
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from conftest import build_resnet, enliven
from cost_data import play
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from mmautodfp.api import PruningTask
from mmautodfp.costs import (
    Constraint,
    CostModel,
    MemoryBudget,
    MemoryCost,
    ModelCosts,
    measure_memory_costs,
    round_widths,
)
from mmautodfp.costs.memory import _largest
from mmautodfp.graph import outputs_of
from mmautodfp.search.survey import survey_target
from mmautodfp.surgery import PruningPlan, apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.zoo import VGG, CifarResNet

PIXEL = 4  # bytes of a float


def test_a_chain_against_what_is_written_down_by_hand():
    """10x10 pixels, 8x8 behind the first convolution, 6x6 behind the second."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 50, 3, bias=False)).eval()
    images = torch.zeros(1, 3, 10, 10)
    cost = measure_memory_costs(model, model, survey_target(model, '').groups, lambda: model(images))['model']
    for n in range(1, 9):
        weights = n * 3 * 9 + n + 4 * n + 50 * n * 9
        # The input; and either two maps of 8x8, before and behind the norm, or one of these and the output.
        held = 3 * 100 + max(2 * n * 64, n * 64 + 50 * 36)
        assert cost([n]) == (weights + held) * PIXEL + 8  # the norm counts batches in 8 bytes
        assert cost.activations([n]) == held * PIXEL
    assert cost.ratio([8]) == 1


class Mixed(nn.Module):
    """Maps that are put together, cut, flattened, added up and kept for long; a pooling that tells places."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 20, 3, padding=1)
        self.stem = nn.Conv2d(32, 16, 1)
        self.norm = FrozenBatchNorm2d(16)
        self.groups = nn.GroupNorm(4, 16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.hidden = nn.Linear(16 * 16, 24)
        self.out = nn.Linear(24, 5)

    def forward(self, x):
        early = torch.cat([self.left(x).relu(), self.right(x)], 1)
        y = self.groups(self.norm(self.stem(early)))
        z = self.depthwise(y).sigmoid() * y + 1
        w = nn.functional.max_pool2d(nn.functional.interpolate(self.up(z), scale_factor=0.5, mode='bilinear'), 2)
        w = w[..., :4, :4] - w.mean((2, 3), keepdim=True)
        return self.out(nn.functional.gelu(self.hidden(w.flatten(1)))), early.sum()


class ChannelsLast(nn.Module):
    """Linear layers on maps and on tokens whose channels do not lie side by side in memory: the bias is added later."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.hidden, self.back = nn.Linear(16, 64), nn.Linear(64, 16)
        self.wide, self.narrow = nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.back(self.hidden(x.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)
        tokens = self.narrow(self.wide(x.flatten(2).transpose(1, 2)).relu())
        return self.last(x + tokens.transpose(1, 2).reshape(x.shape))


class Deformable(nn.Sequential):
    """Its deformable convolution gives the channels of a group."""

    def __init__(self):
        first = ModulatedDeformConv2dPack(3, 8, 3, padding=1)
        super().__init__(first, nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))


def demo(name):
    cfg = Config.fromfile(f'configs/demo/{name}_digits.py').model
    return enliven(MODELS.build(cfg))


NETWORKS = {
    'mixed': (Mixed, 'model', 20),
    'channels last': (ChannelsLast, 'model', 20),
    'deformable': (Deformable, 'model', 20),
    'resnet56': (CifarResNet, '', 32),
    'resnet20, streams too': (lambda: CifarResNet(20), 'model', 32),
    'vgg': (VGG, '', 32),
    'mobilenet': (lambda: torchvision.models.mobilenet_v2(num_classes=9), '', 64),
    'frozen resnet': (lambda: torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d, num_classes=9), 'model', 64),
    'faster rcnn': (partial(demo, 'faster_rcnn'), 'model', 128),
    'faster rcnn, backbone': (partial(demo, 'faster_rcnn'), 'backbone', 128),
    'mask rcnn, two parts': (partial(demo, 'mask_rcnn'), ['backbone', 'neck'], 128),
    'fcos': (partial(demo, 'fcos'), 'model', 128),
    'retinanet, neck': (partial(demo, 'retinanet'), 'neck', 128),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_plan_takes_what_is_counted_anew_on_the_slim_model(name):
    build, target, size = NETWORKS[name]
    torch.manual_seed(0)
    model = enliven(build())
    images = torch.rand(1, 3, size, size + 32 if target != '' else size)
    if name == 'mixed':
        images = torch.rand(1, 3, 20, 20)
    survey = survey_target(model, target, None if hasattr(model, 'extract_feat') else images)
    run = partial(outputs_of, model, images)
    parts = [survey.module.get_submodule(part) for part in survey.parts]
    costs = measure_memory_costs(model, survey.module, survey.groups, run, parts=parts)
    dense = costs['model'].dense
    rng = random.Random(0)
    for _ in range(4):
        widths = [rng.randint(1, n) for n in dense]
        rankings = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in dense]
        plan = PruningPlan.of([group.name for group in survey.groups], rankings, widths)
        with apply_plan(survey.module, plan, groups=survey.groups):
            slim = measure_memory_costs(model, survey.module, [], run, parts=parts)
        for scope, cost in costs.items():
            assert cost.activations(widths) == slim[scope].activations([])
            assert cost(widths) == slim[scope]([])
    assert costs['model'](widths) < costs['model'](dense)


def test_a_part_takes_inside_of_the_model_what_it_takes_by_itself():
    model = demo('fcos')
    images = torch.rand(1, 3, 96, 128)
    survey = survey_target(model, 'backbone')
    costs = measure_memory_costs(model, survey.module, survey.groups, lambda: outputs_of(model, images))
    for scope, own in (('model', model), ('module', model.backbone)):
        tensors = [*own.parameters(), *own.buffers()]
        assert costs[scope].weights(costs[scope].dense) == sum(t.numel() * t.element_size() for t in tensors)
    alone = measure_memory_costs(model.backbone, model.backbone, survey.groups, lambda: model.backbone(images))
    rng = random.Random(0)
    for _ in range(10):
        widths = [rng.randint(1, n) for n in alone['model'].dense]
        assert alone['module'](widths) == alone['model'](widths) == costs['module'](widths)


def test_half_precision_takes_half_of_the_memory():
    model, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.rand(1, 3, 12, 12)
    groups = survey_target(model, '').groups
    whole = measure_memory_costs(model, model, groups, lambda: model(images))['model']
    model, images = model.bfloat16(), images.bfloat16()
    half = measure_memory_costs(model, model, groups, lambda: model(images))['model']
    assert [2 * half([n]) for n in range(1, 9)] == [whole([n]) for n in range(1, 9)]


def test_the_moments_that_are_left_out_are_never_the_largest():
    rng = np.random.default_rng(0)
    for _ in range(20):
        held = rng.integers(0, 6, (60, 4))
        kept = _largest(held, np.array([1, 5, 5, 5]))
        assert len(kept) < len(held)
        for widths in rng.integers(1, 6, (50, 3)):
            assert (kept @ [1, *widths]).max() == (held @ [1, *widths]).max()


def random_cost(rng) -> MemoryCost:
    dense = [12, 20, 7, 16]
    weights = CostModel(dense, constant=30)
    for group in range(4):
        weights.add(rng.randint(1, 9), group - 1 if group else None, group)
    held = np.random.default_rng(rng.randint(0, 99)).integers(0, 60, (6, 5))
    return MemoryCost(dense, weights, held[:, 0], held[:, 1:])


def test_random_agents_are_never_over_a_memory_budget():
    rng = random.Random(0)
    for seed in range(5):
        cost = random_cost(random.Random(seed))
        limits = Constraint([MemoryBudget(0.6)])
        limits.bind(ModelCosts({}, {}, memory=dict(module=cost)), round_widths(0.2, cost.dense))
        for _ in range(100):
            chosen = play(limits, lambda n: n * rng.uniform(0.2, 1))
            assert cost(chosen) <= 0.6 * cost(cost.dense)
        p, (budget,) = limits.uniform_ratio(), limits.budgets
        assert cost(round_widths(p, cost.dense)) <= budget.limit < cost(round_widths(min(1, p + 0.2), cost.dense))


def test_a_task_keeps_to_a_memory_budget_and_tells_it():
    model, images = build_resnet(18), torch.rand(1, 3, 64, 64)
    limit = dict(type='MemoryBudget', limit='70%')
    task = PruningTask.build(model, '', images, limit, dict(type='PruneOnly'))
    plan = task.uniform_plan()
    told = task.summary(plan)['module_memory']
    assert told['ratio'] <= 0.7
    with task.apply(plan):
        anew = measure_memory_costs(model, model, [], lambda: model(images))['model']([])
    assert told['count'] == anew
    assert 'module_memory' not in PruningTask.build(model, '', images, 0.7, dict(type='PruneOnly')).summary(plan)
    asked = f'{task.costs.memory["module"](task.constraint.min_widths) // 2000}kB'
    with pytest.raises(
        AutoDFPError, match=rf'limit of {asked} .* can only reach [\d.]+kB to [\d.]+kB; raise the limit'
    ):
        PruningTask.build(model, '', images, dict(limit, limit=asked), dict(type='PruneOnly'))
    with pytest.raises(AutoDFPError, match=r'the memory was to be limited .*, but without an example_input'):
        PruningTask.build(model, '', None, limit)


def test_the_bias_that_takes_up_what_pruned_channels_gave_is_counted():
    torch.manual_seed(0)
    convs = [nn.Conv2d(inputs, width, 3, bias=False) for inputs, width in ((3, 8), (8, 12), (12, 4))]
    model, images = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2]), torch.rand(1, 3, 24, 24)
    limit, fit = (
        dict(type='MemoryBudget', limit='80%'),
        dict(type='SyntheticLeastSquares', images=dict(num_images=2, size=24)),
    )
    task = PruningTask.build(model, '', images, limit, fit)
    plan = task.plan([5, 12])
    with task.apply(plan, final=True):
        assert (convs[1].bias is None, convs[2].bias) == (False, None)
        anew = measure_memory_costs(model, model, [], lambda: model(images))['module']([])
    assert task.summary(plan)['module_memory']['count'] == anew
