import random
import re

import pytest
import torch
import torchvision
from conftest import build_resnet, enliven, random_plan
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from mmautodfp.costs import (
    Constraint,
    CostModel,
    FlopBudget,
    ModelCosts,
    ParamBudget,
    allowed_widths,
    measure_positions,
    model_costs,
    round_widths,
)
from mmautodfp.graph import find_units
from mmautodfp.surgery import apply_plan
from mmautodfp.utils import AutoDFPError


def costs_of(model, module=None, size=64) -> ModelCosts:
    module = module or model
    positions = measure_positions(model, lambda: model(torch.zeros(1, 3, size, size)))
    return model_costs(model, module, find_units(module), positions)


@pytest.fixture(scope='module')
def resnet50_costs():
    return costs_of(build_resnet(50, base_channels=64))


def test_dense_resnet50_backbone_has_the_known_number_of_parameters(resnet50_costs):
    cost = resnet50_costs.params['module']
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
    costs = model_costs(model, model.backbone, find_units(model.backbone), positions)
    counted = FlopAnalyzer(Whole(), data['inputs']).by_operator()
    assert isinstance(model.roi_head.mask_head.upsample, nn.ConvTranspose2d)
    assert costs.flops['model'](costs.flops['model'].dense) == counted['conv'] + counted['linear']


def test_layers_that_share_a_weight_have_it_once_and_use_it_each():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))
    model[2].weight = model[0].weight
    costs = model_costs(model, model, [], measure_positions(model, lambda: model(torch.zeros(1, 4, 6, 6))))
    assert costs.params['model']([]) == 4 * 4 * 9
    assert costs.flops['model']([]) == 4 * 4 * 9 * (36 + 16)


def bound(*budgets, costs, divisor=1) -> Constraint:
    limits = Constraint(budgets)
    limits.bind(costs, round_widths(0.2, costs.params['module'].dense, divisor), divisor)
    return limits


def play(*budgets, costs, ask, divisor=1):
    """Algorithm 1 as the environment runs it: ask(N) channels of each unit, rounded and bounded."""
    limits, chosen = bound(*budgets, costs=costs, divisor=divisor), []
    for least, channels in zip(limits.min_widths, costs.params['module'].dense, strict=True):
        most = limits.max_width(chosen)
        assert least <= most <= channels
        (asked,) = round_widths(ask(channels) / channels, [channels], divisor)
        chosen.append(min(max(least, asked), most))
    return chosen


@pytest.mark.parametrize('kind', [ParamBudget, FlopBudget])
@pytest.mark.parametrize('scope', ['module', 'model'])
@pytest.mark.parametrize('ratio', [0.9, 0.7, 0.5, 0.3])
def test_200_random_agents_are_never_over_the_budget(resnet50_costs, kind, scope, ratio):
    rng = random.Random(ratio)
    for _ in range(200):
        budget = kind(ratio, scope)
        greed = rng.random()  # from timid agents to those that want nearly everything
        chosen = play(budget, costs=resnet50_costs, ask=lambda n, g=greed: round(n * (g + (1 - g) * rng.random())))
        assert budget.cost(chosen) <= ratio * budget.cost(budget.cost.dense)


@pytest.mark.parametrize('kind', [ParamBudget, FlopBudget])
@pytest.mark.parametrize('ratio', [0.9, 0.7, 0.5, 0.3])
def test_always_asking_for_everything_ends_within_one_channel_of_the_budget(resnet50_costs, kind, ratio):
    budget = kind(ratio)
    chosen = play(budget, costs=resnet50_costs, ask=lambda n: n)
    spare = ratio * budget.cost(budget.cost.dense) - budget.cost(chosen)
    wider = [[*chosen[:unit], chosen[unit] + 1, *chosen[unit + 1 :]] for unit, n in enumerate(chosen)]
    wider = [widths for widths, old, n in zip(wider, chosen, budget.cost.dense, strict=True) if old < n]
    assert wider
    assert 0 <= spare < min(budget.cost(widths) for widths in wider) - budget.cost(chosen)


