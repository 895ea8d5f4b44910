import random

import pytest
import torch

from mmautodfp.costs import Constraint, CostModel, ModelCosts, ParamBudget, round_widths
from mmautodfp.search import PruningEnv, RatioRange
from mmautodfp.search.environment import Rollout
from mmautodfp.surgery import allocate_widths
from mmautodfp.utils import AutoDFPError

RATIOS = RatioRange()


def chain_costs(dense: list[int], inputs: int = 3, outputs: int = 10) -> ModelCosts:
    """A chain of 1x1 convolutions between ``inputs`` and ``outputs`` channels."""

    def chain() -> CostModel:
        cost = CostModel(dense)
        cost.add(inputs, 0)
        for group in range(1, len(dense)):
            cost.add(1, group - 1, group)
        cost.add(outputs, len(dense) - 1)
        return cost

    return ModelCosts(*({scope: chain() for scope in ('module', 'model')} for _ in range(2)))


def make_env(ratio: float = 0.6, dense=(16, 24, 32), ratios=RATIOS, start=None, curves=None) -> PruningEnv:
    dense = list(dense)
    limits = Constraint([ParamBudget(ratio)])
    limits.bind(chain_costs(dense), round_widths(ratios.low, dense))
    rankings = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in dense]
    states = torch.arange(9.0 * len(dense)).reshape(-1, 9)
    names = [f'conv{index}' for index in range(len(dense))]
    return PruningEnv(names, rankings, states, limits, ratios, start, curves)


def play(env: PruningEnv, actions) -> Rollout:
    actions = iter(actions)
    return env.rollout(lambda state: torch.as_tensor(next(actions)))


def uniform_widths(env: PruningEnv) -> list[int]:
    return round_widths(env.constraint.uniform_ratio(), [len(ranking) for ranking in env.rankings])


def test_states_are_shown_in_order_and_actions_become_widths_and_lambdas():
    seen, env = [], make_env(1.0)
    actions = iter([(0.0, 0.1), (0.5, 0.2), (1.0, 0.3)])
    rollout = env.rollout(lambda state: seen.append(state) or torch.tensor(next(actions)))
    assert torch.equal(torch.stack(seen), env.states)
    assert rollout.widths == [3, 14, 32]  # Eq. 15 on p = 0.2, 0.6, 1
    assert rollout.lams == pytest.approx([0.1, 0.2, 0.3])
    assert torch.equal(rollout.actions, torch.tensor([[0.0, 0.1], [0.5, 0.2], [1.0, 0.3]]))


def test_the_highest_ranked_channels_are_kept_ascending():
    env = make_env(1.0)
    rollout = play(env, [(0.3, 0.25)] * 3)
    plan = env.plan(rollout.widths, rollout.lams)
    assert list(plan.groups) == ['conv0', 'conv1', 'conv2']
    assert list(plan.widths.values()) == rollout.widths
    for ranking, group in zip(env.rankings, plan.groups.values(), strict=True):
        assert set(group.keep) == set(ranking.tolist()[: group.width])
        assert list(group.keep) == sorted(group.keep)
        assert group.lam == 0.25


def test_the_executed_action_tells_what_the_constraint_left():
    env = make_env(0.5)
    rollout = play(env, [(1.0, 0.7)] * 3)
    assert env.constraint.allows(rollout.widths)
    for (share, lam), width, ranking in zip(rollout.actions.tolist(), rollout.widths, env.rankings, strict=True):
        assert lam == pytest.approx(0.7)
        if width == len(ranking):
            assert share == 1
        else:
            assert share == pytest.approx(max(0, (width / len(ranking) - 0.2) / 0.8))


def test_random_actions_stay_within_the_constraint_and_bounds():
    rng = random.Random(0)
    for ratio in (0.9, 0.7, 0.5, 0.3):
        env = make_env(ratio, dense=[rng.randint(8, 64) for _ in range(12)])
        for _ in range(50):
            widths = play(env, [(rng.random(), rng.random()) for _ in range(12)]).widths
            assert env.constraint.allows(widths)
            assert all(width >= least for width, least in zip(widths, env.constraint.min_widths, strict=True))


def test_p_max_bounds_the_widths():
    env = make_env(1.0, ratios=RatioRange(0.2, 0.5))
    assert play(env, [(1.0, 0.0)] * 3).widths == [8, 12, 16]


@pytest.mark.parametrize('start', [None, [100, 200, 60]])
def test_the_uniform_plan_can_be_played_wherever_actions_are_counted_from(start):
    env = make_env(0.6, dense=[100, 200, 300], start=start)
    rollout = play(env, env.uniform_actions(0.25))
    assert rollout.widths == uniform_widths(env)
    assert rollout.lams == [0.25] * 3
    ratios = [width / dense for width, dense in zip(rollout.widths, [100, 200, 300], strict=True)]
    assert max(ratios) - min(ratios) <= 0.01
    assert env.constraint.allows(rollout.widths)


