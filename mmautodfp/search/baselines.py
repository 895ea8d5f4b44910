"""Random plans: what SAC has to beat, and how it explores before it has learned."""

from typing import Any

import torch
from torch import Tensor

from mmautodfp.utils.registry import AGENTS
from mmautodfp.utils.settings import checked

from .agent import Agent, AgentSpec, require_settings

EXPLORE_STREAM = 0
# Narrow episodes show what single groups are worth, at a small loss; wide ones find plans far from the uniform one.
RATIO_WIDTHS = (0.02, 0.3)


@AGENTS.register_module()
class RandomSearch(Agent):
    """Random plans. SAC's warm-up episodes of the same seed are exactly these.

    Args:
        spec (AgentSpec): The task.
        around_uniform (bool): Draw the first component of an action, which decides how many channels stay, from a
            normal distribution around ``spec.uniform_action``, clipped to [0, 1]; its standard deviation is drawn
            from [0.02, 0.3] for each episode. Within a tight limit, independent ratios hardly ever make a better plan
            than the uniform one. The other components are evenly distributed in any case. Defaults to False: the first
            is, too.
    """

    @checked('RandomSearch')
    def __init__(self, spec: AgentSpec, around_uniform: bool = False):
        super().__init__(spec)
        self.around_uniform = around_uniform
        self.random = spec.generator(EXPLORE_STREAM)
        self.width = RATIO_WIDTHS[1]

    def begin_episode(self, episode: int) -> None:
        super().begin_episode(episode)
        if self.around_uniform:
            narrowest, widest = RATIO_WIDTHS
            self.width = narrowest + (widest - narrowest) * torch.rand((), generator=self.random).item()

    def act(self, state: Tensor) -> Tensor:
        """A random action [A] in [0, 1], whatever the state."""
        action = torch.rand(self.spec.action_dim, generator=self.random)
        if self.around_uniform:
            noise = self.width * torch.randn((), generator=self.random)
            action[0] = (self.spec.uniform_action[0] + noise).clamp(0, 1)
        return action

    def state_dict(self) -> dict[str, Any]:
        return dict(
            super().state_dict(), around_uniform=self.around_uniform, width=self.width, random=self.random.get_state()
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        require_settings('agent', dict(around_uniform=self.around_uniform), state)
        self.width = state['width']
        self.random.set_state(state['random'])