def test_the_uniform_ratio_is_the_largest_that_fits(resnet50_costs):
    for ratio in (0.9, 0.7, 0.5, 0.3):
        budget = ParamBudget(ratio)
        dense = resnet50_costs.params['module'].dense
        p = bound(budget, costs=resnet50_costs).uniform_ratio()
        assert budget.cost(round_widths(p, dense)) <= budget.limit
        assert budget.cost(round_widths(p + 0.01, dense)) > budget.limit
    assert bound(ParamBudget(1.0), costs=resnet50_costs).uniform_ratio() == 1.0


def test_the_uniform_ratio_survives_rounding_to_float32_as_an_action(resnet50_costs):
    dense = resnet50_costs.params['module'].dense
    for kind in (ParamBudget, FlopBudget):
        for percent in range(30, 100, 3):
            p = bound(kind(percent / 100), costs=resnet50_costs).uniform_ratio()
            action = torch.tensor((p - 0.2) / 0.8).item()
            assert round_widths(0.2 + 0.8 * action, dense) == round_widths(p, dense)


def test_an_unreachable_ratio_is_refused_with_the_reachable_range(resnet50_costs):
    dense = resnet50_costs.params['module'].dense
    least = resnet50_costs.params['module'].ratio(round_widths(0.2, dense))
    with pytest.raises(AutoDFPError, match=rf'can only reach {least:.4f} to 1'):
        bound(ParamBudget(0.2), costs=resnet50_costs)


@pytest.mark.parametrize('scope', ['module', 'model'])
def test_a_share_is_the_same_limit_however_it_is_written(resnet50_costs, scope):
    words, ratio = FlopBudget(0.9, scope, '60%'), FlopBudget(0.6, scope)
    bound(words, ratio, costs=resnet50_costs)
    assert words.limit == ratio.limit == int(0.6 * ratio.cost(ratio.cost.dense))
    assert words.describe() == ratio.describe() == dict(type='FlopBudget', preserve_ratio=0.6, scope=scope)
    assert words.identity == ratio.identity


def test_an_amount_is_kept_to_and_told(resnet50_costs):
    budget = ParamBudget(limit='15M')
    limits = bound(budget, costs=resnet50_costs)
    assert budget.limit == 15_000_000
    assert 0.99 * budget.limit < budget.cost(play(budget, costs=resnet50_costs, ask=lambda n: n)) <= budget.limit
    assert budget.describe() == dict(type='ParamBudget', limit='15M', scope='module')
    assert budget.identity == ParamBudget(limit='15000k').identity != ParamBudget(limit='16M').identity
    least = budget.cost(limits.min_widths)
    asked = f'{least / 1e6:.4g}M ({least / 23_508_032:.0%})  15M (64%)  23.51M  reachable'
    assert limits.table()[1].split() == ['params', 'of', 'the', 'module', *asked.split()]


def test_an_amount_above_the_dense_cost_limits_nothing(resnet50_costs):
    budget = ParamBudget(limit='1G')
    limits = bound(budget, costs=resnet50_costs)
    assert limits.uniform_ratio() == 1
    assert limits.table()[1].endswith('1G (4254%)  23.51M  no less than dense: nothing has to go')
    assert play(budget, costs=resnet50_costs, ask=lambda n: n) == budget.cost.dense


@pytest.mark.parametrize(
    ('limit', 'unit', 'size'), [('1M', 'M', 10**6), ('900k', 'k', 1000), ('0.002G', 'G', 10**9), ('5%', '%', 235080.32)]
)
def test_an_unreachable_limit_is_refused_with_the_range_in_its_own_unit(resnet50_costs, limit, unit, size):
    cost = resnet50_costs.params['module']
    least = cost(round_widths(0.2, cost.dense))
    with pytest.raises(AutoDFPError, match=rf"a limit of {limit} of the module's params was asked for") as caught:
        bound(ParamBudget(limit=limit), costs=resnet50_costs)
    low, high = re.search(
        rf'can only reach ([\d.]+){unit} to ([\d.]+){unit}; raise the limit', str(caught.value)
    ).groups()
    assert 0 <= float(low) * size - least < 1e-3 * least
    assert 0 <= 23_508_032 - float(high) * size < 1e-3 * 23_508_032
    assert bound(ParamBudget(limit=f'{low}{unit}'), costs=resnet50_costs).budgets[0].limit >= least


