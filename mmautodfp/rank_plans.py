"""How well rewards without data rank plans; ``tools/rank_plans.py`` runs it."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .apis import build_runner, find_checkpoint, load_config
from .benchmark import quiet
from .registry import AGENTS, HOOKS, build
from .rewards import SyntheticReward
from .surgery import apply_plan
from .timing import describe_machine

#: Settings of :class:`SyntheticReward` beside those of its images.
REWARDS: dict[str, dict] = {
    'error, batch statistics': dict(),
    'error, running statistics': dict(statistics='running'),
    'cosine, batch statistics': dict(measure='cosine'),
    'cosine, running statistics': dict(measure='cosine', statistics='running'),
}


def rank_plans(
    config: str | os.PathLike,
    num_plans: int = 100,
    checkpoint: str | None = None,
    images: Mapping[str, Any] | None = None,
    cfg_options: dict[str, Any] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Evaluate random plans within the budget with the config's reward and with those that need no data.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry; its reward is taken as the truth.
        num_plans (int): Plans, drawn as ``RandomSearch(around_uniform=True)`` does. Defaults to 100.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        images (Mapping | None): Settings of the rewards' synthetic images. Defaults to None: their own.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.
        report (Callable | None): Told the result so far after each tenth plan.

    Returns:
        dict[str, Any]: Metrics of each plan, and Spearman's rank correlation with the truth by reward; over all plans
        and over the better half of them, where a search has to choose.
    """
    with tempfile.TemporaryDirectory() as scratch, quiet():
        cfg = load_config(config, scratch, 'none', cfg_options)
        cfg.load_from = find_checkpoint(checkpoint or cfg.get('load_from'), config)
        cfg.log_level = 'ERROR'
        cfg.visualizer = dict(type='mmengine.Visualizer', vis_backends=[])  # the scratch folder goes
        cfg.autodfp.compare = False
        cfg.autodfp.allocate = False  # plans around the uniform one differ more
        hook = build(HOOKS, cfg.autodfp.to_dict())
        runner = build_runner(cfg)
        runner.load_or_resume()
        hook.prepare(runner)
    rewards = {name: SyntheticReward(dict(images or {}), **settings) for name, settings in REWARDS.items()}
    for reward in rewards.values():
        reward.prepare(hook.model)
    values: dict[str, list[float]] = {name: [] for name in ('truth', *rewards)}

    def evaluate(plan) -> float:
        with apply_plan(hook.target, plan, hook.reconstructor):
            for name, reward in rewards.items():
                values[name].append(reward(hook.model))
            values['truth'].append(hook.reward(hook.model))
        return values['truth'][-1]

    hook.env.evaluate = evaluate
    hook.seed = 0
    agent = build(AGENTS, dict(type='RandomSearch', around_uniform=True), spec=hook.spec)
    result = {}
    for number in range(num_plans):
        agent.begin_episode(number)
        state, _ = hook.env.reset()
        finished = False
        while not finished:
            state, _, finished, _, _ = hook.env.step(agent.act(state))
        if number % 10 == 9 or number + 1 == num_plans:
            result = dict(
                config=Path(config).as_posix(),
                metric=hook.reward.name,
                images=len(hook.reward.images),
                synthetic_images=dict(images or {}),
                reconstructor=hook.settings['reconstructor'],
                preserve_ratio=hook.budget.preserve_ratio,
                plans=number + 1,
                correlation={name: _correlations(values['truth'], values[name]) for name in rewards},
                values=values,
                machine=describe_machine(),
            )
            report(result)
    return result


def _correlations(truth: list[float], guess: list[float]) -> dict[str, float]:
    truth_values, guesses = np.array(truth), np.array(guess)
    better = truth_values >= np.median(truth_values)
    return dict(all=spearman(truth_values, guesses), better_half=spearman(truth_values[better], guesses[better]))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two samples [S]; equal values share the mean of their ranks. 0 without spread."""
    ranks = [_ranks(np.asarray(values)) for values in (a, b)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
