"""Several objectives: their arithmetic against slow references, and agents that learn under preferences."""

import numpy as np
import pytest
import torch
from chain import IMAGES
from playing import play
from test_agents import SMALL
from test_run import make_task, run

from mmautodfp.costs import MemoryBudget, ParamBudget
from mmautodfp.search import SAC, AgentSpec, Trajectory, pareto_set
from mmautodfp.search.objectives import Objectives, draw_preferences, read_weights
from mmautodfp.utils import AutoDFPError


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


# Pareto sets


@pytest.mark.parametrize('size', [1, 2, 3, 5])
@pytest.mark.parametrize('steps', [None, 4])
def test_the_pareto_set_is_what_a_slow_comparison_of_all_pairs_leaves(size, steps):
    for seed in range(5):
        outcomes = points(40, size, seed, steps)
        assert pareto_set(outcomes) == brute_force(outcomes)
    assert pareto_set([]) == []


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
        (dict(metric='high', params=1), "objectives={'metric': 'high', 'params': 1}; it must be a number"),
    ],
)
def test_bad_objectives_end_in_a_sentence(objectives, message):
    with pytest.raises(AutoDFPError, match=message) as caught:
        run(make_task(), 2, objectives=objectives)
    assert '\n' not in str(caught.value)


def test_what_does_not_go_with_objectives_is_told():
    with pytest.raises(AutoDFPError, match=r'racing=True was asked for together with objectives, .* leave one of'):
        run(make_task(), 2, objectives=dict(metric=1, params=1), racing=True)
    with pytest.raises(AutoDFPError, match='the dense model is rewarded with -1, of which there is no share; choose'):
        run(make_task(), 2, reward=lambda model: -1.0, objectives=dict(metric=1, params=1))


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
    timed = make_task(example_input=IMAGES, also_measure=['latency'])
    outcome = Objectives.build(dict(metric=1, latency=1), timed.costs, timed.constraint, lambda: 1.0).outcome(
        1, [4, 6, 5]
    )
    assert outcome[1] == 1 - timed.costs.latency['model'].ratio([4, 6, 5])
    assert outcome[1] != 0
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
    agent = SAC(make_conditioned_spec(), gamma=0.5, credit=credit, **SMALL)
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
            expected = 0.5 ** (2 - step) * sum(p * o for p, o in zip(preference, outcomes[episode], strict=True))
            assert targets[row].item() == pytest.approx(expected.item(), abs=1e-6)


def make_conditioned_spec(preference=(0.75, 0.25), seed=0):
    return AgentSpec(3, uniform_action=(0.4, 0.7), state_dim=3, seed=seed, preference=preference)


def trade_off(actions):
    """[2], of [L, A] actions: wide groups are accurate, the first of all; narrow ones are cheap, all alike."""
    importance = torch.tensor([0.6, 0.3, 0.1])
    widths = actions[:, 0]
    return torch.stack([(importance * (1 - (1 - widths) ** 2)).sum(), 1 - widths.mean()])


def preferences_of(agent, episodes):
    """The preferences that an agent has while it plays."""
    seen = []
    play(agent, episodes, lambda actions: seen.append(agent.preference) or trade_off(actions))
    return seen


@pytest.mark.parametrize('seed', [0, 1])
def test_one_agent_learns_cheap_plans_and_accurate_ones_and_obeys_the_preference(seed):
    quick = dict(hidden_sizes=(32, 32), batch_size=64, actor_lr=3e-3, critic_lr=3e-3, updates_per_episode=8)
    agent = SAC(make_conditioned_spec(seed=seed), warmup_episodes=40, **quick)
    preferences = preferences_of(agent, range(120))

    def greedy(*preference):
        states = torch.cat([torch.eye(3), torch.tensor([preference]).expand(3, -1)], 1)
        return trade_off((torch.tanh(agent.actor(states)[0]).detach() + 1) / 2)

    accurate, even, cheap = greedy(0.95, 0.05), greedy(0.5, 0.5), greedy(0.05, 0.95)
    assert accurate[0] > even[0] > cheap[0]
    assert accurate[1] < even[1] < cheap[1]
    assert accurate[0] > 0.9
    assert cheap[1] > 0.85
    asked = torch.tensor(agent.spec.preference)
    assert 40 < sum(torch.equal(preference, asked) for preference in preferences) < 80


def test_an_agent_that_draws_no_preferences_learns_for_the_asked_one_alone():
    agent = SAC(make_conditioned_spec(), drawn_preferences=0.0, **SMALL)
    assert all(preference.tolist() == [0.75, 0.25] for preference in preferences_of(agent, range(4)))
    assert (agent._sample().states[:, 3:] == torch.tensor([0.75, 0.25])).all()


def test_other_agents_are_rewarded_with_the_weighted_sum():
    rewards = torch.tensor([[0.0, 0.0], [0.5, 0.1]], dtype=torch.float64)
    trajectory = Trajectory(torch.zeros(2, 3), torch.zeros(2, 2), rewards)
    assert trajectory.worth((0.75, 0.25)) == 0.75 * 0.5 + 0.25 * 0.1
    assert Trajectory(torch.zeros(2, 3), torch.zeros(2, 2), rewards[:, 0]).worth(()) == 0.5
