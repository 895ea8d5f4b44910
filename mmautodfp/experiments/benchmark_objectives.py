"""One search for many preferences compared with a search for each, random plans and the frontier.

``tools/benchmark.py objectives`` runs it.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from mmautodfp.api import search
from mmautodfp.hooks import AutoDFPHook
from mmautodfp.runs import load_search_config
from mmautodfp.search import Objectives, pareto_set
from mmautodfp.search.objectives import read_weights
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.configs import type_name
from mmautodfp.utils.settings import Count, checked
from mmautodfp.utils.timing import describe_machine

from .bench import deviation, prepare_hook, require_held_out

OBJECTIVES = dict(metric=1.0, params=0.5, flops=0.5)
PREFERENCES = 5  # the weighted searches, which share the episodes

# Plans and their outcomes [M] on the images of the reward.
Played = list[tuple[PruningPlan, list[float]]]


@checked('a comparison of searches for several objectives')
def benchmark_objectives(
    config: str | os.PathLike,
    episodes: Annotated[int, Field(ge=PREFERENCES)] = 100,
    seeds: Count = 5,
    cfg_options: dict[str, Any] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compare ways to spend the same number of evaluations by the hypervolume of the plans that they find.

    'conditioned' is one search under many preferences, 'asked' one under the asked preference only. 'weighted' are
    five searches with fixed weights, each with a fifth of the episodes and of the warm-up: the metric weighs 0.1, 0.3,
    0.5, 0.7 and 0.9, and the costs share the rest as in the asked preference. 'random' are random plans around the
    uniform one. 'frontier' are nested plans from the limit down, whose widths the reconstructor chooses; they are the
    same for all seeds.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry. Without ``objectives`` in it, the metric weighs as
            much as parameters and FLOPs together.
        episodes (int): Evaluations of each way, 5 or more. Defaults to 100.
        seeds (int): Repetitions, with the seeds 0, 1, ... Defaults to 5.
        cfg_options (dict | None): Overrides of the config, dotted keys to values. Defaults to none.
        tell (Callable): Told a line after each repetition. Defaults to print.

    Returns:
        dict[str, Any]: For each way, by seed: the hypervolume of its Pareto set above the point without any metric and
        any saving (1 would be the full metric at no cost); the same of these plans after the full pass on held-out
        images; the best utility under the asked preference; means and deviations of the three; how many plans were
        evaluated, and how many are in the set; the seconds.

    Raises:
        AutoDFPError: A count is too small, the config's agent is not SAC, all costs weigh 0, or no images are held out.
    """
    options = dict(cfg_options or {})
    if load_search_config(config, cfg_options=cfg_options).autodfp.get('objectives') is None:
        options |= {f'autodfp.objectives.{name}': weight for name, weight in OBJECTIVES.items()}
    _, hook = prepare_hook(config, cfg_options=options)
    if type_name(hook.settings.agent) != 'SAC':
        raise AutoDFPError(
            f"one search for many preferences takes an agent that learns from them, but the config's is "
            f'{hook.settings.agent["type"]}; make it SAC'
        )
    require_held_out(hook)
    task, asked = hook.task, hook.settings.objectives
    rewards = (hook.reward, hook.held_out)
    objectives, held_out = (
        Objectives.build(asked, task.costs, task.constraint, partial(task.evaluate, None, reward)) for reward in rewards
    )
    play = partial(_play, hook, episodes)
    ways = dict(
        conditioned=partial(play, hook.settings.agent),
        asked=partial(play, dict(hook.settings.agent, drawn_preferences=0.0)),
        weighted=partial(_play_weighted, hook, episodes, preferences(asked)),
        random=partial(play, dict(type='RandomSearch', around_uniform=True)),
    )

    def measure(label: str, call: Callable[[], Played]) -> dict[str, Any]:
        start = time.perf_counter()
        played = call()
        seconds = time.perf_counter() - start
        row = _judge(hook, objectives, held_out, played) | dict(seconds=seconds)
        tell(f'{label}: hypervolume {row["search"]:.4f} on the search images, {row["held_out"]:.4f} held out')
        return row

    found = {
        name: [measure(f'{name}, seed {seed}', partial(way, seed)) for seed in range(seeds)]
        for name, way in ways.items()
    }
    found['frontier'] = [measure('frontier', partial(_play_frontier, hook, objectives, episodes))]
    return dict(
        config=str(config),
        cfg_options=cfg_options or {},
        metric=hook.reward.name,
        objectives=objectives.weights,
        limit=task.constraint.describe(),
        reconstructor=hook.settings.reconstructor,
        episodes=episodes,
        search_images=len(hook.reward.images),
        held_out_images=len(hook.held_out.images),
        dense=dict(search=objectives.dense_metric, held_out=held_out.dense_metric),
        ways={name: _summary(rows) for name, rows in found.items()},
        machine=describe_machine(),
    )