@pytest.mark.parametrize('ratio', [0, -1, 1.01])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(AutoDFPError, match=r'lies in \(0, 1\]'):
        ParamBudget(ratio)


def test_an_unknown_scope_is_refused():
    with pytest.raises(AutoDFPError, match="'module' or 'model', got 'neck'"):
        ParamBudget(0.5, scope='neck')


def test_cost_model_against_an_explicit_sum():
    cost = CostModel([4, 6])
    cost.add(5)
    cost.add(2, 0)
    cost.add(3, 1, None)
    cost.add(7, 1, 0)
    assert cost([3, 4]) == 5 + 2 * 3 + 3 * 4 + 7 * 3 * 4
    assert cost.ratio([4, 6]) == 1


@pytest.mark.parametrize('seed', range(20))
def test_the_widest_unit_within_a_limit_is_the_one_that_trying_all_widths_finds(seed):
    """Also where a unit's width counts with itself, and where a bias is there only as long as one of two is pruned."""
    rng = random.Random(seed)
    cost = CostModel([rng.randint(1, 12) for _ in range(4)], constant=rng.randint(0, 50))
    for _ in range(8):
        cost.add(rng.randint(0, 9), *rng.choices(range(4), k=rng.randint(0, 2)))
    cost.add(rng.randint(1, 9), 2, 2)
    cost.add(2, 0, 3)  # weights of what reads two units and gives a third, twice its bias
    cost.add(2, 1, 3)
    cost.biases.append(([0, 1], [(3, 1)]))
    for unit in range(4):
        widths = [rng.randint(1, n) for n in cost.dense]
        limit = rng.randint(cost(widths), max(cost(widths), cost(cost.dense)))
        at = lambda n, widths=widths, unit=unit: cost([*widths[:unit], n, *widths[unit + 1 :]])
        fitting = [n for n in range(widths[unit], cost.dense[unit] + 1) if at(n) <= limit]
        assert cost.widest(widths, unit, limit) == max(fitting)


@pytest.mark.parametrize('divisor', [1, 3, 8, 32])
def test_rounded_widths_are_the_nearest_allowed_ones(divisor):
    rng = random.Random(divisor)
    for _ in range(300):
        channels, ratio = rng.randint(1, 100), rng.random()
        allowed = [n for n in range(1, channels + 1) if n % divisor == 0 or n == channels]
        assert allowed_widths(channels, divisor) == allowed
        (width,) = round_widths(ratio, [channels], divisor)
        assert width in allowed
        assert abs(width - ratio * channels) <= min(abs(n - ratio * channels) for n in allowed) + 1e-9


@pytest.mark.parametrize('kind', [ParamBudget, FlopBudget])
@pytest.mark.parametrize('ratio', [0.9, 0.5, 0.3])
def test_with_a_divisor_random_agents_keep_multiples_within_the_budget(resnet50_costs, kind, ratio):
    rng = random.Random(ratio)
    dense = resnet50_costs.params['module'].dense
    for _ in range(100):
        budget, greed = kind(ratio), rng.random()
        ask = lambda n, g=greed: round(n * (g + (1 - g) * rng.random()))
        chosen = play(budget, costs=resnet50_costs, ask=ask, divisor=8)
        assert all(width % 8 == 0 or width == n for width, n in zip(chosen, dense, strict=True))
        assert budget.cost(chosen) <= ratio * budget.cost(dense)


