import random

import pytest
import torch

from mmautodfp.costs import CostModel, ModelCosts, ParamBudget, round_widths
from mmautodfp.search import PruningEnv, RatioRange
from mmautodfp.utils import AutoDFPError

RATIOS = RatioRange()


def chain_costs(dense: list[int], inputs: int = 3, outputs: int = 10) -> ModelCosts:
    """A chain of 1x1 convolutions between ``inputs`` and ``outputs`` channels."""

    def chain() -> CostModel:
        cost = CostModel(dense)
        cost.add(inputs, 0)
        for unit in range(1, len(dense)):
            cost.add(1, unit - 1, unit)
        cost.add(outputs, len(dense) - 1)
        return cost

    return ModelCosts(*({scope: chain() for scope in ('module', 'model')} for _ in range(2)))


def make_env(ratio: float = 0.6, dense=(16, 24, 32), reward=lambda plan: 0.5, ratios=RATIOS, start=None) -> PruningEnv:
    dense = list(dense)
    budget = ParamBudget(ratio)
    budget.bind(chain_costs(dense), round_widths(ratios.low, dense))
    rankings = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in dense]
    states = torch.arange(9.0 * len(dense)).reshape(-1, 9)
    names = [f'conv{index}' for index in range(len(dense))]
    return PruningEnv(names, rankings, states, budget, reward, ratios, start)


def play(env: PruningEnv, actions) -> list[tuple]:
    env.reset()
    return [env.step(torch.tensor(action)) for action in actions]


def test_states_come_in_order_and_the_reward_at_the_end():
    seen = []
    env = make_env(1.0, reward=lambda plan: seen.append(plan) or 0.25)
    state, info = env.reset()
    assert torch.equal(state, env.states[0])
    assert info == {}
    steps = play(env, [(0.0, 0.1), (0.5, 0.2), (1.0, 0.3)])
    assert [torch.equal(step[0], env.states[index]) for step, index in zip(steps, (1, 2, 2), strict=True)] == [True] * 3
    assert [step[1:4] for step in steps] == [(0.0, False, False), (0.0, False, False), (0.25, True, False)]
    plan = steps[-1][4]['plan']
    assert seen == [plan]
    # Eq. 15 on p = 0.2, 0.6, 1
    assert plan.widths == {'conv0': 3, 'conv1': 14, 'conv2': 32}
    assert [unit.lam for unit in plan.units.values()] == pytest.approx([0.1, 0.2, 0.3])


def test_the_highest_ranked_channels_are_kept_ascending():
    env = make_env(1.0)
    plan = play(env, [(0.3, 0.5)] * 3)[-1][4]['plan']
    for ranking, unit in zip(env.rankings, plan.units.values(), strict=True):
        assert set(unit.keep) == set(ranking.tolist()[: unit.width])
        assert list(unit.keep) == sorted(unit.keep)


def test_the_executed_action_tells_what_the_budget_left():
    env = make_env(0.5)
    steps = play(env, [(1.0, 0.7)] * 3)
    widths = [step[4]['width'] for step in steps]
    assert env.budget.cost(widths) <= env.budget.limit
    for step, width, ranking in zip(steps, widths, env.rankings, strict=True):
        share, lam = step[4]['action'].tolist()
        assert lam == pytest.approx(0.7)
        if width == len(ranking):
            assert share == 1
        else:
            assert share == pytest.approx(max(0, (width / len(ranking) - 0.2) / 0.8))


def test_random_actions_stay_within_budget_and_bounds():
    rng = random.Random(0)
    for ratio in (0.9, 0.7, 0.5, 0.3):
        env = make_env(ratio, dense=[rng.randint(8, 64) for _ in range(12)])
        for _ in range(200):
            plan = play(env, [(rng.random(), rng.random()) for _ in range(12)])[-1][4]['plan']
            widths = list(plan.widths.values())
            assert env.budget.cost(widths) <= env.budget.limit
            assert all(width >= least for width, least in zip(widths, env.budget.min_widths, strict=True))


def test_p_max_bounds_the_widths():
    env = make_env(1.0, ratios=RatioRange(0.2, 0.5))
    assert list(play(env, [(1.0, 0.0)] * 3)[-1][4]['plan'].widths.values()) == [8, 12, 16]


