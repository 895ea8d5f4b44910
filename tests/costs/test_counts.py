"""Parameters and FLOPs of pruned models, against what is there and what mmengine counts."""

import random

import pytest
import torch
import torchvision
from conftest import build_resnet, enliven, random_plan
from cost_data import costs_of
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from mmautodfp.costs import CostModel, measure_positions, model_costs
from mmautodfp.graph import find_groups
from mmautodfp.surgery import apply_plan


def test_dense_resnet50_backbone_has_the_known_number_of_parameters():
    cost = costs_of(build_resnet(50, base_channels=64)).params['module']
    assert cost(cost.dense) == 23_508_032


@pytest.mark.parametrize('build', [lambda: build_resnet(18), lambda: build_resnet(50)])
def test_counts_are_exact_for_random_plans(build):
    for seed in range(5):
        model = build()
        costs = costs_of(model)
        plan = random_plan(model, seed)
        widths = list(plan.widths.values())
        apply_plan(model, plan)
        assert costs.params['module'](widths) == sum(p.numel() for p in model.parameters())
        counted = FlopAnalyzer(model, torch.zeros(1, 3, 64, 64)).by_operator()
        assert costs.flops['module'](widths) == counted['conv']


def test_the_rest_of_the_model_is_counted_under_the_scope_model():
    model = enliven(torchvision.models.resnet18(num_classes=10))
    model.backbone = model.layer1  # the same layers under a second name must not be counted twice
    costs = costs_of(model, model.layer1)
    plan = random_plan(model.layer1, 4)
    widths = list(plan.widths.values())
    apply_plan(model.layer1, plan)
    assert costs.params['model'](widths) == sum(p.numel() for p in model.parameters())
    assert costs.params['module'](widths) == sum(p.numel() for p in model.layer1.parameters())
    counted = FlopAnalyzer(model, torch.zeros(1, 3, 64, 64)).by_operator()
    assert costs.flops['model'](widths) == counted['conv'] + counted['linear']


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_transposed_and_deformable_convolutions_are_counted(kind):
    build = {'DCN': DeformConv2dPack, 'DCNv2': ModulatedDeformConv2dPack}[kind]
    deform = build(12, 10, 3, stride=2, padding=1, groups=2)
    transposed = nn.ConvTranspose2d(10, 6, 3, stride=2, output_padding=1, groups=2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 1), deform, transposed).eval()
    costs = costs_of(model, size=20)  # 18 pixels behind the first layer, 9 behind the deformable one
    offsets = {'DCN': 2, 'DCNv2': 3}[kind] * 9  # of each tap, and a mask; for all channels alike
    plain = 18 * 18 * (8 * 3 * 9 + 12 * 8)
    deformed = 9 * 9 * (10 * 12 // 2 * 9 + offsets * 12 * 9)
    assert costs.flops['model']([8]) == plain + deformed + 9 * 9 * (10 * 6 // 2 * 9)
    assert costs.flops['model']([3]) == plain - 18 * 18 * 5 * (3 * 9 + 12) + deformed + 9 * 9 * (10 * 6 // 2 * 9)


def test_mask_rcnn_has_the_flops_that_mmengine_counts():
    cfg = Config.fromfile('configs/demo/mask_rcnn_digits.py').model
    model = MODELS.build(cfg).eval()
    data = model.data_preprocessor(dict(inputs=[torch.zeros(3, 64, 64)], data_samples=[DetDataSample()]))
    data['data_samples'][0].set_metainfo(dict(img_shape=(64, 64), scale_factor=(1.0, 1.0)))
    regions = InstanceData(bboxes=torch.tensor([[0.0, 0, 40, 40], [8, 8, 60, 30], [20, 4, 60, 60]]))

    class Whole(nn.Module):
        """As many regions as there are in a test, whatever random weights propose."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            features = self.model.extract_feat(images)
            return self.model.rpn_head(features), self.model.roi_head.forward(features, [regions])

    positions = measure_positions(model, lambda: Whole()(data['inputs']))
    costs = model_costs(model, model.backbone, find_groups(model.backbone), positions)
    counted = FlopAnalyzer(Whole(), data['inputs']).by_operator()
    assert isinstance(model.roi_head.mask_head.upsample, nn.ConvTranspose2d)
    assert costs.flops['model'](costs.flops['model'].dense) == counted['conv'] + counted['linear']


def test_layers_that_share_a_weight_have_it_once_and_use_it_each():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))
    model[2].weight = model[0].weight
    costs = model_costs(model, model, [], measure_positions(model, lambda: model(torch.zeros(1, 4, 6, 6))))
    assert costs.params['model']([]) == 4 * 4 * 9
    assert costs.flops['model']([]) == 4 * 4 * 9 * (36 + 16)


def test_cost_model_against_an_explicit_sum():
    cost = CostModel([4, 6])
    cost.add(5)
    cost.add(2, 0)
    cost.add(3, 1, None)
    cost.add(7, 1, 0)
    assert cost([3, 4]) == 5 + 2 * 3 + 3 * 4 + 7 * 3 * 4
    assert cost.ratio([4, 6]) == 1


@pytest.mark.parametrize('seed', range(20))
def test_the_widest_group_within_a_limit_is_the_one_that_trying_all_widths_finds(seed):
    """Also where a group's width counts with itself, and where a bias is there only as long as one of two is pruned."""
    rng = random.Random(seed)
    cost = CostModel([rng.randint(1, 12) for _ in range(4)], constant=rng.randint(0, 50))
    for _ in range(8):
        cost.add(rng.randint(0, 9), *rng.choices(range(4), k=rng.randint(0, 2)))
    cost.add(rng.randint(1, 9), 2, 2)
    cost.add(2, 0, 3)  # weights of what reads two groups and gives a third, twice its bias
    cost.add(2, 1, 3)
    cost.biases.append(([0, 1], [(3, 1)]))
    for group in range(4):
        widths = [rng.randint(1, n) for n in cost.dense]
        limit = rng.randint(cost(widths), max(cost(widths), cost(cost.dense)))
        at = lambda n, widths=widths, group=group: cost([*widths[:group], n, *widths[group + 1 :]])
        fitting = [n for n in range(widths[group], cost.dense[group] + 1) if at(n) <= limit]
        assert cost.widest(widths, group, limit) == max(fitting)
