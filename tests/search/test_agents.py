"""What agents of every kind have in common: their seed alone decides, and they resume bit for bit."""

import random

import numpy as np
import pytest
import torch
from playing import plans_of, play

from mmautodfp.search import CMAES, SAC, AgentSpec, RandomSearch

SMALL = dict(hidden_sizes=(16, 16), batch_size=8, warmup_episodes=2, buffer_episodes=3)
KINDS = {
    'random': (RandomSearch, {}, ()),
    'random around uniform': (RandomSearch, dict(around_uniform=True), ()),
    'CMA-ES': (CMAES, dict(population_size=4), ()),
    'SAC': (SAC, dict(SMALL, warmup='around_uniform'), ()),
    'SAC by TD': (SAC, dict(SMALL, credit='td'), ()),
    'SAC of two objectives': (SAC, SMALL, (0.75, 0.25)),
}


def make(kind, seed=1):
    cls, settings, preference = KINDS[kind]
    return cls(AgentSpec(3, uniform_action=(0.4, 0.7), state_dim=3, seed=seed, preference=preference), **settings)


def worth(agent):
    """A number, or one for each objective."""
    if agent.spec.preference:
        return lambda actions: actions.mean(0).double()
    return lambda actions: -(actions - 0.3).square().sum().double()


def flatten(state, prefix=''):
    """A nested state as one dict, so that its leaves can be compared and their types looked at."""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    leaves = {}
    for key, value in items:
        leaves |= flatten(value, f'{prefix}{key}.') if isinstance(value, dict | list) else {f'{prefix}{key}': value}
    return leaves


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('done', [1, 4])  # in a warm-up or a population, and behind it
def test_an_agent_resumes_bit_for_bit(tmp_path, kind, done):
    straight, first, resumed = (make(kind) for _ in range(3))
    expected = play(straight, range(8), worth(straight))
    play(first, range(done), worth(first))
    torch.save(first.state_dict(), tmp_path / 'agent.pth')
    play(resumed, range(3), worth(resumed))  # what it held before must give way
    resumed.load_state_dict(torch.load(tmp_path / 'agent.pth', weights_only=True))
    played = play(resumed, range(done, 8), worth(resumed))
    assert torch.equal(plans_of(played), plans_of(expected[done:]))
    assert [log for *_, log in played] == [log for *_, log in expected[done:]]
    one, other = flatten(straight.state_dict()), flatten(resumed.state_dict())
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


@pytest.mark.parametrize('kind', KINDS)
def test_the_seed_alone_decides_and_global_random_states_stay_as_they_are(kind):
    plans = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002, the global state is the point
        random.seed(global_seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        agent = make(kind, seed=3)
        plans.append(plans_of(play(agent, range(4), worth(agent))))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
        assert random.getstate() == before[2]
    assert torch.equal(*plans)
    other = make(kind, seed=4)
    assert not torch.equal(plans_of(play(other, [0], worth(other)))[0], plans[0][0])