def test_with_a_divisor_the_bound_is_the_widest_allowed_width_that_fits(resnet50_costs):
    budget = ParamBudget(0.5)
    chosen = play(budget, costs=resnet50_costs, ask=lambda n: n, divisor=8)
    least = round_widths(0.2, budget.cost.dense, 8)
    for unit, n in enumerate(budget.cost.dense):
        wider = [*chosen[:unit], min(n, chosen[unit] + 8), *least[unit + 1 :]]
        assert chosen[unit] == n or budget.cost(wider) > budget.limit


@pytest.mark.parametrize('ratio', [0.9, 0.7, 0.5, 0.3])
def test_with_a_divisor_the_uniform_ratio_is_the_largest_that_fits(resnet50_costs, ratio):
    budget = FlopBudget(ratio)
    dense = resnet50_costs.flops['module'].dense
    p = bound(budget, costs=resnet50_costs, divisor=8).uniform_ratio()
    fitting = [q / 2000 for q in range(2001) if budget.cost(round_widths(q / 2000, dense, 8)) <= budget.limit]
    assert round_widths(p, dense, 8) == round_widths(max(fitting), dense, 8)


def test_a_ratio_that_only_the_divisor_makes_unreachable_is_refused_with_the_range_of_the_divisor(resnet50_costs):
    dense = resnet50_costs.params['module'].dense
    least = round_widths(0.2, dense, 128)
    reachable = resnet50_costs.params['module'].ratio(least)
    ratio = reachable - 0.01
    bound(ParamBudget(ratio), costs=resnet50_costs)
    with pytest.raises(AutoDFPError, match=rf'can only reach {reachable:.4f} to 1; .*lower p_min or channel_divisor'):
        bound(ParamBudget(ratio), costs=resnet50_costs, divisor=128)


def test_several_budgets_hold_at_once_and_each_can_be_the_one_that_binds(resnet50_costs):
    dense = resnet50_costs.params['module'].dense
    for params, flops in ((0.4, 0.9), (0.9, 0.4), (0.5, 0.5)):
        budgets = ParamBudget(params), FlopBudget(flops)
        rng = random.Random(0)
        ask = lambda n, rng=rng: round(n * rng.uniform(0.3, 1))
        for divisor in (1, 8):
            for _ in range(50):
                chosen = play(*budgets, costs=resnet50_costs, ask=ask, divisor=divisor)
                assert resnet50_costs.params['module'].ratio(chosen) <= params
                assert resnet50_costs.flops['module'].ratio(chosen) <= flops
        together, *alone = (bound(*some, costs=resnet50_costs, divisor=8) for some in (budgets, *zip(budgets)))
        assert together.allows(round_widths(together.uniform_ratio(), dense, 8))
        assert together.uniform_ratio() == min(one.uniform_ratio() for one in alone)


def test_a_limit_lies_at_its_own_share_of_the_way_from_least_to_dense(resnet50_costs):
    budgets = ParamBudget(0.7), FlopBudget(0.4)
    limits = bound(*budgets, costs=resnet50_costs)
    for budget in budgets:
        least, dense = budget.cost(limits.min_widths), budget.cost(budget.cost.dense)
        assert budget.share == pytest.approx((budget.limit - least) / (dense - least))
        assert abs(budget.at(budget.share).limit - budget.limit) <= 1
    assert limits.share == min(budget.share for budget in budgets) < 0.7
    assert all(one.limit <= own.limit for one, own in zip(limits.at(limits.share).budgets, budgets, strict=True))
    assert bound(ParamBudget(limit='1G'), costs=resnet50_costs).share == 1


def test_an_unreachable_one_of_several_budgets_is_named(resnet50_costs):
    with pytest.raises(AutoDFPError, match=r"0\.01 of the module's flops was asked for"):
        bound(ParamBudget(0.9), FlopBudget(0.01), costs=resnet50_costs)
    with pytest.raises(AutoDFPError, match='it is empty'):
        Constraint([])
