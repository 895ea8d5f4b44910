"""Kinds of search compared on one task, with the same number of episodes; ``tools/benchmark.py search`` runs it."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mmautodfp.api import search
from mmautodfp.hooks import AutoDFPHook
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.configs import type_name
from mmautodfp.utils.fileio import portable
from mmautodfp.utils.settings import Count, Whole, checked

from .bench import deviation, prepare_hook, require_held_out, take_up, those_named

# 'SAC' is the config's own agent, 'SAC as published' the same with these settings of the paper.
PUBLISHED = dict(credit='td', warmup='random')
#: Held-out metrics: of a plan as in an episode, of the same after the full pass, if there is one, and of the chosen
#: finalist after the full pass.
EPISODE, FINISHED, CHOSEN = 'held_out', 'finished', 'chosen'


@checked('searches side by side')
def benchmark_search(
    config: str | os.PathLike,
    episodes: Count = 100,
    seeds: Count = 5,
    only: str = '',
    finalists: Whole = 0,
    cfg_options: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    report: Callable[[dict[str, Any], str], None] = lambda *_: None,
) -> dict[str, Any]:
    """Run random search, CMA-ES and SAC on one task with several seeds, and evaluate the plans that need no search.

    All searches open with the same plans, those of the config.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        episodes (int): Of each search, the opening ones included. Defaults to 100.
        seeds (int): Searches of each kind, with the seeds 0, 1, ... Defaults to 5.
        only (str): Regular expression that the names of the searches must match. Defaults to '': all.
        finalists (int): How many of each search's plans are judged on further images, to measure what choosing among
            them brings. Defaults to 0: no images are set aside for that.
        cfg_options (dict | None): Overrides of the config, dotted keys to values. Defaults to none.
        known (dict | None): An earlier result, whose searches are not run again. Defaults to None.
        report (Callable): Told the result so far and a line, after each search. Defaults to saying nothing.

    Returns:
        dict[str, Any]: ``dense`` metric on the held-out images. ``plans`` that need no search: 'uniform' and, if the
        reconstructor allocates one, 'allocated', with the metrics ``held_out`` and, if there is a full pass,
        ``finished``. ``searches`` by kind: of each seed's best plan the metric on the ``search`` images and the same
        two, and of the chosen finalist, if there are any, ``chosen``, also after the full pass; means and deviations
        of these; the seconds of the searches. The machine.

    Raises:
        AutoDFPError: A count is out of range, ``only`` matches no search, ``known`` was measured with other settings,
            no images are held out, or none are left to judge finalists.
    """
    if finalists == 1:
        raise AutoDFPError('finalists=1 was asked for, which leaves no choice; judge 2 or more, or 0 to judge none')
    _, hook = prepare_hook(config, cfg_options=cfg_options, finalists=finalists)
    require_held_out(hook)
    if finalists and hook.judge is None:
        raise AutoDFPError(
            f'{finalists} finalists were to be judged, but all images of val_dataloader reward the search; set '
            'autodfp.reward.num_images lower'
        )
    agents = those_named(candidates(hook.settings.agent), only, 'searches')
    asked = dict(
        config=str(config),
        metric=hook.reward.name,
        target=hook.task.target,
        limits=hook.task.constraint.table(),
        reconstructor=hook.settings.reconstructor,
        agent=hook.settings.agent,
        episodes=episodes,
        search_images=len(hook.reward.images),
        held_out_images=len(hook.held_out.images),
        finalists=finalists or None,
        judging_images=len(hook.judge.images) if finalists else None,
    )
    result = take_up(known, asked, hook.task.model, cfg_options)
    if not known:
        with torch.no_grad():
            result |= dict(dense=hook.held_out(hook.task.model), plans={}, searches={})
    plans = dict(uniform=hook.task.uniform_plan(), allocated=hook.task.allocated_plan())
    for name, plan in plans.items():
        if plan is not None and name not in result['plans']:
            result['plans'][name] = _hold_out(hook, plan)
            report(result, f'{name}: {_tell(result["plans"][name])}')
    for seed in range(seeds):
        for name, agent in agents.items():
            row = result['searches'].setdefault(name, dict(agent=portable(agent), search=[], seconds=0.0))
            if len(row['search']) > seed:
                continue
            _run(hook, row, episodes, seed)
            newest = {kind: row[kind][-1] for kind in (EPISODE, FINISHED, CHOSEN) if kind in row}
            report(result, f'{name}, seed {seed}: {row["search"][-1]:.4f} on the search images, {_tell(newest)}')
    return result


def candidates(agent: dict) -> dict[str, dict]:
    """Configs of the compared agents by name; ``agent`` is the config's own, which should be a SAC."""
    found = {
        'random': dict(type='RandomSearch'),
        'random around the start': dict(type='RandomSearch', around_uniform=True),
        'CMA-ES': dict(type='CMAES'),
    }
    if type_name(agent) != 'SAC':
        return found | {"the config's own": dict(agent)}
    return found | {'SAC as published': dict(agent) | PUBLISHED, 'SAC': dict(agent)}


def _run(hook: AutoDFPHook, row: dict[str, Any], episodes: int, seed: int) -> None:
    """Run one more search of a kind and add what it found to the kind's row."""
    start = time.perf_counter()
    told = dict(opening_lams=hook.settings.opening_lams, finalists=hook.num_finalists, judge=hook.judge)
    found = search(hook.task, hook.reward, episodes, row['agent'], racing=False, seed=seed, **told)
    row['seconds'] += time.perf_counter() - start
    best = found.history.best
    row['search'].append(found.history.rewards[best])
    metrics = _hold_out(hook, hook.task.env.plan(found.history.widths[best], found.history.lams[best]))
    if found.finalists:
        metrics[CHOSEN] = hook.task.evaluate(found.plan, hook.held_out, final=True)
    for kind, metric in metrics.items():
        values = row.setdefault(kind, [])
        values.append(metric)
        prefix = '' if kind == EPISODE else f'{kind}_'
        row[f'{prefix}mean'] = statistics.mean(values)
        row[f'{prefix}deviation'] = deviation(values)


def _hold_out(hook: AutoDFPHook, plan: PruningPlan) -> dict[str, float]:
    found = {EPISODE: hook.task.evaluate(plan, hook.held_out)}
    if hook.task.reconstructor.has_full_pass:
        found[FINISHED] = hook.task.evaluate(plan, hook.held_out, final=True)
    return found


def _tell(held_out: dict[str, float]) -> str:
    return ', '.join(f'{metric:.4f} {kind.replace("_", " ")}' for kind, metric in held_out.items())
