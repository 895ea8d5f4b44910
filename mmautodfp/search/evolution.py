"""CMA-ES as an agent: plans are drawn from a normal distribution that moves towards the good ones."""

from typing import Annotated, Any

import numpy as np
import torch
from cmaes import CMA
from pydantic import Field
from torch import Tensor

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import AGENTS
from mmautodfp.utils.settings import TwoOrMore, checked

from .agent import Agent, AgentSpec, Trajectory, require_settings

EVOLUTION_STREAM = 3


@AGENTS.register_module()
class CMAES(Agent):
    """Covariance matrix adaptation over the actions of all groups together, L x A numbers; states are not looked at.

    Numbers outside [0, 1] are clipped. What it tells its distribution of a plan is the plan that it drew, even where
    the budget lowered it. Episodes that it did not draw, such as a search's opening ones, are passed over.

    Args:
        spec (AgentSpec): The task; the distribution starts at ``uniform_action``.
        sigma (float): Standard deviation at the start, in (0, 1]. Defaults to 0.2.
        population_size (int | None): Episodes between two updates, 2 or more. Defaults to None: 4 + 3 ln(L A).

    Raises:
        AutoDFPError: A setting is out of range.
    """

    @checked('CMAES')
    def __init__(
        self,
        spec: AgentSpec,
        sigma: Annotated[float, Field(gt=0, le=1)] = 0.2,
        population_size: TwoOrMore | None = None,
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
        self.generations: list[int] = []  # that each of them was drawn in
        self._population: list[tuple[np.ndarray, float]] = []
        # Episode -> its plan and generation, None if it was not drawn: several may be played before the first is told.
        self._pending: dict[int, tuple[np.ndarray, int] | None] = {}
        self._next_group = 0

    def begin_episode(self, episode: int) -> None:
        super().begin_episode(episode)
        self._pending = {number: drawn for number, drawn in self._pending.items() if number < episode}
        self._pending[episode] = None
        self._next_group = 0

    def act(self, state: Tensor) -> Tensor:
        """The next group's action [A] of the plan that is drawn for this episode."""
        if self._pending[self.episode] is None:
            self._pending[self.episode] = self.optimizer.ask(), self.optimizer.generation
        plan = self._pending[self.episode][0]
        action = plan.reshape(self.spec.horizon, -1)[self._next_group % self.spec.horizon]
        self._next_group += 1
        return torch.tensor(action, dtype=torch.float32)

    def learn(self, trajectory: Trajectory) -> dict[str, float]:
        """Keep the earliest episode that was begun; after ``population_size`` of them, move the distribution.

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
        # The rewards are the whole state: from the seed and them, every draw follows again.
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
            # Ranks draw ahead: up to the first plan of a later generation, all are drawn before the next is told.
            while len(drawn) < len(generations) and generations[len(drawn)] == self.optimizer.generation:
                drawn.append(self.optimizer.ask())
            self._tell(drawn[episode], generations[episode], reward)
        if not np.allclose(self.optimizer.mean, state['mean'].numpy(), atol=1e-6):
            raise AutoDFPError(
                'the CMA-ES search to resume cannot be followed again, most likely since it ran with another version '
                'of cmaes or numpy; resume it there or start a new search'
            )
