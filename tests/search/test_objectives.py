"""Several objectives: their arithmetic against slow references, and what a search makes of them."""

import itertools
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from gloo_ranks import on_ranks
from test_run import AGENT, IMAGES, brightness, episodes_of, make_task, run
from test_sac import SMALL, make_spec

from mmautodfp.costs import MemoryBudget, ParamBudget
from mmautodfp.search import SAC, AgentSpec, SACConfig, Trajectory, hypervolume, pareto_set
from mmautodfp.search.objectives import Objectives, draw_preferences, read_weights
from mmautodfp.utils import AutoDFPError

ACCURATE, CHEAP = dict(metric=1, params=0.01), dict(metric=0.01, params=1)


def points(count, size, seed=0, steps=None):
    """Random outcomes [count, size]; with ``steps`` on a grid, so that some are equal in places."""
    values = np.random.default_rng(seed).random((count, size))
    return (np.round(values * steps) / steps if steps else values).tolist()


def brute_force(outcomes):
    """Slowly: which of the outcomes none other beats, of equal ones the first."""
    kept = []
    for index, one in enumerate(outcomes):
        beaten = False
        for place, other in enumerate(outcomes):
            as_good = all(a >= b for a, b in zip(other, one, strict=True))
            better = any(a > b for a, b in zip(other, one, strict=True))
            beaten |= as_good and (better or place < index)
        if not beaten:
            kept.append(index)
    return kept


# Pareto sets and hypervolumes


@pytest.mark.parametrize('size', [1, 2, 3, 5])
@pytest.mark.parametrize('steps', [None, 4])
def test_the_pareto_set_is_what_a_slow_comparison_of_all_pairs_leaves(size, steps):
    for seed in range(5):
        outcomes = points(40, size, seed, steps)
        assert pareto_set(outcomes) == brute_force(outcomes)
    assert pareto_set([]) == []


@pytest.mark.parametrize('size', [1, 2, 3, 4])
@pytest.mark.parametrize('steps', [None, 3])
def test_the_hypervolume_is_that_of_inclusion_and_exclusion(size, steps):
    for seed in range(4):
        outcomes, reference = points(7, size, seed, steps), [0.1] * size
        volume = 0.0
        for count in range(1, 8):
            for boxes in itertools.combinations(outcomes, count):
                common = np.clip(np.min(boxes, 0) - reference, 0, None).prod()
                volume += common if count % 2 else -common
        assert hypervolume(outcomes, reference) == pytest.approx(volume, abs=1e-12)


def test_the_hypervolume_is_the_share_of_random_points_that_are_beaten():
    outcomes = points(30, 3)
    drawn = np.random.default_rng(1).random((40000, 3))
    beaten = (drawn[:, None] < np.array(outcomes)[None]).all(2).any(1)
    assert hypervolume(outcomes, [0, 0, 0]) == pytest.approx(beaten.mean(), abs=0.01)


def test_beaten_points_add_no_volume_and_neither_do_those_below_the_reference():
    outcomes = points(40, 3)
    front = [outcomes[index] for index in pareto_set(outcomes)]
    assert len(front) < 40
    assert hypervolume(front, [0, 0, 0]) == pytest.approx(hypervolume(outcomes, [0, 0, 0]), rel=1e-12)
    assert hypervolume([[2.0, -0.1], [0.0, 5.0]], [0, 0]) == 0
    assert hypervolume([], [0, 0]) == 0


# Weights and outcomes


def test_weights_are_made_to_sum_to_one_in_a_fixed_order():
    weights = read_weights(dict(memory=0, flops=0.5, metric=1))
    assert list(weights.items()) == [('metric', 2 / 3), ('flops', 1 / 3), ('memory', 0)]


@pytest.mark.parametrize(
    ('objectives', 'message'),
    [
        (dict(metric=1, speed=1), 'a set of objectives was asked for speed, which it does not know; it knows metric, '),
        (dict(metric=1, params=-0.1), r'asked for params=-0\.1; it must be greater than or equal to 0'),
        (dict(metric=0, params=0), 'asked for metric=0; it must be greater than 0'),
        (dict(params=1), 'a set of objectives needs metric, which is not given'),
        (dict(metric=1), r'only the metric is named; name a cost beside it \(params, flops, latency, memory\)'),
        (
            dict(metric=1, latency=1),
            r"objective on the latency .* give PruningTask.build .* also_measure=\['latency'\]",
        ),
        (dict(metric='high', params=1), "objectives={'metric': 'high', 'params': 1}; it must be a valid number"),
    ],
)
def test_bad_objectives_end_in_a_sentence(objectives, message):
    with pytest.raises(AutoDFPError, match=message) as caught:
        run(make_task(), 2, objectives=objectives)
    assert '\n' not in str(caught.value)


