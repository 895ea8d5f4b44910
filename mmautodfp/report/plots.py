"""Pictures of a run."""

import os
from collections.abc import Sequence
from statistics import mean

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


def draw_pareto(path: str | os.PathLike, cells: Sequence[dict], methods: dict[str, str]) -> None:
    """Draw held-out metric over preserved parameters, a panel a detector (the paper's Fig. 6).

    Args:
        path (str | os.PathLike): PNG to write.
        cells (Sequence[dict]): Of a sweep, see :func:`mmautodfp.sweep.sweep`.
        methods (dict[str, str]): Name in the cells to name in the legend.
    """
    configs = list(dict.fromkeys(cell['config'] for cell in cells))
    figure = Figure(figsize=(4.2 * len(configs) + 1.5, 3.6), layout='constrained', facecolor='white')
    panels = figure.subplots(1, len(configs), squeeze=False)[0]
    for axes, config in zip(panels, configs, strict=True):
        own = sorted((cell for cell in cells if cell['config'] == config), key=lambda cell: cell['preserve_ratio'])
        _draw_methods(axes, own, methods)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right center', frameon=False)
    with atomic_path(path) as scratch:
        figure.savefig(scratch, dpi=110, format='png')


def _draw_methods(axes: Axes, cells: Sequence[dict], methods: dict[str, str]) -> None:
    styles = ((GREY, ':'), (GREY, '--'), (ORANGE, '-'), (BLUE, '-'))
    for (name, label), (colour, style) in zip(methods.items(), styles, strict=False):
        known = [cell for cell in cells if None not in cell['held_out'].get(name, [None])]
        # By what is really kept, which may be less than the budget allows.
        points = sorted((cell['params'][name], mean(cell['held_out'][name])) for cell in known)
        if points:
            axes.plot(*zip(*points, strict=True), style, marker='o', markersize=4, color=colour, label=label)
    dense = [value for cell in cells for value in cell['held_out'].get('dense', []) if value is not None]
    if dense:
        axes.axhline(mean(dense), color='black', linewidth=0.8, label='dense')
    axes.set(title=cells[0]['model'], xlabel='share of parameters kept', ylabel=f'held-out {cells[0]["metric"]}')
    axes.grid(alpha=0.3)
