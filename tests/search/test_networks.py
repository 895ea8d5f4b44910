import math

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from mmautodfp.search import AgentSpec
from mmautodfp.search.networks import LOG_STD_RANGE, Actor, Critic, tanh_log_prob

SPEC = AgentSpec(4, uniform_action=(0.5, 0.5), state_dim=3)


def reference_log_prob(pre_tanh, mean, log_std):
    """torch.distributions' answer; its cache hands u itself to the inverse, as atanh(tanh(u)) is lost far out."""
    transform = TanhTransform(cache_size=1)
    distribution = Independent(TransformedDistribution(Normal(mean, log_std.exp()), [transform]), 1)
    return distribution.log_prob(transform(pre_tanh))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_log_prob_equals_that_of_torch_distributions(dtype):
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 1000, 2, generator=generator, dtype=dtype)
    pre_tanh = mean + log_std.exp() * noise
    torch.testing.assert_close(
        tanh_log_prob(pre_tanh, mean, log_std), reference_log_prob(pre_tanh, mean, log_std), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize('distance', [10.0, 20.0, 50.0, 300.0])
def test_log_prob_and_its_gradient_stay_exact_where_tanh_is_one(distance):
    pre_tanh = torch.tensor([[distance, -distance]], requires_grad=True)
    mean, log_std = torch.tensor([[distance - 1, 1 - distance]]), torch.zeros(1, 2)
    log_prob = tanh_log_prob(pre_tanh, mean, log_std)
    torch.testing.assert_close(log_prob, reference_log_prob(pre_tanh, mean, log_std))
    # Far out log(1 - tanh(u)^2) is log 4 - 2 |u|, and its slope -2.
    expected = 2 * (-0.5 - 0.5 * math.log(2 * math.pi) - math.log(4) + 2 * distance)
    torch.testing.assert_close(log_prob, torch.tensor([expected]))
    log_prob.sum().backward()
    torch.testing.assert_close(pre_tanh.grad, torch.tensor([[1.0, -1.0]]))


def test_sampled_actions_come_with_the_density_they_were_drawn_from():
    torch.manual_seed(0)
    actor, states = Actor(SPEC, (16,)).double(), torch.rand(500, 3, dtype=torch.float64)
    actions, log_probs = actor.sample(states, torch.Generator().manual_seed(0))
    mean, log_std = actor(states)
    distribution = Independent(TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()]), 1)
    assert actions.abs().max() < 1
    torch.testing.assert_close(log_probs, distribution.log_prob(actions))


def test_deviation_stays_in_its_range_and_keeps_a_gradient():
    actor = Actor(SPEC, ())
    for bias in (-4.0, 0.0, 4.0):
        torch.nn.init.zeros_(actor.net[-1].weight)
        torch.nn.init.constant_(actor.net[-1].bias, bias)
        actor.zero_grad()
        log_std = actor(torch.zeros(1, 3))[1]
        log_std.sum().backward()
        assert LOG_STD_RANGE[0] <= log_std.min()
        assert log_std.max() <= LOG_STD_RANGE[1]
        assert (actor.net[-1].bias.grad[2:] > 0).all()


def test_centre_moves_the_mean_and_nothing_else():
    actor = Actor(SPEC, ())
    torch.nn.init.zeros_(actor.net[-1].weight)
    deviation = actor(torch.zeros(1, 3))[1]
    actor.centre(torch.tensor([-0.25, 1.0]))
    mean, log_std = actor(torch.zeros(1, 3))
    torch.testing.assert_close(torch.tanh(mean), torch.tensor([[-0.25, 0.95]]))
    assert torch.equal(log_std, deviation)


def test_critic_gives_one_value_a_row():
    critic = Critic(SPEC, (8, 8))
    states, actions = torch.rand(5, 3), torch.rand(5, 2)
    values = critic(states, actions)
    assert values.shape == (5,)
    torch.testing.assert_close(values[3:4], critic(states[3:4], actions[3:4]))