def test_what_does_not_go_with_objectives_is_told():
    with pytest.raises(AutoDFPError, match=r'racing=True was asked for together with objectives, .* leave one of'):
        run(make_task(), 2, objectives=CHEAP, racing=True)
    with pytest.raises(AutoDFPError, match='the dense model is rewarded with -1, of which there is no share; choose'):
        run(make_task(), 2, reward=lambda model: -1.0, objectives=CHEAP)


def test_an_outcome_is_the_kept_share_of_the_metric_and_the_saved_shares_of_the_costs():
    limits = [ParamBudget(0.6), MemoryBudget(0.9, scope='model')]
    task = make_task(share=limits, example_input=IMAGES, also_measure=['flops', 'memory'])
    objectives = Objectives.build(dict(flops=1, memory=1, params=2, metric=4), task.costs, task.constraint, lambda: 0.8)
    widths = [4, 6, 5]
    costs = task.costs.summary(widths)
    # Of the scope of the limit on the same cost; of all of the model where there is none.
    saved = [1 - costs[name]['ratio'] for name in ('module_params', 'model_flops', 'model_memory')]
    outcome = objectives.outcome(0.6, widths)
    assert outcome == pytest.approx([0.75, *saved])
    assert objectives.utility(outcome) == pytest.approx(0.5 * 0.75 + 0.25 * saved[0] + 0.125 * (saved[1] + saved[2]))
    assert objectives.outcome(0.8, task.dense_widths) == [1, 0, 0, 0]


def test_costs_without_a_limit_are_measured_of_all_of_the_model_and_limit_nothing():
    plain, task = make_task(example_input=IMAGES), make_task(example_input=IMAGES, also_measure=['memory', 'params'])
    assert plain.costs.memory == {}
    assert set(task.costs.memory) == {'module', 'model'}
    assert task.constraint.describe() == plain.constraint.describe()
    assert task.identity == plain.identity
    with pytest.raises(AutoDFPError, match='the memory was to be limited or to be an objective, but without'):
        make_task(also_measure=['memory'])


# Learning under preferences


def test_preferences_are_the_asked_one_or_drawn_evenly_from_the_simplex():
    asked, generator = [0.7, 0.2, 0.1], torch.Generator().manual_seed(0)
    found = draw_preferences(asked, 4000, 0.25, generator)
    assert torch.allclose(found.sum(1), torch.ones(4000))
    assert found.min() >= 0
    drawn = found[(found != torch.tensor(asked)).any(1)]
    assert len(drawn) / 4000 == pytest.approx(0.25, abs=0.03)
    # Dirichlet(1) of 3: each share is Beta(1, 2), of mean 1/3, and above 1/2 with a chance of 1/4.
    assert drawn.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert (drawn > 0.5).float().mean(0).tolist() == pytest.approx([0.25] * 3, abs=0.05)
    assert torch.equal(draw_preferences(asked, 5, 0.0, generator), torch.tensor([asked] * 5))


@pytest.mark.parametrize('credit', ['monte_carlo', 'td'])
def test_relabelled_targets_are_the_outcome_weighed_by_the_preference_in_the_state(credit):
    agent = SAC(make_conditioned_spec(), gamma=0.5, credit=credit, reward_scale=2.0, **SMALL)
    states, outcomes = torch.rand(2, 3, 3), torch.rand(2, 2)
    for state, outcome in zip(states, outcomes, strict=True):
        rewards = torch.zeros(3, 2)
        rewards[-1] = outcome
        agent.learn(Trajectory(state, torch.rand(3, 2), rewards))
    batch = agent._sample()
    assert batch.states.shape == (8, 5)
    assert torch.equal(batch.states[:, 3:], batch.next_states[:, 3:])
    assert len(batch.states[:, 3].unique()) > 2  # the asked one, and several others
    targets = agent.critic_targets(batch)
    for row in range(8):
        (episode, step), *_ = (states == batch.states[row, :3]).all(2).nonzero().tolist()
        preference = batch.states[row, 3:]
        if credit == 'monte_carlo' or step == 2:
            expected = 2 * 0.5 ** (2 - step) * sum(p * o for p, o in zip(preference, outcomes[episode], strict=True))
            assert targets[row].item() == pytest.approx(expected.item(), abs=1e-6)


