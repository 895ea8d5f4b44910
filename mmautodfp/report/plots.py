"""Pictures of a run."""

import os
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmautodfp.fileio import atomic_path

BLUE, ORANGE, GREY = '#2364aa', '#d1495b', '#8d99ae'


def draw_run(
    path: str | os.PathLike,
    rewards: Sequence[float],
    baselines: dict[str, float],
    ratios: dict[str, float],
    lams: Sequence[float],
    metric: str,
) -> None:
    """Draw the search and the strategy that it found.

    Args:
        path (str | os.PathLike): PNG to write.
        rewards (Sequence[float]): [E], of all episodes.
        baselines (dict[str, float]): Name to reward on the same images, drawn as level lines; may be empty.
        ratios (dict[str, float]): Unit to the share of its channels that stays, [L].
        lams (Sequence[float]): [L], lambda of each unit.
        metric (str): Name of the reward.
    """
    # A Figure of its own, not pyplot's: that keeps state, and a training script may be using it.
    figure = Figure(figsize=(11, 6.5), layout='constrained', facecolor='white')
    search, strategy = figure.subplots(2, 1)
    _draw_search(search, rewards, baselines, metric)
    _draw_strategy(strategy, ratios, lams)
    with atomic_path(path) as scratch:
        figure.savefig(scratch, dpi=110, format='png')


def _draw_search(axes: Axes, rewards: Sequence[float], baselines: dict[str, float], metric: str) -> None:
    episodes = range(1, len(rewards) + 1)
    best = [max(rewards[:episode]) for episode in episodes]
    axes.plot(episodes, rewards, '.', color=GREY, markersize=5, label='episode')
    axes.step(episodes, best, where='post', color=BLUE, linewidth=2, label='best so far')
    for style, (name, value) in zip(('-', '--', ':', '-.'), baselines.items(), strict=False):
        axes.axhline(value, color=ORANGE, linestyle=style, linewidth=1, label=f'{name} ({value:.3f})')
    axes.set(xlabel='episode', ylabel=f'{metric} on the search images', title='Search')
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    axes.grid(alpha=0.3)


def _draw_strategy(axes: Axes, ratios: dict[str, float], lams: Sequence[float]) -> None:
    places = range(len(ratios))
    axes.bar(places, ratios.values(), color=BLUE, alpha=0.75, label='share of channels kept, p')
    axes.plot(places, lams, 'o-', color=ORANGE, markersize=4, linewidth=1, label='weight of the cosine distance, λ')
    axes.set_xticks(places, ratios, rotation=90, fontsize=7)
    axes.set(ylim=(0, 1.05), title='Strategy', xlim=(-0.6, len(ratios) - 0.4))
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    axes.grid(alpha=0.3, axis='y')
