import pytest
import torch
from playing import plans_of, play

from mmautodfp.search import CMAES, SAC, AgentSpec, RandomSearch, Trajectory
from mmautodfp.utils import AutoDFPError

SPEC = AgentSpec(4, uniform_action=(0.4, 0.7), state_dim=3, seed=5)


def episodes(agent, numbers):
    """Actions [E, L, A] of the episodes with these numbers."""
    return plans_of(play(agent, numbers, lambda _: torch.tensor(0.0)))


def test_random_actions_are_uniform_in_the_unit_square():
    actions = episodes(RandomSearch(SPEC), range(1000)).flatten(0, 1)
    assert actions.min() >= 0
    assert actions.max() <= 1
    for component in actions.T:
        histogram = torch.histc(component, 10, 0, 1) / len(component)
        assert torch.allclose(histogram, torch.full((10,), 0.1), atol=0.02)


def test_actions_around_the_uniform_plan_have_a_width_of_each_episode():
    spec = AgentSpec(500, uniform_action=(0.5, 0.7), state_dim=3)
    actions = episodes(RandomSearch(spec, around_uniform=True), range(40))
    ratios, others = actions[..., 0], actions[..., 1]
    widths = ratios.std(1)
    assert actions.min() >= 0
    assert actions.max() <= 1
    assert torch.allclose(ratios.mean(1), torch.tensor(0.5), atol=0.05)
    assert widths.min() < 0.08
    assert widths.max() > 0.22
    assert torch.allclose(others.mean(1), torch.tensor(0.5), atol=0.06)  # lambda does not stay near the uniform one


@pytest.mark.parametrize('warmup', ['random', 'around_uniform'])
def test_warmup_of_sac_is_the_random_search_of_the_same_seed(warmup):
    random_search = RandomSearch(SPEC, around_uniform=warmup == 'around_uniform')
    sac = SAC(SPEC, warmup_episodes=6, warmup=warmup, hidden_sizes=(8,))
    assert torch.equal(episodes(sac, range(6)), episodes(random_search, range(6)))


def test_state_of_another_agent_or_task_is_refused():
    state = RandomSearch(SPEC).state_dict()
    with pytest.raises(AutoDFPError, match="type='CMAES', but type='RandomSearch'"):
        RandomSearch(SPEC).load_state_dict(CMAES(SPEC).state_dict())
    longer = AgentSpec(5, uniform_action=(0.4, 0.7), state_dim=3)
    with pytest.raises(AutoDFPError, match='horizon=4, but horizon=5'):
        RandomSearch(longer).load_state_dict(state)
    with pytest.raises(AutoDFPError, match='around_uniform=False, but around_uniform=True'):
        RandomSearch(SPEC, around_uniform=True).load_state_dict(RandomSearch(SPEC).state_dict())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(horizon=0, uniform_action=(0.5, 0.5)), 'horizon=0'),
        (dict(horizon=1, uniform_action=(0.5, 0.5), state_dim=0), 'state_dim=0'),
        (dict(horizon=1, uniform_action=(0.5, 1.5)), '1.5'),
        (dict(horizon=1, uniform_action=(0.5, 0.5), seed=-1), 'seed=-1; it must be greater than or equal to 0'),
        (dict(horizon=1.5, uniform_action=(0.5, 0.5)), r'horizon=1\.5; it must be a whole number'),
    ],
)
def test_impossible_task_is_refused(settings, message):
    with pytest.raises(AutoDFPError, match=message):
        AgentSpec(**settings)


def test_episode_with_unequal_lengths_or_a_nan_is_refused():
    with pytest.raises(AutoDFPError, match=r'\[3, 3, 2\]'):
        Trajectory(torch.zeros(3, 9), torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(AutoDFPError, match='rewards of an episode must be finite'):
        Trajectory(torch.zeros(2, 9), torch.zeros(2, 2), torch.tensor([0, float('nan')]))
