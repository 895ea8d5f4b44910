"""A limit on one cost: how it is written, told and refused."""

import re

import pytest
from conftest import build_resnet
from cost_data import bound, costs_of, play

from mmautodfp.costs import FlopBudget, ParamBudget, round_widths
from mmautodfp.utils import AutoDFPError


@pytest.fixture(scope='module')
def resnet50_costs():
    return costs_of(build_resnet(50, base_channels=64))


@pytest.mark.parametrize('ratio', [0, -1, 1.01])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(AutoDFPError, match=r'lies in \(0, 1\]'):
        ParamBudget(ratio)


def test_an_unknown_scope_is_refused():
    with pytest.raises(AutoDFPError, match="'module' or 'model', got 'neck'"):
        ParamBudget(0.5, scope='neck')


def test_an_unreachable_ratio_is_refused_with_the_reachable_range(resnet50_costs):
    dense = resnet50_costs.params['module'].dense
    least = resnet50_costs.params['module'].ratio(round_widths(0.2, dense))
    with pytest.raises(AutoDFPError, match=rf'can only reach {least:.4f} to 1'):
        bound(ParamBudget(0.2), costs=resnet50_costs)


def test_a_ratio_that_only_the_divisor_makes_unreachable_is_refused_with_the_range_of_the_divisor(resnet50_costs):
    dense = resnet50_costs.params['module'].dense
    least = round_widths(0.2, dense, 128)
    reachable = resnet50_costs.params['module'].ratio(least)
    ratio = reachable - 0.01
    bound(ParamBudget(ratio), costs=resnet50_costs)
    with pytest.raises(AutoDFPError, match=rf'can only reach {reachable:.4f} to 1; .*lower p_min or channel_divisor'):
        bound(ParamBudget(ratio), costs=resnet50_costs, divisor=128)


@pytest.mark.parametrize(
    ('limit', 'unit', 'size'),
    [('1M', 'M', 10**6), ('900k', 'k', 1000), ('0.002G', 'G', 10**9), ('5%', '%', 235080.32)],
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
    assert 0.99 * budget.limit < budget.cost(play(limits, lambda n: n)) <= budget.limit
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
    assert play(limits, lambda n: n) == budget.cost.dense
