"""Episodes that an agent plays without a network."""

import torch

from mmautodfp.search import Trajectory


def play(agent, numbers, worth, ranks=1) -> list[tuple]:
    """Play the episodes with these numbers, each rewarded at its end with what ``worth`` says of its actions [L, A].

    As many as there are ranks are drawn before the first of them is learned from.

    Returns:
        list[tuple]: The actions, their worth, and what the agent said of its learning, for each episode.
    """
    states, numbers, played = torch.eye(agent.spec.horizon, agent.spec.state_dim), list(numbers), []
    for first in range(0, len(numbers), ranks):
        drawn = []
        for number in numbers[first : first + ranks]:
            agent.begin_episode(number)
            drawn.append(torch.stack([agent.act(state) for state in states]))
        for actions in drawn:
            last = worth(actions)
            rewards = torch.zeros(len(actions), *last.shape, dtype=last.dtype)
            rewards[-1] = last
            played.append((actions, last, agent.learn(Trajectory(states, actions, rewards))))
    return played


def plans_of(played) -> torch.Tensor:
    """The actions [E, L, A] of episodes that were played."""
    return torch.stack([actions for actions, *_ in played])
