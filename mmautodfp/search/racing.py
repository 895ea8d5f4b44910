"""Stopping a hopeless plan before all images are evaluated."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.stats import t as student_t

from mmautodfp.utils.settings import Count, settings


@settings('racing')
class Racing:
    """Evaluates a plan on more and more images and stops when it can hardly become the best any more.

    The bound: over the plans that were evaluated whole, the final reward is regressed linearly on the reward after the
    stage at hand. A plan is stopped if the upper end of the one-sided prediction interval for its final reward lies
    below the best reward so far. If the residuals are normal, a plan that would have become the best is stopped with a
    probability of at most ``risk`` at each stage. Its reward is then the predicted one, which is below the best; the
    best plan itself has always been evaluated whole.

    Attributes:
        risk (float): In (0, 0.5). Defaults to 0.001.
        warmup (int): Episodes at the start that are evaluated whole, at least 4. Defaults to 20.
        refresh (int): Each episode of a number divisible by this is evaluated whole, so that the regression does not
            come to rest on good plans alone. Defaults to 10.

    Raises:
        AutoDFPError: A value is of another type or out of its range.
    """

    risk: Annotated[float, Field(gt=0, lt=0.5)] = 0.001
    warmup: Annotated[int, Field(ge=4)] = 20
    refresh: Count = 10

    def run(
        self, episode: int, rewards: Iterator[float], num_stages: int, earlier: Sequence[Sequence[float]]
    ) -> tuple[float, list[float]]:
        """Evaluate one plan.

        Args:
            episode (int): Its number.
            rewards (Iterator[float]): The reward after each stage; not asked for more than is needed.
            num_stages (int): How many there are, S.
            earlier (Sequence[Sequence[float]]): Rewards of the episodes so far after each stage that they went
                through, at most S each.

        Returns:
            tuple[float, list[float]]: The reward, predicted if the plan was stopped, and the rewards after each stage.
        """
        whole = np.array([row for row in earlier if len(row) == num_stages], dtype=float).reshape(-1, num_stages)
        racing = len(whole) >= self.warmup and episode % self.refresh != 0
        seen: list[float] = []
        for reward in rewards:
            seen.append(reward)
            if len(seen) == num_stages or not racing:
                continue
            predicted, bound = self.predict(whole[:, len(seen) - 1], whole[:, -1], reward)
            if bound < whole[:, -1].max():
                return predicted, seen
        return seen[-1], seen

    def predict(self, partial: np.ndarray, final: np.ndarray, reward: float) -> tuple[float, float]:
        """The final reward of a plan, and its upper bound.

        Args:
            partial (np.ndarray): [M], rewards after a stage, M of at least 4.
            final (np.ndarray): [M], final rewards of the same plans.
            reward (float): What the plan at hand has after that stage.

        Returns:
            tuple[float, float]: The predicted final reward, and the end of the prediction interval above it.
        """
        count = len(partial)
        offset = partial - partial.mean()
        spread = (offset**2).sum()
        # Plans that are all alike after a stage tell nothing about a slope.
        slope = (offset * final).sum() / spread if spread > 0 else 1.0
        residuals = final - final.mean() - slope * offset
        deviation = math.sqrt((residuals**2).sum() / (count - 2))
        distance = reward - partial.mean()
        leverage = 1 + 1 / count + (distance**2 / spread if spread > 0 else 0.0)
        predicted = final.mean() + slope * distance
        margin = student_t.ppf(1 - self.risk, count - 2) * deviation * math.sqrt(leverage)
        return float(predicted), float(predicted + margin)