def make_conditioned_spec(preference=(0.75, 0.25), seed=0):
    return AgentSpec(3, uniform_action=(0.4, 0.7), state_dim=3, seed=seed, preference=preference)


def trade_off(actions):
    """[2], of [L, A] actions: wide units are accurate, the first of all; narrow ones are cheap, all alike."""
    importance = torch.tensor([0.6, 0.3, 0.1])
    widths = actions[:, 0]
    return torch.stack([(importance * (1 - (1 - widths) ** 2)).sum(), 1 - widths.mean()])


def play(agent, episodes):
    played = []
    for episode in episodes:
        agent.begin_episode(episode)
        actions = torch.stack([agent.act(state) for state in torch.eye(3)])
        rewards = torch.zeros(3, 2)
        rewards[-1] = trade_off(actions)
        agent.learn(Trajectory(torch.eye(3), actions, rewards))
        played.append((agent.preference, rewards[-1]))
    return played


@pytest.mark.parametrize('seed', [0, 1])
def test_one_agent_learns_cheap_plans_and_accurate_ones_and_obeys_the_preference(seed):
    quick = dict(hidden_sizes=(32, 32), batch_size=64, actor_lr=3e-3, critic_lr=3e-3, updates_per_episode=8)
    agent = SAC(make_conditioned_spec(seed=seed), warmup_episodes=40, **quick)
    played = play(agent, range(120))

    def greedy(*preference):
        states = torch.cat([torch.eye(3), torch.tensor([preference]).expand(3, -1)], 1)
        return trade_off((torch.tanh(agent.actor(states)[0]).detach() + 1) / 2)

    accurate, even, cheap = greedy(0.95, 0.05), greedy(0.5, 0.5), greedy(0.05, 0.95)
    assert accurate[0] > even[0] > cheap[0]
    assert accurate[1] < even[1] < cheap[1]
    assert accurate[0] > 0.9
    assert cheap[1] > 0.85
    asked = torch.tensor(agent.spec.preference)
    as_asked = [torch.equal(preference, asked) for preference, _ in played]
    assert 40 < sum(as_asked) < 80


def test_an_agent_that_draws_no_preferences_learns_for_the_asked_one_alone():
    agent = SAC(make_conditioned_spec(), drawn_preferences=0.0, **SMALL)
    assert all(preference.tolist() == [0.75, 0.25] for preference, _ in play(agent, range(4)))
    assert (agent._sample().states[:, 3:] == torch.tensor([0.75, 0.25])).all()


def test_a_conditioned_agent_resumes_bit_for_bit(tmp_path):
    whole, first, again = (SAC(make_conditioned_spec(seed=seed), **SMALL) for seed in (1, 1, 2))
    expected = play(whole, range(8))
    play(first, range(4))
    torch.save(first.state_dict(), tmp_path / 'agent.pth')
    again.load_state_dict(torch.load(tmp_path / 'agent.pth', weights_only=True))
    for (preference, outcome), (other, known) in zip(play(again, range(4, 8)), expected[4:], strict=True):
        assert torch.equal(preference, other)
        assert torch.equal(outcome, known)


def test_a_saved_agent_that_knew_of_no_preferences_is_resumed():
    agent, other = SAC(make_spec(), **SMALL), SAC(make_spec(), **SMALL)
    state = agent.state_dict()
    del state['config']['drawn_preferences']
    other.load_state_dict(state)
    assert other.config.drawn_preferences == SACConfig().drawn_preferences


def test_other_agents_are_rewarded_with_the_weighted_sum():
    rewards = torch.tensor([[0.0, 0.0], [0.5, 0.1]], dtype=torch.float64)
    trajectory = Trajectory(torch.zeros(2, 3), torch.zeros(2, 2), rewards)
    assert trajectory.worth((0.75, 0.25)) == 0.75 * 0.5 + 0.25 * 0.1
    assert Trajectory(torch.zeros(2, 3), torch.zeros(2, 2), rewards[:, 0]).worth(()) == 0.5


# Searches


DENSE = brightness(make_task().model)


def fidelity(model) -> float:
    """At most 0.5, which the dense model has."""
    return 0.5 * math.exp(-50 * abs(brightness(model) - DENSE))


