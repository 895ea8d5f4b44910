"""Widths chosen from error curves: against every plan there is where that can be known, else by their properties."""

import itertools
import random

import pytest
import torch
from conftest import build_resnet

from mmautodfp.costs import (
    Constraint,
    CostModel,
    FlopBudget,
    LatencyBudget,
    LatencyCost,
    LatencyTable,
    ModelCosts,
    ParamBudget,
    model_costs,
    round_widths,
)
from mmautodfp.graph import find_groups
from mmautodfp.reconstruction import SyntheticLeastSquares
from mmautodfp.surgery import allocate_widths, allocation_path

IMAGES = dict(num_images=12, size=32, batch_size=4)


def bound(
    costs: CostModel, ratio: float, least, divisor=1, flops: CostModel | None = None, flop_ratio=1.0
) -> Constraint:
    both = dict.fromkeys(('module', 'model'), costs)
    limit = Constraint([ParamBudget(ratio), FlopBudget(flop_ratio)])
    limit.bind(ModelCosts(both, dict.fromkeys(both, flops or costs)), least, divisor)
    return limit


def random_curve(generator: random.Random, channels: int) -> torch.Tensor:
    """Falls from 1 to 0, the less the more channels there are."""
    steps = sorted((generator.random() for _ in range(channels)), reverse=True)
    return torch.tensor([1 - sum(steps[:count]) / sum(steps) for count in range(channels + 1)])


def chain(dense: list[int], generator: random.Random) -> CostModel:
    cost = CostModel(dense)
    for group in range(len(dense)):
        cost.add(generator.randint(1, 9), group)
    for group in range(1, len(dense)):
        cost.add(generator.randint(1, 9), group - 1, group)
    return cost


@pytest.mark.parametrize('seed', range(5))
def test_where_every_channel_costs_the_same_no_plan_is_better(seed):
    generator = random.Random(seed)
    dense = [5, 6, 7]
    curves = [random_curve(generator, n) for n in dense]
    cost = CostModel(dense)
    for group in range(3):
        cost.add(4, group)
    limit = bound(cost, 0.6, [1, 1, 1])
    found = allocate_widths(curves, limit, dense)
    error = lambda widths: sum(curve[width].item() for curve, width in zip(curves, widths, strict=True))
    plans = itertools.product(*(range(1, n + 1) for n in dense))
    best = min(error(widths) for widths in plans if cost(widths) <= 0.6 * cost(dense))
    assert cost(found) <= 0.6 * cost(dense)
    assert error(found) == pytest.approx(best)


@pytest.mark.parametrize('seed', range(10))
@pytest.mark.parametrize('divisor', [1, 4])
def test_widths_are_within_all_limits_and_leave_no_room_for_a_channel_that_helps(seed, divisor):
    generator = random.Random(seed)
    dense = [generator.randint(20, 90) for _ in range(6)]
    costs, flops = chain(dense, generator), chain(dense, generator)
    least, widest = (round_widths(ratio, dense, divisor) for ratio in (0.2, 0.9))
    limit = bound(costs, 0.5, least, divisor, flops, 0.45)
    curves = [random_curve(generator, n) for n in dense]
    widths = allocate_widths(curves, limit, widest)
    fits = lambda widths: costs(widths) <= 0.5 * costs(dense) and flops(widths) <= 0.45 * flops(dense)
    assert fits(widths)
    for group, (low, width, high) in enumerate(zip(least, widths, widest, strict=True)):
        assert low <= width <= high
        assert divisor == 1 or width % divisor == 0 or width == dense[group]
        if width + divisor <= high:
            assert not fits([*widths[:group], width + divisor, *widths[group + 1 :]])


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('divisor', [1, 4])
def test_widths_along_a_path_are_nested_within_their_limits_and_about_as_good_as_those_found_one_by_one(seed, divisor):
    generator = random.Random(seed)
    dense = [generator.randint(20, 90) for _ in range(6)]
    costs, flops = chain(dense, generator), chain(dense, generator)
    least = round_widths(0.2, dense, divisor)
    limit = bound(costs, 1.0, least, divisor, flops)
    curves = [random_curve(generator, n) for n in dense]
    error = lambda widths: sum(curve[width].item() for curve, width in zip(curves, widths, strict=True))
    shares = [0.9, 0.75, 0.5, 0.25, 0.1, 0.0]
    path = allocation_path(curves, limit, dense, shares)
    assert path[-1] == least
    for before, widths in itertools.pairwise([dense, *path]):
        assert all(now <= then for now, then in zip(widths, before, strict=True))
    for share, widths in zip(shares, path, strict=True):
        for cost in (costs, flops):
            assert cost(widths) <= cost(least) + share * (cost(dense) - cost(least))
        assert error(widths) <= 1.02 * error(allocate_widths(curves, limit.at(share), dense)) + 0.01


