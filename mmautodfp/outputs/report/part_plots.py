"""Pictures of what is kept, group by group and part by part."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .parts import PartCounts, part_of
from .plots import BLUE, GREY, ORANGE, WIDTH, new_figure, styled

ROW = 0.16  # inches, of a group among many


@styled
def parts_figure(parts: Sequence[PartCounts]) -> Figure:
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
def strategy_figure(
    names: Sequence[str],
    ratios: Sequence[float],
    lams: Sequence[float],
    noise: Sequence[float],
    small: Sequence[float],
    by_part: bool = False,
) -> Figure:
    """What is kept of every group, and what the agent saw there (the paper's Fig. 4 and 5).

    Args:
        names (Sequence[str]): [L], the groups.
        ratios (Sequence[float]): [L], share of the channels that stays, p.
        lams (Sequence[float]): [L], lambda of Eq. 16.
        noise (Sequence[float]): [L], C_noise, the share of channels in no cluster; may be empty.
        small (Sequence[float]): [L], P_{B<t}, the share of small left-over constants; may be empty.
        by_part (bool): The names are paths in a whole model; where they are of several parts, each part stands below a
            heading of its own. Defaults to False.
    """
    parts = [part_of(name) if by_part else '' for name in names]
    members = {part: [index for index, other in enumerate(parts) if other == part] for part in dict.fromkeys(parts)}
    headings = list(members) if len(members) > 1 else []
    # From above: the index of a group, or a heading.
    rows = [row for part, indices in members.items() for row in ([part, *indices] if headings else indices)]
    places = {row: place for place, row in enumerate(rows)}
    height, size = (ROW, 7) if headings else (0.2, 8)
    figure = new_figure(WIDTH, 1.2 + height * len(rows))
    panels = figure.subplots(1, 2, sharey=True)
    columns = (
        (ratios, 'channels kept, p', noise, 'in no cluster, C$_{noise}$'),
        (lams, 'λ', small, 'small constants, P$_{B<t}$'),
    )
    for axes, (bars, label, dots, dots_label) in zip(panels, columns, strict=True):
        axes.barh([places[i] for i in range(len(bars))], bars, color=BLUE, alpha=0.8, label=label)
        for number, own in enumerate(members.values() if len(dots) else ()):  # no line from one part to the next
            style = dict(color=ORANGE, markersize=3, linewidth=0.8, label='_' if number else dots_label)
            axes.plot([dots[i] for i in own], [places[i] for i in own], 'o-', **style)
        _finish_panel(axes, [places[heading] for heading in headings])
    shown = lambda row: row if row in headings else names[row].removeprefix(f'{parts[row]}.' if headings else '')
    panels[0].set_yticks(range(len(rows)), map(shown, rows), fontsize=size)
    for heading in headings:
        panels[0].get_yticklabels()[places[heading]].set(fontweight='bold', fontsize=8)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _finish_panel(axes: Axes, headings: Sequence[int]) -> None:
    """Axes, legend, and a line above each heading but the first."""
    axes.set(xlim=(0, 1.04), xticks=(0, 0.5, 1))
    axes.grid(True, axis='x')
    for place in headings[1:]:
        axes.axhline(place - 0.5, color=GREY, linewidth=0.6)
    for text in axes.legend(loc='lower left', bbox_to_anchor=(-0.02, 1.0), fontsize=9).get_texts():
        text.set_parse_math(True)
    if headings:
        axes.tick_params(axis='y', length=0)
