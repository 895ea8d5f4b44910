import pytest
import torch

from mmautodfp.search import CMAES, AgentSpec, RandomSearch, Trajectory
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import AGENTS

SPEC = AgentSpec(6, uniform_action=(0.5, 0.5), state_dim=3, seed=2)
STATE = torch.zeros(3)
TARGET = torch.tensor([[0.9, 0.1], [0.2, 0.4], [0.5, 0.5], [0.7, 0.9], [0.1, 0.3], [0.6, 0.8]])


def play(agent, episodes, start=0) -> tuple[list[float], torch.Tensor]:
    """Rewards [E] and actions [E, L, A]: the nearer to the target, the better."""
    rewards, plans = [], []
    for episode in range(start, start + episodes):
        agent.begin_episode(episode)
        actions = torch.stack([agent.act(STATE) for _ in range(agent.spec.horizon)])
        reward = torch.zeros(len(actions), dtype=torch.float64)
        reward[-1] = -(actions - TARGET).square().sum()
        agent.learn(Trajectory(STATE.expand(len(actions), -1), actions, reward))
        rewards.append(reward[-1].item())
        plans.append(actions)
    return rewards, torch.stack(plans)


def test_it_finds_a_plan_that_random_search_does_not():
    rewards, actions = play(CMAES(SPEC), 400)
    assert max(rewards) > -0.005
    assert max(rewards) > max(play(RandomSearch(SPEC), 400)[0]) + 0.1
    assert actions.min() >= 0
    assert actions.max() <= 1
    assert (actions[-20:].mean(0) - TARGET).abs().max() < 0.05


def test_it_starts_around_the_uniform_plan():
    spec = AgentSpec(40, uniform_action=(0.3, 0.5), state_dim=3)
    agent = CMAES(spec, sigma=0.05, population_size=200)
    actions = []
    for episode in range(100):
        agent.begin_episode(episode)
        actions.append(torch.stack([agent.act(STATE) for _ in range(40)]))
    actions = torch.stack(actions)
    assert torch.allclose(actions.mean((0, 1)), torch.tensor([0.3, 0.5]), atol=0.01)
    assert torch.allclose(actions.std((0, 1)), torch.tensor([0.05, 0.05]), atol=0.01)


@pytest.mark.parametrize('stop', [1, 17, 45])  # within a population and behind some
def test_it_resumes_as_if_it_had_not_stopped(tmp_path, stop):
    expected = play(CMAES(SPEC), 60)[1]
    agent = CMAES(SPEC)
    play(agent, stop)
    torch.save(agent.state_dict(), tmp_path / 'agent.pth')
    resumed = CMAES(SPEC)
    resumed.load_state_dict(torch.load(tmp_path / 'agent.pth', weights_only=True))
    assert torch.equal(play(resumed, 60 - stop, stop)[1], expected[stop:])


def play_in_rounds(agent, rounds: int, ranks: int, start: int = 0) -> torch.Tensor:
    """As ranks do: several episodes are drawn before the first of them is learned from."""
    plans = []
    for first in range(start, start + rounds * ranks, ranks):
        drawn = []
        for episode in range(first, first + ranks):
            agent.begin_episode(episode)
            drawn.append(torch.stack([agent.act(STATE) for _ in range(agent.spec.horizon)]))
        for actions in drawn:
            reward = torch.zeros(len(actions), dtype=torch.float64)
            reward[-1] = -(actions - TARGET).square().sum()
            agent.learn(Trajectory(STATE.expand(len(actions), -1), actions, reward))
        plans += drawn
    return torch.stack(plans)


@pytest.mark.parametrize('stop', [2, 7])
def test_it_resumes_where_ranks_draw_several_plans_at_once(stop):
    agent = CMAES(SPEC)  # of 11 plans in a generation, no multiple of four ranks
    expected = play_in_rounds(agent, 12, ranks=4)
    assert agent.rewards == pytest.approx([-(plan - TARGET).square().sum().item() for plan in expected])
    agent = CMAES(SPEC)
    play_in_rounds(agent, stop, ranks=4)
    resumed = CMAES(SPEC)
    resumed.load_state_dict(agent.state_dict())
    assert torch.equal(play_in_rounds(resumed, 12 - stop, 4, stop * 4), expected[stop * 4 :])


def test_episodes_that_it_did_not_draw_are_passed_over():
    agent = CMAES(SPEC)
    for episode in range(50):  # the opening of a search
        agent.begin_episode(episode)
        agent.learn(Trajectory(STATE.expand(6, -1), TARGET, torch.ones(6)))
    assert agent.rewards == []
    assert torch.equal(play(agent, 5)[1], play(CMAES(SPEC), 5)[1])


def test_seeds_differ_and_the_global_state_is_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = play(CMAES(SPEC), 3)[1]
    assert torch.equal(torch.get_rng_state(), before)
    other = AgentSpec(6, uniform_action=(0.5, 0.5), state_dim=3, seed=3)
    assert not torch.equal(play(CMAES(other), 3)[1], first)


def test_wrong_settings_and_states_are_refused():
    with pytest.raises(AutoDFPError, match='sigma=0'):
        AGENTS.build(dict(type='CMAES', spec=SPEC, sigma=0))
    with pytest.raises(AutoDFPError, match='population_size=1'):
        CMAES(SPEC, population_size=1)
    agent = CMAES(SPEC)
    play(agent, 30)
    state = agent.state_dict()
    with pytest.raises(AutoDFPError, match=r'sigma=0\.2, but sigma=0\.3'):
        CMAES(SPEC, sigma=0.3).load_state_dict(state)
    with pytest.raises(AutoDFPError, match='cannot be followed again'):
        CMAES(SPEC).load_state_dict(state | dict(mean=state['mean'] + 0.1))
