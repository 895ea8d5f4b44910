"""Searches side by side, on one task and with the same number of episodes; ``tools/benchmark.py search`` runs them."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from mmautodfp.api import search
from mmautodfp.hooks import AutoDFPHook
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.timing import describe_machine

from .bench import prepare_hook

# 'SAC' is the config's own agent. What the paper does not do is left out of 'SAC as published'.
PUBLISHED = dict(credit='td', warmup='random')


def benchmark_search(
    config: str | os.PathLike,
    episodes: int = 100,
    seeds: int = 5,
    checkpoint: str | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run random search, CMA-ES and SAC on one task, several seeds of each.

    All open with the same plans, those of the config.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        episodes (int): Of each search, the opening ones included. Defaults to 100.
        seeds (int): Searches of each kind, with the seeds 0, 1, ... Defaults to 5.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        tell (Callable): Told a line after each search. Defaults to print.

    Returns:
        dict[str, Any]: For each kind the best plan's metric by seed on the search images and on the held-out ones, the
        mean and deviation of the latter, and the seconds; the uniform plan's and the dense model's; the machine.

    Raises:
        AutoDFPError: A count is below 1, or there is nothing to hold out.
    """
    for name, value in (('episodes', episodes), ('seeds', seeds)):
        if value < 1:
            raise AutoDFPError(f'{name}={value} was asked for; it must be 1 or more')
    with tempfile.TemporaryDirectory() as scratch:
        _, hook = prepare_hook(config, scratch, checkpoint)
        if hook.held_out is None:
            raise AutoDFPError('searches were to be compared on held-out images, but test_dataloader has none')
        # An agent sees its own task only: the environment, the constraint and the rewards are shared.
        results = {
            name: _run_seeds(hook, name, agent, episodes, seeds, tell) for name, agent in candidates(hook.agent).items()
        }
    with torch.no_grad():
        dense = hook.held_out(hook.task.model)
    uniform = hook.task.evaluate(hook.task.uniform_plan(), hook.held_out)
    return dict(
        config=str(config),
        metric=hook.reward.name,
        preserve_ratio=hook.task.constraint.preserve_ratio,
        episodes=episodes,
        search_images=len(hook.reward.images),
        held_out_images=len(hook.held_out.images),
        dense=dense,
        uniform=uniform,
        searches=results,
        machine=describe_machine(),
    )


def candidates(agent: dict) -> dict[str, dict]:
    """Name to config of the agents that are compared; ``agent`` is the config's own, which should be a SAC."""
    found = {
        'random': dict(type='RandomSearch'),
        'random around the uniform plan': dict(type='RandomSearch', around_uniform=True),
        'CMA-ES': dict(type='CMAES'),
    }
    if str(agent.get('type')).rpartition('.')[2] == 'SAC':
        found['SAC as published'] = dict(agent) | PUBLISHED
    name = 'SAC' if 'SAC as published' in found else "the config's own"
    return found | {name: dict(agent)}


def _run_seeds(
    hook: AutoDFPHook, name: str, agent: dict, episodes: int, seeds: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    rewards, held_out = [], []
    start = time.perf_counter()
    for seed in range(seeds):
        opening = hook.settings.opening_lams
        found = search(hook.task, hook.reward, episodes, agent, opening, racing=False, seed=seed)
        held_out.append(hook.task.evaluate(found.plan, hook.held_out))
        rewards.append(found.reward)
        tell(f'{name}, seed {seed}: {rewards[-1]:.4f} on the search images, {held_out[-1]:.4f} held out')
    return dict(
        agent=agent,
        search=rewards,
        held_out=held_out,
        mean=statistics.mean(held_out),
        deviation=statistics.stdev(held_out) if seeds > 1 else None,
        seconds=time.perf_counter() - start,
    )
