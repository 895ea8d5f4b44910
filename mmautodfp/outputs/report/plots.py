"""Pictures of a run."""

import base64
import io
import os
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import accumulate, cycle
from typing import Any

import mmcv
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from mmautodfp.utils.fileio import atomic_path

from .evidence import ChannelMap
from .pictures import Finding, Picture

BLUE, ORANGE, GREY = '#2f7fc9', '#d9573f', '#8d99ae'
INK = '#1b1f24'  # of all that is no data; svg_uri() puts the page's own in its place
CLUSTERS = (BLUE, '#e08a2b', '#3fa36b', ORANGE, '#8f6bc8', '#a0715e', '#d873b0', '#b3a72f', '#30aebf', '#5c6bd6')
STYLE = {
    **dict.fromkeys(('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'), INK),
    **{'grid.color': INK, 'grid.alpha': 0.15, 'axes.spines.top': False, 'axes.spines.right': False},
    **{'text.parse_math': False, 'font.size': 10, 'legend.frameon': False, 'axes.titlesize': 11},
}
DARK_INK = '#dfe4ea'
WIDTH = 5.6  # inches: a phone shows the words at about 9 pixels


def save_png(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as a PNG on white."""
    with atomic_path(path) as scratch, rc_context(STYLE):
        figure.savefig(scratch, dpi=110, format='png', facecolor='white')


def svg_uri(figure: Figure) -> str:
    """A figure as the address of an SVG without background, whose lines and words are light on a dark screen."""
    file = io.StringIO()
    with rc_context(STYLE | {'svg.hashsalt': 'mmautodfp'}):
        figure.savefig(file, format='svg', transparent=True, metadata=dict(Date=None))
    theme = f':root{{--ink:{INK}}}@media(prefers-color-scheme:dark){{:root{{--ink:{DARK_INK}}}}}'
    head, tag, rest = file.getvalue().replace(INK, 'var(--ink)').partition('<defs>')
    content = f'{head}<style>{theme}</style>{tag}{rest}'
    return f'data:image/svg+xml;base64,{base64.b64encode(content.encode()).decode()}'


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a function that draws: it draws in the report's style and leaves matplotlib's settings as they were."""

    @wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    # Not with pyplot: it keeps state, and a training script may be using it.
    return Figure(figsize=(width, height), layout='constrained')


def new_panels(count: int, height: float, **settings: Any) -> tuple[Figure, list[Axes]]:
    """A figure of panels in two columns, each of this height in inches, with room for a legend below.

    Args:
        count (int): How many.
        height (float): Of each.
        **settings: Further arguments of ``Figure.subplots``.
    """
    rows = -(-count // 2)
    figure = new_figure(WIDTH, height * rows + 0.3)
    panels = list(figure.subplots(rows, 2, squeeze=False, **settings).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


@styled
def search_figure(rewards: Sequence[float], baselines: dict[str, float], metric: str) -> Figure:
    """Reward of every episode and the best so far (the paper's Fig. 7).

    Args:
        rewards (Sequence[float]): [E], of all episodes.
        baselines (dict[str, float]): Name to reward on the same images, drawn as level lines; may be empty.
        metric (str): Name of the reward.
    """
    figure = new_figure(WIDTH, 4)
    axes = figure.subplots()
    episodes = range(1, len(rewards) + 1)
    axes.plot(episodes, rewards, '.', color=GREY, markersize=5, label='episode')
    axes.step(episodes, list(accumulate(rewards, max)), where='post', color=BLUE, linewidth=2, label='best so far')
    for style, (name, value) in zip(cycle(('-', '--', ':', '-.', (0, (8, 3)))), baselines.items(), strict=False):
        axes.axhline(value, color=ORANGE, linestyle=style, linewidth=1, label=f'{name} ({value:.3f})')
    axes.set(xlabel='episode', ylabel=f'{metric} on the search images')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True)
    figure.legend(loc='outside lower center', ncols=2, fontsize=9)
    return figure


@styled
def channels_figure(maps: Sequence[ChannelMap]) -> Figure:
    """Channels as t-SNE places them, coloured by cluster; lines lead from pruned ones to their stand-ins (Fig. 2).

    Args:
        maps (Sequence[ChannelMap]): Layers with ``places``, one to four.
    """
    figure, panels = new_panels(len(maps), 2.9)
    for axes, found in zip(panels, maps, strict=True):
        _draw_channels(axes, found)
    marks = dict(marker='o', linestyle='', color=GREY)
    handles = [
        Line2D([], [], label='kept', markersize=7, **marks),
        Line2D([], [], label='pruned', markersize=5, markerfacecolor='none', **marks),
        Line2D([], [], color=GREY, linewidth=0.8, label='handed on to'),
        Line2D([], [], marker='s', linestyle='', color=GREY, alpha=0.5, label='in no cluster'),
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=4, fontsize=9, columnspacing=1, handletextpad=0.3)
    return figure


def _draw_channels(axes: Axes, found: ChannelMap) -> None:
    places, kept = np.asarray(found.places), set(found.kept)
    colours = [GREY if label < 0 else CLUSTERS[label % len(CLUSTERS)] for label in found.labels]
    for channel, partner in enumerate(found.partner):
        if partner not in (-1, channel):
            axes.plot(*places[[channel, partner]].T, color=colours[channel], linewidth=0.5, alpha=0.45, zorder=1)
    size = 60 / len(places) ** 0.25
    for is_kept in (True, False):
        chosen = [channel for channel in range(len(places)) if (channel in kept) is is_kept]
        edges = [colours[channel] for channel in chosen]
        faces = edges if is_kept else 'none'
        axes.scatter(*places[chosen].T, s=size if is_kept else size / 2, facecolors=faces, edgecolors=edges, zorder=2)
    clusters = len(set(found.labels) - {-1})
    counts = f'{len(kept)} of {len(places)} kept, {clusters} cluster{"" if clusters == 1 else "s"}'
    axes.set_title(f'{found.group}\n{counts}', fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, alpha=0.2)


@styled
def pictures_figure(pictures: Sequence[Picture]) -> Figure:
    """Images with what the dense and the pruned model find in them: boxes side by side, or labels below.

    Args:
        pictures (Sequence[Picture]): One or more, all of a detector or all of a classifier.
    """
    if pictures[0].truth is not None:
        return _objects_figure(pictures)
    height = sum(WIDTH / 2 * picture.height / picture.width + 0.3 for picture in pictures)
    figure = new_figure(WIDTH, height)
    for row, picture in zip(figure.subplots(len(pictures), 2, squeeze=False), pictures, strict=True):
        for axes, side in zip(row, ('dense', 'pruned'), strict=True):
            axes.imshow(_decode(picture))
            axes.set_title(f'{side}: {picture.name}', fontsize=8)
            axes.axis('off')
            for finding in getattr(picture, side):
                _draw_box(axes, finding, picture)
    return figure


def _objects_figure(pictures: Sequence[Picture]) -> Figure:
    rows = (len(pictures) + 3) // 4
    figure = new_figure(WIDTH, 1.9 * rows)
    panels = list(figure.subplots(rows, 4, squeeze=False).flat)
    for axes in panels:
        axes.axis('off')
    for axes, picture in zip(panels, pictures, strict=False):
        axes.imshow(_decode(picture))
        names = [finding.label for side in (picture.dense, picture.pruned) for finding in side]
        axes.set_title(f'{picture.truth}: dense {names[0]},\npruned {names[1]}', fontsize=8)
    return figure


def _draw_box(axes: Axes, finding: Finding, picture: Picture) -> None:
    x1, y1, x2, y2 = np.multiply(finding.box, [picture.width, picture.height] * 2)
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor='#ffd23f', linewidth=1.2))
    label = axes.text(
        x1, max(y1, 2), f'{finding.label[:24]} {finding.score:.2f}', fontsize=7, color='#ffd23f', va='bottom'
    )
    label.set_path_effects([withStroke(linewidth=1.8, foreground='black')])


def _decode(picture: Picture) -> np.ndarray:
    return mmcv.imfrombytes(base64.b64decode(picture.jpeg), channel_order='rgb')