@pytest.mark.parametrize('start', [None, [100, 40, 150], [20, 200, 60]])
def test_any_widths_within_the_limit_can_be_played_wherever_actions_are_counted_from(start):
    env, rng = make_env(1.0, dense=[100, 200, 300], start=start), random.Random(0)
    for _ in range(50):
        widths = [rng.randint(dense // 5, dense) for dense in (100, 200, 300)]
        rollout = play(env, env.actions(widths, 0.25))
        assert (rollout.widths, rollout.lams) == (widths, [0.25] * 3)


@pytest.mark.parametrize('start', [[100, 40, 150], [20, 200, 60], [77, 123, 211]])
def test_actions_are_counted_from_the_widths_to_start_from(start):
    env = make_env(1.0, dense=[100, 200, 300], start=start)
    assert play(env, [(0.5, 0.5)] * 3).widths == start
    assert play(env, [(0.0, 0.5)] * 3).widths == [20, 40, 60]
    assert play(env, [(1.0, 0.5)] * 3).widths == [100, 200, 300]


CURVES = [scale * torch.linspace(1, 0, n + 1) ** 2 for scale, n in zip((1, 3, 0.5), (100, 200, 300), strict=True)]


def test_where_errors_are_known_actions_weigh_them_and_all_of_the_limit_is_made_use_of():
    env, rng = make_env(0.5, dense=[100, 200, 300], ratios=RatioRange(0.2, 0.9), curves=CURVES), random.Random(0)
    widest = [90, 180, 270]
    assert play(env, [(0.5, 0.3)] * 3).widths == allocate_widths(CURVES, env.constraint, widest)
    for _ in range(20):
        actions = torch.tensor([[rng.random(), rng.random()] for _ in range(3)])
        rollout = play(env, actions)
        weights = [4 ** (2 * share - 1) for share in actions[:, 0].tolist()]
        weighted = [weight * curve for weight, curve in zip(weights, CURVES, strict=True)]
        assert rollout.widths == allocate_widths(weighted, env.constraint, widest)
        assert torch.equal(rollout.actions, actions)
        assert rollout.lams == actions[:, 1].tolist()
        for group, most in enumerate(widest):
            more = [width + (place == group) for place, width in enumerate(rollout.widths)]
            assert more[group] > most or not env.constraint.allows(more)
            raised = actions.clone()
            raised[group, 0] = 1
            assert play(env, raised).widths[group] >= rollout.widths[group]


def test_known_errors_decide_nothing_where_the_limit_need_not_be_made_use_of():
    plain, known = (make_env(0.5, dense=[100, 200, 300], start=[60, 90, 80], curves=one) for one in (None, CURVES))
    for share in (0.1, 0.4, 0.9):
        found = known.rollout(lambda _, share=share: torch.tensor([share, 0.5]), weigh_errors=False)
        assert found.widths == play(plain, [(share, 0.5)] * 3).widths


def test_other_channels_and_another_start_replace_those_of_the_constructor():
    env, other = make_env(0.6, start=[4, 20, 9]), make_env(0.6, start=[16, 5, 12])
    rankings = [ranking.flip(0) for ranking in env.rankings]
    env.set_channels(rankings, other.start)
    rollout = play(env, [(0.4, 0.1)] * 3)
    assert rollout.widths == play(other, [(0.4, 0.1)] * 3).widths
    kept = [set(ranking[:width].tolist()) for ranking, width in zip(rankings, rollout.widths, strict=True)]
    assert [set(group.keep) for group in env.plan(rollout.widths, rollout.lams).groups.values()] == kept


@pytest.mark.parametrize('high', [1.0, 0.9])
def test_any_start_is_played_exactly_even_at_widths_that_rounding_leaves_out_of_the_range(high):
    ratios = RatioRange(0.2, high)
    rng = random.Random(0)
    for _ in range(50):
        dense = [rng.choice([15, 16, 32, 51, 64, 256]) for _ in range(6)]
        least, widest = round_widths(0.2, dense), round_widths(high, dense)  # 3 of 16 is less than 0.2
        start = [rng.choice([low, most, rng.randint(low, most)]) for low, most in zip(least, widest, strict=True)]
        env = make_env(1.0, dense, ratios=ratios, start=start)
        assert play(env, [(0.5, 0.5)] * 6).widths == start
        tight = make_env(0.4, dense, ratios=ratios, start=least)
        assert play(tight, tight.uniform_actions(0.5)).widths == uniform_widths(tight)
        lowered = play(tight, [(1.0, 0.5)] * 6).actions[:, 0]
        assert ((lowered >= 0) & (lowered <= 1)).all()


@pytest.mark.parametrize('middle', [0.2, 0.35, 0.6, 1.0])
def test_ratios_rise_with_actions_on_both_sides_of_the_middle(middle):
    space = RATIOS.through(middle)
    actions = torch.linspace(0, 1, 101).tolist()
    ratios = [space.to_ratio(action) for action in actions]
    assert ratios == sorted(ratios)
    assert [ratios[0], ratios[50], ratios[100]] == pytest.approx([0.2, middle, 1.0])
    assert [space.to_ratio(space.to_action(ratio)) for ratio in ratios] == pytest.approx(ratios)


def test_an_action_that_the_constraint_lowered_is_told_as_it_was_executed():
    env = make_env(0.4, dense=[100, 200, 300], start=[20, 40, 60])
    rollout = play(env, [(1.0, 0.5)] * 3)
    assert rollout.actions[:, 0].min() < 1
    assert play(env, rollout.actions).widths == rollout.widths


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (0.5, 0.5), (0.5, 0.2), (0.2, 1.1)])
def test_impossible_ranges_are_refused(low, high):
    with pytest.raises(AutoDFPError, match='0 < p_min < p_max <= 1'):
        RatioRange(low, high)