def preferences(asked: Mapping[str, float]) -> list[dict[str, float]]:
    """Preferences with evenly spaced weights of the metric; the costs share the rest as in ``asked``.

    Raises:
        AutoDFPError: All costs weigh 0.
    """
    weights = read_weights(asked)
    rest = 1 - weights['metric']
    if rest == 0:
        raise AutoDFPError(
            f'searches with several weights were asked for, but {", ".join([*weights][1:])} of the objectives all '
            'weigh 0; give one of the costs a weight'
        )
    shares = [(step + 0.5) / PREFERENCES for step in range(PREFERENCES)]
    return [
        {name: share if name == 'metric' else (1 - share) * weight / rest for name, weight in weights.items()}
        for share in shares
    ]


def _play(hook: AutoDFPHook, episodes: int, agent: dict, seed: int, **settings: Any) -> Played:
    told = {name: getattr(hook.settings, name) for name in ('objectives', 'opening_lams', 'opening_points')}
    history = search(hook.task, hook.reward, episodes, agent, seed=seed, **told | settings).history
    plans = map(hook.task.env.plan, history.widths, history.lams)
    return list(zip(plans, history.outcomes, strict=True))


def _play_weighted(hook: AutoDFPHook, episodes: int, wanted: Sequence[dict[str, float]], seed: int) -> Played:
    agent, played = dict(hook.settings.agent, drawn_preferences=0.0), []
    if 'warmup_episodes' in agent:
        agent['warmup_episodes'] //= PREFERENCES
    for number, weights in enumerate(wanted):
        # With the opening and the seed of the first search, the others would only repeat its plans.
        opening = dict(opening_lams=(), opening_points=0) if number else {}
        share = len(range(number, episodes, PREFERENCES))
        played += _play(hook, share, agent, PREFERENCES * seed + number, objectives=weights, **opening)
    return played


def _play_frontier(hook: AutoDFPHook, objectives: Objectives, episodes: int) -> Played:
    task = hook.task
    within, _ = task.nested_widths(episodes, task.constraint.share)
    plans = [task.plan(widths) for widths in within]
    return [
        (plan, objectives.outcome(task.evaluate(plan, hook.reward), widths))
        for plan, widths in zip(plans, within, strict=True)
    ]


def _judge(hook: AutoDFPHook, objectives: Objectives, held_out: Objectives, played: Played) -> dict[str, Any]:
    """Hypervolumes and best utility of the Pareto set of the plans of one way and seed."""
    front = [played[index] for index in pareto_set([outcome for _, outcome in played])]
    seen = [outcome for _, outcome in front]
    unseen = [
        held_out.outcome(hook.task.evaluate(plan, hook.held_out, final=True), list(plan.widths.values()))
        for plan, _ in front
    ]
    row = dict(search=hypervolume(seen), held_out=hypervolume(unseen), utility=max(map(objectives.utility, seen)))
    return row | dict(evaluations=len(played), points=len(front))


def hypervolume(outcomes: Sequence[Sequence[float]]) -> float:
    """Exact volume of the points above 0 that one of the outcomes dominates.

    It is cut into slabs along the last objective. The base of each is the hypervolume of the outcomes that reach it, in
    the other objectives.

    Args:
        outcomes (Sequence[Sequence[float]]): [E, M], higher is better. One that is not above 0 in all objectives adds
            nothing.
    """
    above = sorted((outcome for outcome in outcomes if min(outcome) > 0), key=lambda outcome: -outcome[-1])
    if not above or len(above[0]) == 1:
        return above[0][0] if above else 0.0
    volume = 0.0
    for count, outcome in enumerate(above, 1):
        height = outcome[-1] - (above[count][-1] if count < len(above) else 0.0)
        if height > 0:
            volume += height * hypervolume([reaching[:-1] for reaching in above[:count]])
    return volume


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Columns by seed, with means and deviations of the first three."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    for name in ('search', 'held_out', 'utility'):
        columns[f'{name}_mean'] = statistics.mean(columns[name])
        columns[f'{name}_deviation'] = deviation(columns[name])
    return columns
