"""How well rewards rank plans; ``tools/rank_plans.py`` runs it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmautodfp.rewards import SyntheticReward
from mmautodfp.utils.settings import TwoOrMore, checked
from mmautodfp.utils.timing import describe_machine

from .bench import prepare_hook, random_plans, spearman

#: Of :class:`SyntheticReward`.
MEASURES = ('error', 'cosine')


@checked('a ranking of plans')
def rank_plans(
    config: str | os.PathLike,
    num_plans: TwoOrMore = 100,
    checkpoint: str | None = None,
    images: Mapping[str, Any] | None = None,
    cfg_options: dict[str, Any] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Evaluate random plans within the budget with the config's reward and with rewards that need no data.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry; its reward is taken as the truth.
        num_plans (int): How many plans, 2 or more, see :func:`.bench.random_plans`. Defaults to 100.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        images (Mapping | None): Settings of the rewards' synthetic images. Defaults to None: their own.
        cfg_options (dict | None): Overrides of the config, dotted keys to values. The plans lie around the uniform one
            unless ``autodfp.allocate`` is True.
        report (Callable): Told the result so far after each tenth plan. Defaults to saying nothing.

    Returns:
        dict[str, Any]: Metrics of each plan, and Spearman's rank correlation with the truth by reward, over all plans
        and over the better half of them, among which a search has to choose.

    Raises:
        AutoDFPError: There are fewer than two plans, or the config is not one of a search that can be prepared.
    """
    # Plans around the uniform one differ more than plans around an allocated one.
    options = {'autodfp.compare': False, 'autodfp.allocate': False} | (cfg_options or {})
    _, hook = prepare_hook(config, checkpoint, options)
    task = hook.task
    rewards = dict(truth=hook.reward)
    for measure in MEASURES:
        rewards[measure] = SyntheticReward(dict(images or {}), measure)
        rewards[measure].prepare(task.model)
    values: dict[str, list[float]] = {name: [] for name in rewards}
    result = {}
    for number, plan in enumerate(random_plans(task, num_plans), 1):
        with task.apply(plan):
            for name, reward in rewards.items():
                values[name].append(reward(task.model))
        if number % 10 == 0 or number == num_plans:
            result = dict(
                config=Path(config).as_posix(),
                metric=hook.reward.name,
                images=len(hook.reward.images),
                synthetic_images=dict(images or {}),
                reconstructor=hook.settings.reconstructor,
                budget=task.constraint.describe(),
                plans=number,
                correlation={name: _correlations(values['truth'], values[name]) for name in MEASURES},
                values=values,
                machine=describe_machine(),
            )
            report(result)
    return result


def _correlations(truth: list[float], guess: list[float]) -> dict[str, float]:
    truth_values, guesses = np.array(truth), np.array(guess)
    better = truth_values >= np.median(truth_values)
    return dict(all=spearman(truth_values, guesses), better_half=spearman(truth_values[better], guesses[better]))
