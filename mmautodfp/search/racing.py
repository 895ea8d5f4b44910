"""Stopping a hopeless plan before all images are evaluated."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.stats import t as student_t

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.settings import Count, settings


@settings('racing')
class Racing:
    """Evaluates a plan on more and more images, and stops when it can hardly become the best any more.

    Over the plans that were evaluated on all images, the final reward is regressed linearly on the reward after the
    present stage. A plan is stopped if the upper end of the one-sided prediction interval for its final reward is below
    the best reward so far. If the residuals are normal, a plan that would have become the best is stopped with a
    probability of at most ``risk`` at each stage. The reward of a stopped plan is the predicted one, which is below the
    best; so the best plan has always been evaluated on all images.

    Attributes:
        risk (float): In (0, 0.5). Defaults to 0.001.
        warmup (int): Episodes at the start that are evaluated on all images, at least 4. Defaults to 20.
        refresh (int): So is each episode whose number it divides; else only good plans would be left to regress on.
            Defaults to 10.

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
            rewards (Iterator[float]): Gives the reward after each stage; it is not used further than needed.
            num_stages (int): How many stages there are, S.
            earlier (Sequence[Sequence[float]]): Of the episodes so far, the rewards after each stage, at most S each.

        Returns:
            tuple[float, list[float]]: The reward, predicted if the plan was stopped, and the reward after each stage.

        Raises:
            AutoDFPError: There were more or fewer rewards than stages.
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
        if len(seen) != num_stages:
            raise AutoDFPError(
                f'a plan was to be evaluated in {num_stages} stages, but the reward gave {len(seen)} numbers; let its '
                'evaluate() give one after each of its stages'
            )
        return seen[-1], seen

    def predict(self, partial: np.ndarray, final: np.ndarray, reward: float) -> tuple[float, float]:
        """Predict the final reward of a plan.

        Args:
            partial (np.ndarray): [M], rewards of other plans after a stage, M of at least 4.
            final (np.ndarray): [M], their final rewards.
            reward (float): Reward of the plan after that stage.

        Returns:
            tuple[float, float]: The predicted final reward, and the upper end of its prediction interval.
        """
        count = len(partial)
        offset = partial - partial.mean()
        # Plans with equal rewards after the stage say nothing about a slope. Their mean differs from them by rounding.
        spread = (offset**2).sum() if np.ptp(partial) > 1e-9 else math.inf
        slope = (offset * final).sum() / spread if spread < math.inf else 1.0
        residuals = final - final.mean() - slope * offset
        deviation = math.sqrt((residuals**2).sum() / (count - 2))
        distance = reward - partial.mean()
        leverage = 1 + 1 / count + distance**2 / spread
        predicted = final.mean() + slope * distance
        margin = student_t.ppf(1 - self.risk, count - 2) * deviation * math.sqrt(leverage)
        return float(predicted), float(predicted + margin)
