"""How much a layer may keep so that the whole stays within one limit or several (Algorithm 1)."""

import random

import pytest
import torch
from conftest import build_resnet
from cost_data import bound, costs_of, play

from mmautodfp.costs import Constraint, FlopBudget, ParamBudget, allowed_widths, round_widths
from mmautodfp.utils import AutoDFPError


@pytest.fixture(scope='module')
def resnet50_costs():
    return costs_of(build_resnet(50, base_channels=64))


@pytest.mark.parametrize('kind', [ParamBudget, FlopBudget])
@pytest.mark.parametrize('scope', ['module', 'model'])
@pytest.mark.parametrize('ratio', [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize('divisor', [1, 8])
def test_100_random_agents_keep_allowed_widths_and_are_never_over_the_budget(
    resnet50_costs, kind, scope, ratio, divisor
):
    rng = random.Random(ratio)
    dense = resnet50_costs.params['module'].dense
    for _ in range(100):
        budget = kind(ratio, scope)
        greed = rng.random()  # from timid agents to those that want nearly everything
        ask = lambda n, g=greed: round(n * (g + (1 - g) * rng.random()))
        chosen = play(bound(budget, costs=resnet50_costs, divisor=divisor), ask)
        assert all(width % divisor == 0 or width == n for width, n in zip(chosen, dense, strict=True))
        assert budget.cost(chosen) <= ratio * budget.cost(dense)


@pytest.mark.parametrize('kind', [ParamBudget, FlopBudget])
@pytest.mark.parametrize('ratio', [0.9, 0.7, 0.5, 0.3])
def test_always_asking_for_everything_ends_within_one_channel_of_the_budget(resnet50_costs, kind, ratio):
    budget = kind(ratio)
    chosen = play(bound(budget, costs=resnet50_costs), lambda n: n)
    spare = ratio * budget.cost(budget.cost.dense) - budget.cost(chosen)
    wider = [[*chosen[:group], chosen[group] + 1, *chosen[group + 1 :]] for group, n in enumerate(chosen)]
    wider = [widths for widths, old, n in zip(wider, chosen, budget.cost.dense, strict=True) if old < n]
    assert wider
    assert 0 <= spare < min(budget.cost(widths) for widths in wider) - budget.cost(chosen)


@pytest.mark.parametrize('ratio', [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize(('kind', 'divisor'), [(ParamBudget, 1), (FlopBudget, 8)])
def test_the_uniform_ratio_is_the_largest_that_fits(resnet50_costs, kind, divisor, ratio):
    budget = kind(ratio)
    dense = resnet50_costs.flops['module'].dense
    p = bound(budget, costs=resnet50_costs, divisor=divisor).uniform_ratio()
    fitting = [q / 2000 for q in range(2001) if budget.cost(round_widths(q / 2000, dense, divisor)) <= budget.limit]
    assert round_widths(p, dense, divisor) == round_widths(max(fitting), dense, divisor)


def test_the_uniform_ratio_survives_rounding_to_float32_as_an_action(resnet50_costs):
    dense = resnet50_costs.params['module'].dense
    for kind in (ParamBudget, FlopBudget):
        for percent in range(30, 100, 3):
            p = bound(kind(percent / 100), costs=resnet50_costs).uniform_ratio()
            action = torch.tensor((p - 0.2) / 0.8).item()
            assert round_widths(0.2 + 0.8 * action, dense) == round_widths(p, dense)


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


def test_with_a_divisor_the_bound_is_the_widest_allowed_width_that_fits(resnet50_costs):
    budget = ParamBudget(0.5)
    chosen = play(bound(budget, costs=resnet50_costs, divisor=8), lambda n: n)
    least = round_widths(0.2, budget.cost.dense, 8)
    for group, n in enumerate(budget.cost.dense):
        wider = [*chosen[:group], min(n, chosen[group] + 8), *least[group + 1 :]]
        assert chosen[group] == n or budget.cost(wider) > budget.limit


def test_several_budgets_hold_at_once_and_each_can_be_the_one_that_binds(resnet50_costs):
    dense = resnet50_costs.params['module'].dense
    for params, flops in ((0.4, 0.9), (0.9, 0.4), (0.5, 0.5)):
        budgets = ParamBudget(params), FlopBudget(flops)
        rng = random.Random(0)
        ask = lambda n, rng=rng: round(n * rng.uniform(0.3, 1))
        for divisor in (1, 8):
            for _ in range(50):
                chosen = play(bound(*budgets, costs=resnet50_costs, divisor=divisor), ask)
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