class Counted:
    """A metric that counts its calls and is killed before one of them; its name is the same each time."""

    def __init__(self, metric=fidelity, until=None):
        self.metric, self.until, self.calls = metric, until, 0

    def __call__(self, model):
        if self.calls == self.until:
            raise KeyboardInterrupt
        self.calls += 1
        return self.metric(model)


def weigh(task, result, objectives):
    """Slowly: each episode's utility, from its plan alone."""
    total, found = sum(objectives.values()), []
    for widths, lams in zip(result.history.widths, result.history.lams, strict=True):
        metric = task.evaluate(task.env.plan(widths, lams), fidelity) / 0.5
        cost = task.costs.params['module']
        saved = 1 - cost(widths) / cost(task.dense_widths)
        found.append((objectives['metric'] * metric + objectives['params'] * saved) / total)
    return found


@pytest.mark.parametrize('agent', [AGENT, dict(type='RandomSearch'), dict(type='CMAES')], ids=lambda one: one['type'])
def test_the_best_plan_has_the_highest_utility_within_the_limit(agent):
    if agent['type'] == 'CMAES':
        pytest.importorskip('cmaes')
    task, told = make_task(), []
    objectives = dict(metric=1, params=0.5)
    result = run(task, 30, fidelity, objectives=objectives, agent=agent, on_episode=told.append)
    history = result.history
    assert history.rewards == pytest.approx(weigh(task, result, objectives), abs=1e-12)
    assert result.episode == int(np.argmax(history.rewards))
    assert result.reward == max(history.rewards)
    assert result.metric == task.evaluate(result.plan, fidelity) == history.stages[result.episode][-1]
    assert result.pareto == brute_force(history.outcomes)
    assert result.episode in result.pareto
    assert all(task.costs.params['module'](widths) <= task.constraint.limit for widths in history.widths)
    assert [(one.scalars['metric'], one.scalars['params']) for one in told] == list(map(tuple, history.outcomes))


def test_without_objectives_there_are_no_outcomes_and_the_agent_sees_no_preference(tmp_path):
    path = tmp_path / 'search.pth'
    result = run(make_task(), 9, checkpoint=path)
    assert (result.history.outcomes, result.pareto, result.metric) == ([], [], result.reward)
    kept = torch.load(path)
    assert kept.keys() == {'format', 'identity', 'rankings', 'start', 'agent', 'history'}
    assert kept['history'].keys() == {'rewards', 'widths', 'lams', 'seconds', 'stages'}
    assert kept['agent']['buffer']['rewards'].shape == (15,)
    assert kept['agent']['actor']['net.0.weight'].shape == (16, 9)


def test_a_plain_agent_draws_the_same_numbers_whatever_is_set_for_preferences():
    plain, set_otherwise = (run(make_task(), 9, agent=dict(AGENT, drawn_preferences=share)) for share in (0.5, 1.0))
    assert episodes_of(plain) == episodes_of(set_otherwise)


def test_plans_from_the_limit_down_to_the_least_are_played_first(tmp_path):
    task = make_task(p_min=0.1)
    history = run(task, 12, fidelity, objectives=CHEAP, opening_points=5).history
    nested = history.widths[4:9]
    assert nested == task.nested_widths(5, task.constraint.share)[0]
    costs = [task.costs.params['module'](widths) for widths in nested]
    least = task.costs.params['module'](task.constraint.min_widths)
    assert nested[-1] == task.constraint.min_widths
    # In even steps, each as near as whole channels come to it from below.
    for step, cost in enumerate(costs):
        bound = task.constraint.limit - step * (task.constraint.limit - least) / 4
        assert bound - 100 < cost <= bound + 1
    assert all(a >= b for wider, narrower in itertools.pairwise(nested) for a, b in zip(wider, narrower, strict=True))
    plain = run(make_task(p_min=0.1), 12, fidelity, objectives=CHEAP, opening_points=0).history
    assert plain.widths[:4] == history.widths[:4]
    assert plain.widths[4:9] != nested


@pytest.mark.parametrize('stopped_after', [1, 8, 17, 20])
def test_a_killed_and_resumed_search_ends_as_one_that_ran_through(tmp_path, stopped_after):
    path = tmp_path / 'search.pth'
    whole = run(make_task(), 24, Counted(), objectives=CHEAP)
    with pytest.raises(KeyboardInterrupt):
        # The first call is of the dense model.
        run(make_task(), 24, Counted(until=1 + stopped_after), objectives=CHEAP, checkpoint=path)
    reward = Counted()
    result = run(make_task(), 24, reward, objectives=CHEAP, checkpoint=path, resume=True)
    assert reward.calls == 24 - stopped_after
    assert episodes_of(result) == episodes_of(whole)
    assert result.history.outcomes == whole.history.outcomes
    assert (result.plan, result.reward, result.pareto) == (whole.plan, whole.reward, whole.pareto)
    torch.load(path, weights_only=True)


