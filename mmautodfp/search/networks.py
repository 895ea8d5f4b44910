"""The networks of Soft Actor-Critic: a tanh-squashed normal policy and its critic."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .agent import AgentSpec

LOG_STD_RANGE = (-5.0, 2.0)


def tanh_log_prob(pre_tanh: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of tanh(u) on (-1, 1), u normally distributed; exact however near tanh(u) is to the ends.

    Args:
        pre_tanh (Tensor): [..., A], u.
        mean (Tensor): [..., A], of u.
        log_std (Tensor): [..., A], log of u's standard deviation.

    Returns:
        Tensor: [...], in nats, summed over the components.
    """
    normal = -0.5 * ((pre_tanh - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2), in a form that keeps its digits beyond |u| = 9.
    log_slope = 2 * (math.log(2) - pre_tanh - F.softplus(-2 * pre_tanh))
    return (normal - log_slope).sum(-1)


class Actor(nn.Module):
    """Normal distribution over u, the action being tanh(u).

    Args:
        spec (AgentSpec): The task.
        hidden_sizes (tuple[int, ...]): Neurons of each hidden layer.
    """

    def __init__(self, spec: AgentSpec, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.net = _mlp(spec.state_dim, *hidden_sizes, 2 * spec.action_dim)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of u, each [B, A], for states [B, D]."""
        mean, squashed = self.net(states).chunk(2, -1)
        lowest, highest = LOG_STD_RANGE
        # A clamp would have no gradient at the ends.
        return mean, lowest + (highest - lowest) * 0.5 * (torch.tanh(squashed) + 1)

    def sample(self, states: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions [B, A] in [-1, 1] and their log-densities [B], differentiable, for states [B, D]."""
        mean, log_std = self(states)
        noise = torch.randn(mean.shape, generator=generator)
        pre_tanh = mean + log_std.exp() * noise
        return torch.tanh(pre_tanh), tanh_log_prob(pre_tanh, mean, log_std)

    @torch.no_grad()
    def centre(self, action: Tensor) -> None:
        """Move the untrained mean to an action [A] in [-1, 1], but not to its ends, where tanh has no gradient."""
        self.net[-1].bias[: len(action)] = torch.atanh(action.clamp(-0.95, 0.95))


class Critic(nn.Module):
    """Q-function: states [B, D] and actions [B, A] in [-1, 1] to values [B]. Arguments as for :class:`Actor`."""

    def __init__(self, spec: AgentSpec, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.net = _mlp(spec.state_dim + spec.action_dim, *hidden_sizes, 1)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        return self.net(torch.cat([states, actions], -1)).squeeze(-1)


def _mlp(*sizes: int) -> nn.Sequential:
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
