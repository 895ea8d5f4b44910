import pytest
import torch
from playing import plans_of, play

from mmautodfp.search import CMAES, AgentSpec, RandomSearch, Trajectory
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import AGENTS

SPEC = AgentSpec(6, uniform_action=(0.5, 0.5), state_dim=3, seed=2)
TARGET = torch.tensor([[0.9, 0.1], [0.2, 0.4], [0.5, 0.5], [0.7, 0.9], [0.1, 0.3], [0.6, 0.8]])


def worth(actions):
    """The nearer to the target, the better."""
    return -(actions - TARGET).square().sum().double()


def test_it_finds_a_plan_that_random_search_does_not():
    played, others = (play(agent, range(400), worth) for agent in (CMAES(SPEC), RandomSearch(SPEC)))
    actions, best = plans_of(played), max(reward for _, reward, _ in played)
    assert best > -0.005
    assert best > max(reward for _, reward, _ in others) + 0.1
    assert actions.min() >= 0
    assert actions.max() <= 1
    assert (actions[-20:].mean(0) - TARGET).abs().max() < 0.05


def test_it_starts_around_the_uniform_plan():
    spec = AgentSpec(40, uniform_action=(0.3, 0.5), state_dim=3)
    actions = plans_of(play(CMAES(spec, sigma=0.05, population_size=200), range(100), lambda _: torch.tensor(0.0)))
    assert torch.allclose(actions.mean((0, 1)), torch.tensor([0.3, 0.5]), atol=0.01)
    assert torch.allclose(actions.std((0, 1)), torch.tensor([0.05, 0.05]), atol=0.01)


@pytest.mark.parametrize('stop', [2, 7])
def test_it_resumes_where_ranks_draw_several_plans_at_once(stop):
    agent = CMAES(SPEC)  # of 11 plans in a generation, no multiple of four ranks
    expected = play(agent, range(48), worth, ranks=4)
    assert agent.rewards == [reward.item() for _, reward, _ in expected]
    agent = CMAES(SPEC)
    play(agent, range(stop * 4), worth, ranks=4)
    resumed = CMAES(SPEC)
    resumed.load_state_dict(agent.state_dict())
    assert torch.equal(plans_of(play(resumed, range(stop * 4, 48), worth, ranks=4)), plans_of(expected[stop * 4 :]))


def test_episodes_that_it_did_not_draw_are_passed_over():
    agent = CMAES(SPEC)
    for episode in range(50):  # the opening of a search
        agent.begin_episode(episode)
        agent.learn(Trajectory(torch.zeros(6, 3), TARGET, torch.ones(6)))
    assert agent.rewards == []
    assert torch.equal(*(plans_of(play(one, range(5), worth)) for one in (agent, CMAES(SPEC))))


def test_wrong_settings_and_states_are_refused():
    with pytest.raises(AutoDFPError, match='sigma=0'):
        AGENTS.build(dict(type='CMAES', spec=SPEC, sigma=0))
    with pytest.raises(AutoDFPError, match='population_size=3'):
        CMAES(SPEC, population_size=3)
    agent = CMAES(SPEC)
    play(agent, range(30), worth)
    state = agent.state_dict()
    with pytest.raises(AutoDFPError, match=r'sigma=0\.2, but sigma=0\.3'):
        CMAES(SPEC, sigma=0.3).load_state_dict(state)
    with pytest.raises(AutoDFPError, match='cannot be followed again'):
        CMAES(SPEC).load_state_dict(state | dict(mean=state['mean'] + 0.1))
