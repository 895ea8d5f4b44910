"""What an agent must be able to do: choose an action for each group, and learn from the finished episode."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.configs import read_written
from mmautodfp.utils.settings import Count, Several, Share, Whole, settings

# Letters of a setting that an error message shows.
LONG = 160
CHECKSUM = re.compile(r'\b[0-9a-f]{64}\b')
# What a checksum in a setting stands for.
BEHIND_CHECKSUMS = dict(
    reconstructor="pictures in the reconstructor's folder (--images)",
    reward="pictures in the reward's folder",
    images='images that reward it (by the data set, or the num_images or seed of the reward)',
    weights='weights of the dense model',
)


@settings('an agent')
class AgentSpec:
    """The task as an agent sees it.

    Attributes:
        horizon (int): Number of groups L, which is the number of actions in an episode.
        uniform_action (tuple[float, ...]): [A], each in [0, 1]: taken for every group, it makes the plan to start from:
            the allocated plan if there is one, else the uniform one. The first component of an action decides how many
            channels stay; in searches there is one more, lambda.
        state_dim (int): Length D of a state. Defaults to 9 (Eq. 17).
        seed (int): Seed of all the agent's choices, 0 or more. Defaults to 0.
        preference (tuple[float, ...]): [M], the weights of several objectives, of sum 1. Rewards are then vectors [M].
            Defaults to (): a reward is a number.

    Raises:
        AutoDFPError: A value is out of range.
    """

    horizon: Count
    _: KW_ONLY
    uniform_action: Several[Share]
    state_dim: Count = 9
    seed: Whole = 0
    preference: Several[Share] = ()

    @property
    def action_dim(self) -> int:
        """Length A of an action."""
        return len(self.uniform_action)

    def generator(self, stream: int) -> torch.Generator:
        """A CPU random generator of the agent's own; different streams of one seed are independent."""
        seed = int(np.random.SeedSequence((self.seed, stream)).generate_state(1)[0])
        return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Trajectory:
    """One finished episode; its last transition is terminal.

    Attributes:
        states (Tensor): [L, D], what the agent saw.
        actions (Tensor): [L, A] in [0, 1], as executed: the limit may have lowered the agent's own.
        rewards (Tensor): [L], zero before the last one; of M objectives [L, M].

    Raises:
        AutoDFPError: The lengths differ, or a number is not finite.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor

    def __post_init__(self):
        lengths = [len(self.states), len(self.actions), len(self.rewards)]
        if self.rewards.dim() not in (1, 2) or len(set(lengths)) != 1 or not lengths[0]:
            raise AutoDFPError(f'an episode has as many states as actions and rewards; found {lengths}')
        for name in ('states', 'actions', 'rewards'):
            if not getattr(self, name).isfinite().all():
                # It would spoil the networks for the rest of the search.
                raise AutoDFPError(f'the {name} of an episode must be finite, but one of them is infinite or nan')

    def worth(self, preference: Sequence[float]) -> float:
        """The sum of the rewards; of several objectives weighted with the preference [M]."""
        total = self.rewards.sum(0)
        return (total @ total.new_tensor(preference) if preference else total).item()


class Agent(ABC):
    """How a search chooses its actions.

    An episode is ``begin_episode``, then ``act`` for each group, then ``learn``. In an opening episode the plan is
    given, and ``act`` is not called. If several processes share a search, each begins an episode before the first of
    these is learned from; the order stays the same.

    Agents work on the CPU, in float32, and draw from their own generators: the global random state is never touched,
    and two agents of one seed act alike.

    Args:
        spec (AgentSpec): The task.
    """

    def __init__(self, spec: AgentSpec):
        self.spec = spec
        self.episode = 0

    def begin_episode(self, episode: int) -> None:
        """Prepare for an episode.

        Args:
            episode (int): Its number, counted from 0.
        """
        self.episode = episode

    @abstractmethod
    def act(self, state: Tensor) -> Tensor:
        """Choose the action for one group.

        Args:
            state (Tensor): [D], each about in [0, 1].

        Returns:
            Tensor: [A] in [0, 1].
        """

    def learn(self, trajectory: Trajectory) -> dict[str, float]:
        """Take in a finished episode, once after each.

        Returns:
            dict[str, float]: Scalars for the log, possibly none.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on after an episode, bit for bit, as a copy.

        It holds tensors, numbers, strings, lists and dicts only: ``torch.load(weights_only=True)`` reads it.
        """
        return dict(type=type(self).__name__, episode=self.episode, **self._sizes())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, with its random state in place of the seed.

        Raises:
            AutoDFPError: The state is another kind of agent's, or that of another task or other settings.
        """
        require_settings('agent', dict(type=type(self).__name__, **self._sizes()), state)
        self.episode = state['episode']

    def _sizes(self) -> dict[str, int]:
        return {name: getattr(self.spec, name) for name in ('horizon', 'state_dim', 'action_dim')}


def require_settings(owner: str, asked: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse a saved state whose settings are not the present ones.

    Args:
        owner (str): Whose settings they are, for the message.
        asked (dict): The present settings.
        saved (dict): The saved state; keys beyond ``asked`` are not looked at.

    Raises:
        AutoDFPError: A setting differs or is missing.
    """
    for name, value in asked.items():
        place, known, wanted = _difference(name, saved.get(name), value)
        if known == wanted:
            continue
        known, wanted = repr(known), repr(wanted)
        if place in BEHIND_CHECKSUMS and CHECKSUM.sub('', known) == CHECKSUM.sub('', wanted):
            raise AutoDFPError(
                f'the {owner} to resume was saved with other {BEHIND_CHECKSUMS[place]} than there are now; resume with '
                'those, or start a new search'
            )
        known, wanted = _apart(known, wanted), _apart(wanted, known)
        raise AutoDFPError(
            f'the {owner} to resume was saved with {place}={known}, but {place}={wanted} is asked for; '
            'resume with the saved settings or start a new search'
        )


def _difference(name: str, saved: Any, asked: Any) -> tuple[str, Any, Any]:
    """Name, saved and asked value of a setting; of dicts that differ, those of the first item that does."""
    saved, asked = read_written(saved), read_written(asked)
    if isinstance(saved, dict) and isinstance(asked, dict):
        for key in saved | asked:
            if read_written(saved.get(key)) != read_written(asked.get(key)):
                return _difference(f'{name}.{key}', saved.get(key), asked.get(key))
    return name, saved, asked


def _apart(text: str, other: str) -> str:
    """A text; of a long one only the part where it begins to differ from the other."""
    if len(text) <= LONG:
        return text
    differs = next((place for place, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), 0)
    start = text.rfind(' ', 0, differs) + 1
    return f'...{text[start : start + LONG]}'