def test_other_weights_choose_another_plan_and_nothing_is_evaluated_again(tmp_path):
    path, reward, task = tmp_path / 'search.pth', Counted(), make_task()
    first = run(task, 20, reward, objectives=ACCURATE, checkpoint=path)
    assert reward.calls == 21
    again = run(task, 20, reward, objectives=CHEAP, checkpoint=path, resume=True)
    assert reward.calls == 21
    assert again.history.rewards == pytest.approx(weigh(task, first, CHEAP), abs=1e-12)
    assert again.episode == int(np.argmax(weigh(task, first, CHEAP))) != first.episode
    assert again.plan == task.env.plan(first.history.widths[again.episode], first.history.lams[again.episode])
    assert (again.history.outcomes, again.pareto) == (first.history.outcomes, first.pareto)
    assert torch.load(path)['history']['rewards'].tolist() == again.history.rewards
    # Further episodes are played with the networks and the buffer that there are.
    longer = run(task, 24, reward, objectives=CHEAP, checkpoint=path, resume=True)
    assert reward.calls == 25
    assert longer.history.widths[:20] == first.history.widths


@pytest.mark.parametrize('others', [dict(metric=1, params=1, flops=0), None])
def test_other_objectives_are_not_gone_on_with(tmp_path, others):
    path = tmp_path / 'search.pth'
    run(make_task(example_input=IMAGES), 2, fidelity, objectives=CHEAP, checkpoint=path)
    asked = [*others] if others else None
    message = rf"was saved with objectives=\['metric', 'params'\], but objectives={re.escape(repr(asked))} is asked"
    with pytest.raises(AutoDFPError, match=message):
        run(make_task(example_input=IMAGES), 4, fidelity, objectives=others, checkpoint=path, resume=True)


def test_finalists_are_judged_by_the_utility_with_the_judges_metric(tmp_path):
    def judge(model):
        return 0.8 * fidelity(model) ** 2  # 0.2 of the dense model

    path, task, objectives = tmp_path / 'search.pth', make_task(), dict(metric=1, params=0.6)
    judged = Counted(judge)
    result = run(task, 20, fidelity, objectives=objectives, judge=judged, finalists=5, checkpoint=path)
    assert judged.calls == 5 + 1
    cost = task.costs.params['module']
    for one in result.finalists:
        widths, lams = result.history.widths[one.episode], result.history.lams[one.episode]
        share = task.evaluate(task.env.plan(widths, lams), judge, final=True) / 0.2
        assert one.metric == pytest.approx((share + 0.6 * (1 - cost.ratio(widths))) / 1.6)
        assert one.reward == result.history.rewards[one.episode]
    assert [one.chosen for one in result.finalists] == [
        one.metric == max(other.metric for other in result.finalists) for one in result.finalists
    ]
    assert result.metric == result.history.stages[result.episode][-1]
    # With other weights only plans that were no finalists are judged.
    again = run(task, 20, fidelity, objectives=CHEAP, judge=judged, finalists=5, checkpoint=path, resume=True)
    new = {one.episode for one in again.finalists} - {one.episode for one in result.finalists}
    assert judged.calls == 6 + len(new)


def weighed_on(rank, path):
    first = run(make_task(), 8, fidelity, objectives=ACCURATE, checkpoint=path)
    again = run(make_task(), 8, fidelity, objectives=CHEAP, checkpoint=path, resume=True)
    task, told = make_task(), (first, again)
    return [(one.history.rewards, one.history.outcomes, one.episode, one.pareto) for one in told], [
        weigh(task, first, objectives) for objectives in (ACCURATE, CHEAP)
    ]


@pytest.mark.slow
def test_ranks_agree_on_what_plans_are_worth(tmp_path):
    first, second = on_ranks(partial(weighed_on, path=tmp_path / 'search.pth'))
    assert first == second
    for (rewards, _, episode, _), expected in zip(*first, strict=True):
        assert rewards == pytest.approx(expected, abs=1e-12)
        assert episode == int(np.argmax(rewards))