def test_channels_that_say_nothing_new_go_first():
    dense = [64, 64]
    cost = CostModel(dense)
    cost.add(3, 0)
    cost.add(3, 1)
    plain = torch.linspace(1, 0, 65)
    redundant = (1 - torch.arange(65) / 16).clamp_min(0)  # 16 channels explain all
    assert allocate_widths([plain, redundant], bound(cost, 0.625, [1, 1]), dense) == [64, 16]


def latency(dense: list[int], nanoseconds: list[list[int]]) -> LatencyCost:
    """Of groups side by side, each measured at a quarter, half, three quarters and all of its width."""
    terms = []
    for group, (n, times) in enumerate(zip(dense, nanoseconds, strict=True)):
        table = LatencyTable([n // 4, n // 2, 3 * n // 4, n], [1], [[time] for time in times])
        terms.append((table, [(group, 1)], [(None, 1)]))
    return LatencyCost(dense, 0, terms)


def latency_limit(cost: LatencyCost, ratio: float) -> Constraint:
    limit = Constraint([LatencyBudget(ratio)])
    both = dict.fromkeys(('module', 'model'), cost)
    limit.bind(ModelCosts(both, both, both), [8] * len(cost.dense))
    return limit


def test_a_group_that_is_no_faster_until_it_is_much_narrower_is_narrowed_all_the_same():
    redundant = (1 - torch.arange(65) / 16).clamp_min(0)  # 16 channels explain all
    plain = torch.linspace(1, 0, 65)
    cost = latency([64, 64], [[100, 200, 400, 400], [100, 200, 300, 400]])
    widths = allocate_widths([redundant, plain], latency_limit(cost, 0.7), [64, 64])
    assert cost(widths) <= 0.7 * 800
    assert widths[0] < 48
    assert widths[1] == 64


def test_latency_that_falls_only_if_two_groups_are_narrower_can_be_met():
    both = LatencyTable([16, 32, 64], [16, 32, 64], [[100, 400, 400], [400, 400, 400], [400, 400, 400]])
    cost = LatencyCost([64, 64], 0, [(both, [(0, 1)], [(1, 1)])])
    widths = allocate_widths([torch.linspace(1, 0, 65)] * 2, latency_limit(cost, 0.6), [64, 64])
    assert cost(widths) <= 0.6 * 400


def test_nothing_is_pruned_where_the_limit_allows_all():
    cost = chain([8, 8], random.Random(0))
    assert allocate_widths([torch.linspace(1, 0, 9)] * 2, bound(cost, 1.0, [1, 1]), [8, 8]) == [8, 8]


def test_the_curve_of_least_squares_is_the_share_of_the_consumers_output_that_is_lost():
    module = build_resnet(depth=50)
    reconstructor = SyntheticLeastSquares(IMAGES)
    reconstructor.ensure_fitted(module)
    group = next(group for group in find_groups(module) if group.name == 'layer2.0.conv2')  # read by a 1x1 convolution
    ranking = reconstructor.ranking(group)
    curve = reconstructor.error_curve(group, ranking)
    covariance = reconstructor._consumers[group.name][group.consumers[0].key].covariance
    weight = module.layer2[0].conv3.weight.detach().flatten(1).double()
    whole = torch.einsum('on,nm,om->', weight, covariance, weight)
    for count in (1, group.num_channels // 2, group.num_channels - 1):
        keep = ranking[:count]
        explained = covariance[:, keep] @ torch.linalg.solve(covariance[keep][:, keep], covariance[keep])
        lost = torch.einsum('on,nm,om->', weight, covariance - explained, weight)
        assert curve[count].item() == pytest.approx((lost / whole).item(), abs=1e-5)
    assert curve[0] == 1
    assert (curve.diff() <= 1e-12).all()


def test_groups_whose_channels_have_twins_are_narrowed_first():
    """In one group each channel has a twin: half of it can go for nothing, and does."""
    module = build_resnet(depth=50)
    block = module.layer3[1]
    with torch.no_grad():
        half = block.conv2.weight.shape[0] // 2
        for tensor in (block.conv2.weight, *(getattr(block.bn2, name) for name in ('weight', 'bias'))):
            tensor[half:] = tensor[:half]
        for name in ('running_mean', 'running_var'):
            getattr(block.bn2, name)[half:] = getattr(block.bn2, name)[:half]
    reconstructor = SyntheticLeastSquares(IMAGES)
    reconstructor.ensure_fitted(module)
    groups = find_groups(module)
    dense = [group.num_channels for group in groups]
    costs = model_costs(module, module, groups, {})
    place = next(index for index, group in enumerate(groups) if group.name == 'layer3.1.conv2')
    spared = costs.params['module']([n // 2 if index == place else n for index, n in enumerate(dense)])
    limit = Constraint([ParamBudget(spared / costs.params['module'](dense))])
    limit.bind(costs, [1] * len(dense))
    curves = [reconstructor.error_curve(group, reconstructor.ranking(group)) for group in groups]
    widths = allocate_widths(curves, limit, dense)
    assert widths[place] == half
    assert [width for index, width in enumerate(widths) if index != place] == [
        n for index, n in enumerate(dense) if index != place
    ]