def test_the_uniform_plan_fits_and_is_uniform():
    env = make_env(0.6, dense=[100, 200, 300])
    plan = env.uniform_plan(lam=0.25)
    ratios = [unit.ratio for unit in plan.units.values()]
    assert max(ratios) - min(ratios) <= 0.01
    assert env.budget.cost(list(plan.widths.values())) <= env.budget.limit
    assert {unit.lam for unit in plan.units.values()} == {0.25}
    # Played as actions it is the same plan.
    share = env.ratios.to_action(env.budget.uniform_ratio())
    assert play(env, [(share, 0.25)] * 3)[-1][4]['plan'].widths == plan.widths
    assert play(env, env.uniform_actions(0.25).tolist())[-1][4]['plan'] == plan


@pytest.mark.parametrize('start', [[100, 40, 150], [20, 200, 60], [77, 123, 211]])
def test_actions_are_counted_from_the_plan_to_start_from(start):
    env = make_env(1.0, dense=[100, 200, 300], start=start)
    assert list(play(env, [(0.5, 0.5)] * 3)[-1][4]['plan'].widths.values()) == start
    assert env.allocated_plan == play(env, [(0.5, 0.5)] * 3)[-1][4]['plan']
    assert list(play(env, [(0.0, 0.5)] * 3)[-1][4]['plan'].widths.values()) == [20, 40, 60]
    assert list(play(env, [(1.0, 0.5)] * 3)[-1][4]['plan'].widths.values()) == [100, 200, 300]


def test_the_uniform_plan_can_be_played_wherever_actions_are_counted_from():
    dense = [100, 200, 300]
    env = make_env(0.6, dense, start=[100, 200, 60])
    assert play(env, env.uniform_actions(0.25).tolist())[-1][4]['plan'] == make_env(0.6, dense).uniform_plan(0.25)
    assert make_env(0.6, dense).allocated_plan is None


@pytest.mark.parametrize('high', [1.0, 0.9])
def test_any_start_is_played_exactly_even_at_widths_that_rounding_leaves_out_of_the_range(high):
    ratios = RatioRange(0.2, high)
    rng = random.Random(0)
    for _ in range(50):
        dense = [rng.choice([15, 16, 32, 51, 64, 256]) for _ in range(6)]
        least, widest = round_widths(0.2, dense), round_widths(high, dense)  # 3 of 16 is less than 0.2
        start = [rng.choice([low, most, rng.randint(low, most)]) for low, most in zip(least, widest, strict=True)]
        env = make_env(1.0, dense, ratios=ratios, start=start)
        assert list(play(env, [(0.5, 0.5)] * 6)[-1][4]['plan'].widths.values()) == start
        tight = make_env(0.4, dense, ratios=ratios, start=least)
        uniform = tight.uniform_plan()
        assert play(tight, tight.uniform_actions(0.5).tolist())[-1][4]['plan'] == uniform
        executed = [step[4]['action'].tolist() for step in play(tight, [(1.0, 0.5)] * 6)]  # lowered by the budget
        assert all(0 <= share <= 1 for share, _ in executed)


@pytest.mark.parametrize('middle', [0.2, 0.35, 0.6, 1.0])
def test_ratios_rise_with_actions_on_both_sides_of_the_middle(middle):
    space = RATIOS.through(middle)
    actions = torch.linspace(0, 1, 101).tolist()
    ratios = [space.to_ratio(action) for action in actions]
    assert ratios == sorted(ratios)
    assert [ratios[0], ratios[50], ratios[100]] == pytest.approx([0.2, middle, 1.0])
    assert [space.to_ratio(space.to_action(ratio)) for ratio in ratios] == pytest.approx(ratios)


def test_an_action_that_the_budget_lowered_is_told_as_it_was_executed():
    env = make_env(0.4, dense=[100, 200, 300], start=[20, 40, 60])
    steps = play(env, [(1.0, 0.5)] * 3)
    executed = [step[4]['action'].tolist() for step in steps]
    assert min(share for share, _ in executed) < 1
    assert play(env, executed)[-1][4]['plan'] == steps[-1][4]['plan']


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (0.5, 0.5), (0.5, 0.2), (0.2, 1.1)])
def test_impossible_ranges_are_refused(low, high):
    with pytest.raises(AutoDFPError, match='0 < p_min < p_max <= 1'):
        RatioRange(low, high)
