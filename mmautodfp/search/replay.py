"""A buffer of past transitions, as tensors."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .agent import Trajectory


class Batch(NamedTuple):
    """B transitions.

    Attributes:
        states (Tensor): [B, D].
        actions (Tensor): [B, A] in [0, 1].
        rewards (Tensor): [B]; of M objectives [B, M].
        next_states (Tensor): [B, D]; a terminal transition repeats its state, as Algorithm 1 has it.
        dones (Tensor): [B] of bool, whether the transition is terminal.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    dones: Tensor


def relabel(batch: Batch, preferences: Tensor) -> Batch:
    """Weight rewards [B, M] with preferences [B, M], and append these to the states."""
    return batch._replace(
        states=torch.cat([batch.states, preferences], 1),
        rewards=(batch.rewards * preferences).sum(1),
        next_states=torch.cat([batch.next_states, preferences], 1),
    )


class ReplayBuffer:
    """A ring buffer of the latest transitions.

    Args:
        capacity (int): How many it holds; new ones replace the oldest.
        state_dim (int): Length D of a state.
        action_dim (int): Length A of an action.
        num_objectives (int): Length M of a reward. Defaults to 0: a reward is a number.
    """

    def __init__(self, capacity: int, state_dim: int, action_dim: int, num_objectives: int = 0):
        self.capacity = capacity
        self.cursor = 0
        self.size = 0
        self.data = Batch(
            states=torch.zeros(capacity, state_dim),
            actions=torch.zeros(capacity, action_dim),
            rewards=torch.zeros(capacity, *([num_objectives] if num_objectives else [])),
            next_states=torch.zeros(capacity, state_dim),
            dones=torch.zeros(capacity, dtype=torch.bool),
        )

    def add(self, trajectory: Trajectory) -> None:
        """Store an episode's L transitions, no more than the capacity."""
        length = len(trajectory.rewards)
        states = trajectory.states
        dones = torch.zeros(length, dtype=torch.bool)
        dones[-1] = True
        columns = Batch(states, trajectory.actions, trajectory.rewards, torch.cat([states[1:], states[-1:]]), dones)
        slots = (self.cursor + torch.arange(length)) % self.capacity
        for stored, column in zip(self.data, columns, strict=True):
            stored[slots] = column.to(stored)
        self.cursor = (self.cursor + length) % self.capacity
        self.size = min(self.size + length, self.capacity)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw transitions with replacement, all with the same chance.

        Args:
            batch_size (int): Number of transitions B.
            generator (torch.Generator): Source of the choice.

        Returns:
            Batch: Copies of the stored transitions, of which there must be one.
        """
        chosen = torch.randint(self.size, (batch_size,), generator=generator)
        return Batch(*(stored[chosen] for stored in self.data))

    def state_dict(self) -> dict[str, Any]:
        """The content, no copy, and where the next transition goes."""
        return dict(capacity=self.capacity, cursor=self.cursor, size=self.size, **self.data._asdict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave of a buffer of the same sizes."""
        self.cursor, self.size = state['cursor'], state['size']
        for name, stored in self.data._asdict().items():
            stored.copy_(state[name])
