import itertools

import numpy as np
import pytest
import torch
from playing import play
from test_agents import SMALL, flatten

from mmautodfp.search import SAC, AgentSpec, SACConfig, Trajectory
from mmautodfp.search.replay import Batch
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import AGENTS

QUICK = dict(hidden_sizes=(32, 32), batch_size=64, actor_lr=3e-3, critic_lr=3e-3)
OPTIMA = torch.tensor([[0.3, 0.6], [0.8, 0.2], [0.5, 0.9]])


def near(optima):
    """A reward that falls with the squared distance to [L, A] optima."""
    return lambda actions: 1 - (actions - optima).square().sum()


def make_spec(horizon=3, seed=0):
    return AgentSpec(horizon, uniform_action=(0.4, 0.7), state_dim=3, seed=seed)


def make_batch(size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states, next_states = torch.rand(2, size, 3, generator=generator)
    actions = torch.rand(size, 2, generator=generator)
    dones = torch.arange(size) % 3 == 0
    return Batch(states, actions, torch.rand(size, generator=generator), next_states, dones)


def greedy_plan(agent):
    """[L, 2], the mean of the policy, for each group."""
    means = agent.actor(torch.eye(3)[: agent.spec.horizon])[0]
    return (torch.tanh(means).detach() + 1) / 2


# What it can learn


def test_solves_a_bandit():
    optimum = torch.tensor([[0.8, 0.3]])
    agent = SAC(make_spec(1), warmup_episodes=30, updates_per_episode=4, **QUICK)
    rewards = [reward for _, reward, _ in play(agent, range(80), near(optimum))]
    assert torch.allclose(greedy_plan(agent), optimum, atol=0.15)
    assert np.mean(rewards[-20:]) > 0.92
    assert np.mean(rewards[:30]) < 0.85


def test_learns_each_group_of_an_episode_that_is_rewarded_at_its_end():
    agent = SAC(make_spec(), credit='monte_carlo', warmup_episodes=40, updates_per_episode=5, **QUICK)
    rewards = [reward for _, reward, _ in play(agent, range(90), near(OPTIMA))]
    assert torch.allclose(greedy_plan(agent), OPTIMA, atol=0.3)
    assert np.mean(rewards[-20:]) > np.mean(rewards[:40]) + 0.4


def test_bootstrapping_carries_a_late_reward_back_where_states_tell_what_was_done():
    """The second state holds the first action; only that action is rewarded, after the second."""
    agent = SAC(make_spec(2), credit='td', warmup_episodes=40, updates_per_episode=8, tau=0.1, **QUICK)
    optimum, rewards = torch.tensor([0.8, 0.3]), []
    for episode in range(100):
        agent.begin_episode(episode)
        first = agent.act(torch.zeros(3))
        state = torch.cat([torch.ones(1), first])
        reward = 1 - (first - optimum).square().sum()
        rewards.append(reward.item())
        states, actions = torch.stack([torch.zeros(3), state]), torch.stack([first, agent.act(state)])
        agent.learn(Trajectory(states, actions, torch.stack([torch.zeros(()), reward])))
    greedy = (torch.tanh(agent.actor(torch.zeros(1, 3))[0][0]) + 1) / 2
    assert torch.allclose(greedy, optimum, atol=0.2)
    assert np.mean(rewards[-20:]) > np.mean(rewards[:40]) + 0.15


# The update


@pytest.mark.parametrize('junk', [0.0, 1e6, float('inf'), float('nan')])
def test_terminal_target_is_the_reward_whatever_the_target_networks_say(junk):
    agent, batch = SAC(make_spec(), credit='td', **SMALL), make_batch()
    for network in (agent.qf1_target, agent.qf2_target):
        torch.nn.init.constant_(network.net[-1].bias, junk)
    targets = agent.critic_targets(batch)
    assert torch.equal(targets[batch.dones], batch.rewards[batch.dones])


def test_other_targets_add_the_discounted_soft_minimum_of_the_twins():
    agent, batch = SAC(make_spec(), gamma=0.9, initial_alpha=0.3, credit='td', **SMALL), make_batch()
    draws = torch.Generator()
    draws.set_state(agent.random.get_state())
    targets = agent.critic_targets(batch)
    actions, log_probs = agent.actor.sample(batch.next_states, draws)
    inputs = torch.cat([batch.next_states, actions], 1)
    for row in range(len(targets)):
        values = [network.net(inputs[row]).item() for network in (agent.qf1_target, agent.qf2_target)]
        future = 0 if batch.dones[row] else 0.9 * (min(values) - 0.3 * float(log_probs[row]))
        assert float(targets[row]) == pytest.approx(float(batch.rewards[row]) + future, abs=1e-5)


def test_monte_carlo_targets_are_the_discounted_rewards_still_to_come():
    agent = SAC(make_spec(), credit='monte_carlo', gamma=0.5, **SMALL)
    agent.learn(Trajectory(torch.rand(3, 3), torch.rand(3, 2), torch.tensor([1.0, 0.0, 8.0])))
    stored = Batch(*(column[:3] for column in agent.buffer.data))
    assert agent.critic_targets(stored).tolist() == [1 + 0.25 * 8, 0.5 * 8, 8]


def test_critics_see_the_executed_actions_between_minus_one_and_one():
    agent, seen = SAC(make_spec(), **SMALL), []
    batch = make_batch()._replace(actions=torch.tensor([[0.0, 1.0]]).expand(64, 2))
    agent.qf1.register_forward_hook(lambda module, inputs, values: seen.append(inputs[1]))
    agent.update(batch)
    assert torch.equal(seen[0], torch.tensor([[-1.0, 1.0]]).expand(64, 2))


@pytest.mark.parametrize(('target_entropy', 'direction'), [(5.0, 1), (-20.0, -1)])
def test_entropy_coefficient_rises_below_the_target_entropy_and_falls_above_it(target_entropy, direction):
    agent = SAC(make_spec(), target_entropy=target_entropy, initial_alpha=0.1, alpha_lr=0.01, **SMALL)
    path = [agent.log_alpha.exp().item()]
    for seed in range(5):
        agent.update(make_batch(seed=seed))
        path.append(agent.log_alpha.exp().item())
    assert all((after - before) * direction > 0 for before, after in itertools.pairwise(path))
    assert path[1] == pytest.approx(0.1 * np.exp(direction * 0.01), rel=1e-4)  # Adam's first step is alpha_lr


@pytest.mark.parametrize('tau', [0.01, 0.3, 1.0])
def test_targets_follow_the_critics_by_the_share_tau(tau):
    agent = SAC(make_spec(), tau=tau, credit='td', **SMALL)
    for _ in range(2):
        before = [parameter.clone() for parameter in (*agent.qf1_target.parameters(), *agent.qf2_target.parameters())]
        agent.update(make_batch())
        online = [*agent.qf1.parameters(), *agent.qf2.parameters()]
        after = [*agent.qf1_target.parameters(), *agent.qf2_target.parameters()]
        for old, source, new in zip(before, online, after, strict=True):
            torch.testing.assert_close(new, tau * source + (1 - tau) * old)


def test_twins_differ_and_targets_start_as_their_copies():
    agent = SAC(make_spec(), credit='td', **SMALL)
    assert not torch.equal(agent.qf1.net[0].weight, agent.qf2.net[0].weight)
    for online, target in ((agent.qf1, agent.qf1_target), (agent.qf2, agent.qf2_target)):
        assert torch.equal(online.net[0].weight, target.net[0].weight)
        assert not any(parameter.requires_grad for parameter in target.parameters())


def test_monte_carlo_knows_no_target_critics():
    agents = {credit: SAC(make_spec(), credit=credit, **SMALL) for credit in ('monte_carlo', 'td')}
    saved = {credit: {name for name in agent.state_dict() if 'target' in name} for credit, agent in agents.items()}
    assert saved == dict(monte_carlo=set(), td={'qf1_target', 'qf2_target'})
    assert not hasattr(agents['monte_carlo'], 'qf1_target')


# Episodes


def test_warmup_only_fills_the_buffer_and_then_there_is_one_update_a_group():
    agent = SAC(make_spec(), **SMALL)
    before = agent.actor.net[0].weight.clone()
    logs = [log for _, _, log in play(agent, range(2), near(OPTIMA))]
    assert logs == [{}, {}]
    assert agent.buffer.size == 6
    assert torch.equal(agent.actor.net[0].weight, before)
    update, updates = agent.update, []
    agent.update = lambda batch: updates.append(batch) or update(batch)
    ((_, _, log),) = play(agent, [2], near(OPTIMA))
    assert [len(batch.rewards) for batch in updates] == [8] * 3
    assert set(log) == {'qf_loss', 'qf1_values', 'actor_loss', 'alpha', 'entropy'}
    assert all(isinstance(value, float) for value in log.values())


def test_actions_lie_in_the_unit_square():
    agent = SAC(make_spec(), **SMALL)
    torch.nn.init.constant_(agent.actor.net[-1].bias, 30.0)
    for actions, _, _ in play(agent, range(4), near(OPTIMA)):
        assert actions.dtype == torch.float32
        assert actions.min() >= 0
        assert actions.max() <= 1


def test_policy_starts_at_the_uniform_plan_after_a_warmup_around_it():
    agent = SAC(make_spec(), warmup='around_uniform', **SMALL | dict(hidden_sizes=(256, 256)))
    assert torch.allclose(greedy_plan(agent), torch.tensor([0.4, 0.7]), atol=0.1)


# Reproducible and resumable


def test_state_is_a_copy_made_of_plain_values():
    agent = SAC(make_spec(), **SMALL)
    play(agent, range(3), near(OPTIMA))
    state = agent.state_dict()
    assert {type(value) for value in flatten(state).values()} <= {torch.Tensor, int, float, str, bool}
    copies = {name: value.clone() for name, value in flatten(state).items() if isinstance(value, torch.Tensor)}
    restored = SAC(make_spec(), **SMALL)
    restored.load_state_dict(state)
    for one in (agent, restored):
        play(one, range(3, 5), near(OPTIMA))
    assert all(torch.equal(copies[name], flatten(state)[name]) for name in copies)


def test_number_of_threads_is_the_callers_again_after_learning():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        agent, inside = SAC(make_spec(), **SMALL), []
        agent.qf1.register_forward_hook(lambda *_: inside.append(torch.get_num_threads()))
        play(agent, range(3), near(OPTIMA))
        assert set(inside) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# Settings


def test_defaults_are_those_of_the_paper():
    config = SAC(make_spec(7)).config
    assert (config.hidden_sizes, config.actor_lr, config.critic_lr, config.alpha_lr) == ((256, 256), 1e-3, 1e-3, 3e-4)
    assert (config.gamma, config.tau, config.batch_size, config.warmup_episodes) == (1, 0.01, 128, 200)
    assert (config.warmup, config.target_entropy, config.updates_per_episode) == ('random', -2, 7)
    assert SAC(make_spec(7)).buffer.capacity == 100 * 7


def test_is_built_by_name_with_the_fields_of_its_config():
    agent = AGENTS.build(dict(type='SAC', spec=make_spec(), hidden_sizes=[8], warmup_episodes=40))
    assert (agent.config.hidden_sizes, agent.config.warmup_episodes) == ((8,), 40)


@pytest.mark.parametrize(
    'setting',
    [
        dict(hidden_sizes=(256, 0)),
        dict(actor_lr=0.0),
        dict(critic_lr=-1e-3),
        dict(alpha_lr=float('nan')),
        dict(gamma=1.1),
        dict(tau=0.0),
        dict(tau=1.5),
        dict(batch_size=0),
        dict(buffer_episodes=0),
        dict(warmup_episodes=-1),
        dict(warmup='uniform'),
        dict(credit='last'),
        dict(initial_alpha=0.0),
        dict(target_entropy=float('inf')),
        dict(updates_per_episode=0),
    ],
)
def test_setting_out_of_range_is_refused_by_name(setting):
    ((name, value),) = setting.items()
    with pytest.raises(AutoDFPError) as refusal:
        SACConfig(**setting)
    assert f'SAC was asked for {name}={value!r}; ' in str(refusal.value)
    assert ' must be ' in str(refusal.value)


def test_state_saved_with_other_settings_is_refused():
    state = SAC(make_spec(), **SMALL).state_dict()
    with pytest.raises(AutoDFPError, match=r'hidden_sizes=\[16, 16\], but hidden_sizes=\[8\]'):
        SAC(make_spec(), **SMALL | dict(hidden_sizes=(8,))).load_state_dict(state)
    with pytest.raises(AutoDFPError, match='horizon=3, but horizon=2'):
        SAC(make_spec(2), **SMALL).load_state_dict(state)
    with pytest.raises(AutoDFPError, match="credit='monte_carlo', but credit='td'"):
        SAC(make_spec(), credit='td', **SMALL).load_state_dict(state)
