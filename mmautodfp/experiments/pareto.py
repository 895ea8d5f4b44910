"""Pictures of what is kept against what it costs, with a panel for each network."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmautodfp.outputs.report.plots import BLUE, GREY, ORANGE, new_figure, save_png, styled


@dataclass(frozen=True)
class Panel:
    """The curves of one network.

    Attributes:
        title (str): Name of the network.
        xlabel (str): Name of what is kept.
        ylabel (str): Name of the metric.
        curves (dict[str, list[tuple[float, float]]]): Method to its points; one without points is left out.
        ylim (tuple[float, float] | None): Range of the metric. Defaults to None: that of the points.
        dense (float | None): Metric of the dense network, drawn as a horizontal line. Defaults to None: not drawn.
    """

    title: str
    xlabel: str
    ylabel: str
    curves: dict[str, list[tuple[float, float]]]
    ylim: tuple[float, float] | None = None
    dense: float | None = None


@styled
def panels_figure(panels: Sequence[Panel], styles: dict[str, dict[str, Any]]) -> Figure:
    """Curves side by side, with one legend on the right.

    Args:
        panels (Sequence[Panel]): One or more, from left to right.
        styles (dict[str, dict]): Method to arguments of ``Axes.plot`` for its curve, in the order of the legend.
    """
    figure = new_figure(4.2 * len(panels) + 1.5, 3.6)
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(places, panels, strict=True):
        _draw_panel(axes, panel, styles)
    named = [axes.get_legend_handles_labels() for axes in places]
    found = {label: handle for handles, labels in named for handle, label in zip(handles, labels, strict=True)}
    order = [label for label in (*styles, 'dense') if label in found]  # a panel may lack some
    figure.legend([found[label] for label in order], order, loc='outside right center')
    return figure


def _draw_panel(axes: Axes, panel: Panel, styles: dict[str, dict[str, Any]]) -> None:
    for method, style in styles.items():
        points = sorted(panel.curves.get(method, []))
        if points:
            axes.plot(*zip(*points, strict=True), label=method, **style)
    if panel.dense is not None:
        axes.axhline(panel.dense, color='black', linewidth=0.8, label='dense')
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    if panel.ylim:
        axes.set(ylim=panel.ylim)
    axes.grid(True)


def draw_pareto(path: str | os.PathLike, cells: Sequence[dict], methods: dict[str, str]) -> None:
    """Draw held-out metric over preserved parameters, a panel a detector (the paper's Fig. 6).

    Args:
        path (str | os.PathLike): PNG to write.
        cells (Sequence[dict]): Of a sweep, see :func:`mmautodfp.experiments.sweep.sweep`.
        methods (dict[str, str]): Name in the cells to name in the legend.
    """
    configs = list(dict.fromkeys(cell['config'] for cell in cells))
    panels = [_panel([cell for cell in cells if cell['config'] == config], methods) for config in configs]
    *others, last = methods.values()
    looks = dict(zip(others, cycle(((GREY, ':'), (GREY, '--'), (ORANGE, '-'), (ORANGE, '--'))), strict=False))
    looks[last] = (BLUE, '-')
    styles = {
        label: dict(color=colour, linestyle=line, marker='o', markersize=4) for label, (colour, line) in looks.items()
    }
    save_png(panels_figure(panels, styles), path)


def _panel(cells: Sequence[dict], methods: dict[str, str]) -> Panel:
    curves = {}
    for name, label in methods.items():
        judged = [cell for cell in cells if name in cell['held_out'] and None not in cell['held_out'][name]]
        # Over what is really kept, which may be less than the budget allows.
        curves[label] = [(cell['params'][name], mean(cell['held_out'][name])) for cell in judged]
    dense = [value for cell in cells for value in cell['held_out'].get('dense', []) if value is not None]
    return Panel(
        title=cells[0]['model'],
        xlabel='share of parameters kept',
        ylabel=f'held-out {cells[0]["metric"]}',
        curves=curves,
        dense=mean(dense) if dense else None,
    )
