"""Pictures of a detector that was pruned as a whole, part by part."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .parts import part_of
from .plots import BLUE, GREY, ORANGE, WIDTH, new_figure, strategy_figure, strategy_legend, styled

if TYPE_CHECKING:
    from .parts import PartCounts

ROW = 0.16  # inches, of a group among many


@styled
def parts_figure(parts: Sequence['PartCounts']) -> Figure:
    """FLOPs and parameters of each part, dense and pruned.

    Args:
        parts (Sequence[PartCounts]): One or more.
    """
    figure = new_figure(WIDTH, 1.0 + 0.36 * len(parts))
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_parts(left, [part.flops for part in parts], 'FLOPs')
    _draw_parts(right, [part.params for part in parts], 'parameters')
    left.set_yticks(range(len(parts)), [part.name.replace('.', '.\n') for part in parts], fontsize=8)
    left.set_ylim(len(parts) - 0.4, -0.6)
    return figure


def _draw_parts(axes: Axes, counts: Sequence[Sequence[int]], label: str) -> None:
    most = max(dense for dense, _ in counts)
    unit, word = next(((size, word) for size, word in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')) if most >= size), (1, ''))
    places = range(len(counts))
    axes.barh(places, [dense / unit for dense, _ in counts], color=GREY, alpha=0.35)
    axes.barh(places, [pruned / unit for _, pruned in counts], color=BLUE, alpha=0.85, height=0.5)
    for place, (dense, pruned) in enumerate(counts):
        if dense:
            axes.text(dense / unit, place, f' {pruned / dense:.0%}', va='center', fontsize=8)
    axes.set(xlabel=f'{label}, {word}' if word else label, xlim=(0, 1.18 * most / unit or 1))
    axes.grid(True, axis='x')


@styled
def grouped_strategy_figure(
    names: Sequence[str], ratios: Sequence[float], lams: Sequence[float], noise: Sequence[float], small: Sequence[float]
) -> Figure:
    """What :func:`.plots.strategy_figure` shows, of a whole model: each part below a heading of its own.

    Args:
        names (Sequence[str]): [L], the groups, by their paths in the model.
        ratios (Sequence[float]): [L], share of the channels that stays, p.
        lams (Sequence[float]): [L], lambda of Eq. 16.
        noise (Sequence[float]): [L], C_noise; may be empty.
        small (Sequence[float]): [L], P_{B<t}; may be empty.
    """
    parts = [part_of(name) for name in names]
    kinds = list(dict.fromkeys(parts))
    if len(kinds) < 2:
        return strategy_figure(names, ratios, lams, noise, small)
    places, headings, row = {}, {}, 0
    for kind in kinds:
        headings[kind] = row
        for index in (index for index, part in enumerate(parts) if part == kind):
            row += 1
            places[index] = row
        row += 1
    figure = new_figure(WIDTH, 1.2 + ROW * row)
    panels = figure.subplots(1, 2, sharey=True)
    columns = (
        (ratios, 'channels kept, p', noise, 'in no cluster, C$_{noise}$'),
        (lams, 'λ', small, 'small constants, P$_{B<t}$'),
    )
    for axes, (bars, label, dots, dots_label) in zip(panels, columns, strict=True):
        axes.barh([places[i] for i in range(len(bars))], bars, color=BLUE, alpha=0.8, label=label)
        for number, kind in enumerate(kinds if len(dots) else ()):  # no line from one part to the next
            own = [index for index, part in enumerate(parts) if part == kind]
            style = dict(color=ORANGE, markersize=3, linewidth=0.8, label='_' if number else dots_label)
            axes.plot([dots[i] for i in own], [places[i] for i in own], 'o-', **style)
        axes.set(xlim=(0, 1.04), xticks=(0, 0.5, 1))
        axes.grid(True, axis='x')
        for heading in list(headings.values())[1:]:
            axes.axhline(heading - 0.5, color=GREY, linewidth=0.6)
        strategy_legend(axes)
    labels = {places[i]: name.removeprefix(f'{parts[i]}.') for i, name in enumerate(names)}
    labels |= {row: kind for kind, row in headings.items()}
    panels[0].set_yticks(sorted(labels), [labels[place] for place in sorted(labels)], fontsize=7)
    for place, text in zip(sorted(labels), panels[0].get_yticklabels(), strict=True):
        if place in headings.values():
            text.set_fontweight('bold')
            text.set_fontsize(8)
    for axes in panels:
        axes.tick_params(axis='y', length=0)
    panels[0].set_ylim(row - 0.4, -0.6)
    return figure
