"""CMA-ES as an agent: plans are drawn from a normal distribution that moves towards the good ones."""

from typing import Annotated, Any

import numpy as np
import torch
from cmaes import CMA
from pydantic import Field
from torch import Tensor

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import AGENTS
from mmautodfp.utils.settings import checked

from .agent import Agent, AgentSpec, Trajectory, require_settings

EVOLUTION_STREAM = 3


@AGENTS.register_module()
class CMAES(Agent):
    """Covariance matrix adaptation over the actions of all groups together, L x A numbers, whatever the states.

    Numbers outside [0, 1] are clipped. The distribution learns from the plan that was drawn, even if the limit lowered
    it. Episodes that the agent did not draw, such as the opening ones of a search, are ignored.

    Args:
        spec (AgentSpec): The task; the distribution starts at ``uniform_action``.
        sigma (float): Standard deviation at the start, in (0, 1]. Defaults to 0.2.
        population_size (int | None): Episodes between two updates, 4 or more. Defaults to None: 4 + 3 ln(L A).

    Raises:
        AutoDFPError: A setting is out of range.
    """

    @checked('CMAES')
    def __init__(
        self,
        spec: AgentSpec,
        sigma: Annotated[float, Field(gt=0, le=1)] = 0.2,
        population_size: Annotated[int, Field(ge=4)] | None = None,  # cmaes divides by zero with fewer
    ):
        super().__init__(spec)
        self.sigma = float(sigma)  # of a NumPy number, a kept search could not be read
        self.population_size = population_size
        self._start()

    def _start(self) -> None:
        spec = self.spec
        mean = np.tile(spec.uniform_action, spec.horizon)
        self.optimizer = CMA(
            mean,
            self.sigma,
            bounds=np.tile([0.0, 1.0], (len(mean), 1)),
            n_max_resampling=1,  # in so many dimensions hardly a draw lies inside: clip at once
            seed=spec.generator(EVOLUTION_STREAM).initial_seed() % 2**32,
            population_size=self.population_size,
        )
        self.rewards: list[float] = []
        self.generations: list[int] = []  # in which the plans of these rewards were drawn
        self._population: list[tuple[np.ndarray, float]] = []
        # Episode -> its plan and generation, None if it was not drawn. Ranks begin several before one is learned from.
        self._pending: dict[int, tuple[np.ndarray, int] | None] = {}
        self._next_group = 0

    def begin_episode(self, episode: int) -> None:
        super().begin_episode(episode)
        self._pending = {number: drawn for number, drawn in self._pending.items() if number < episode}
        self._pending[episode] = None
        self._next_group = 0

    def act(self, state: Tensor) -> Tensor:
        """The next group's action [A] in the plan of this episode, which is drawn at the first call."""
        if self._pending[self.episode] is None:
            self._pending[self.episode] = self.optimizer.ask(), self.optimizer.generation
        plan = self._pending[self.episode][0]
        action = plan.reshape(self.spec.horizon, -1)[self._next_group % self.spec.horizon]
        self._next_group += 1
        return torch.tensor(action, dtype=torch.float32)

    def learn(self, trajectory: Trajectory) -> dict[str, float]:
        """Take in the earliest episode that is not learned from; after ``population_size``, move the distribution.

        Returns:
            dict[str, float]: ``generation``, how often it has moved.
        """
        drawn = self._pending.pop(min(self._pending))
        if drawn is not None:
            self._tell(*drawn, trajectory.worth(self.spec.preference))
        return dict(generation=self.optimizer.generation)

    def _tell(self, drawn: np.ndarray, generation: int, reward: float) -> None:
        self.rewards.append(reward)
        self.generations.append(generation)
        self._population.append((drawn, -reward))  # it minimises
        if len(self._population) == self.optimizer.population_size:
            self.optimizer.tell(self._population)
            self._population = []

    def state_dict(self) -> dict[str, Any]:
        # Seed and rewards are the whole state: every draw follows from them.
        return dict(
            super().state_dict(),
            sigma=self.sigma,
            population_size=self.population_size,
            seed=self.spec.seed,
            rewards=torch.tensor(self.rewards, dtype=torch.float64),
            generations=torch.tensor(self.generations, dtype=torch.int64),
            mean=torch.tensor(self.optimizer.mean, dtype=torch.float64),
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        settings = dict(sigma=self.sigma, population_size=self.population_size, seed=self.spec.seed)
        require_settings('agent', settings, state)
        self._start()
        generations, drawn = state['generations'].tolist(), []
        for episode, reward in enumerate(state['rewards'].tolist()):
            # Ranks draw ahead: all plans of a generation were drawn before the reward that ended it.
            while len(drawn) < len(generations) and generations[len(drawn)] == self.optimizer.generation:
                drawn.append(self.optimizer.ask())
            self._tell(drawn[episode], generations[episode], reward)
        if not np.allclose(self.optimizer.mean, state['mean'].numpy(), atol=1e-6):
            raise AutoDFPError(
                'the CMA-ES search to resume cannot be followed again, most likely since it ran with another version '
                'of cmaes or numpy; resume it there or start a new search'
            )
