"""``frontier.html``: the points of a frontier as pictures and as a table."""

import os
import shlex
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import mmautodfp
from mmautodfp.costs import format_quantity
from mmautodfp.frontier import Frontier
from mmautodfp.outputs.config import kept_as
from mmautodfp.utils.fileio import save_text
from mmautodfp.utils.timing import machine_line

from .markup import templates
from .plots import BLUE, ORANGE, new_panels, save_png, styled, svg_uri

HEADS = dict(params='parameters', flops='FLOPs', latency='latency', memory='memory')


def write_frontier(frontier: Frontier, work_dir: str | os.PathLike) -> Path:
    """Write ``frontier.html`` and ``frontier.png`` beside the ``frontier.json`` of a work dir.

    Args:
        frontier (Frontier): With one point or more, and what :func:`mmautodfp.runs.frontier` tells about it.
        work_dir (str | os.PathLike): Where to.

    Returns:
        Path: The page.
    """
    work_dir, about = Path(work_dir), frontier.about
    figure = frontier_figure(frontier)
    save_png(figure, work_dir / 'frontier.png')
    config, pruned = work_dir / kept_as(about['config']), work_dir.with_name(f'{work_dir.name}_pruned')
    command = ['python', '-m', 'mmautodfp', 'prune', str(config), '--from-frontier', str(work_dir / 'frontier.json')]
    trust = ['--trust-checkpoint'] if about.get('trust_checkpoint') else []
    page = templates().get_template('frontier.html.jinja')
    text = page.render(
        title=f'{about["model"]}, from dense to {frontier.points[-1].cost("params")["ratio"]:.0%} of the parameters',
        about=about,
        version=mmautodfp.__version__,
        plot=svg_uri(figure),
        points=frontier.points,
        dominated=frontier.dominated(),
        costs=frontier.costs(),
        heads=HEADS,
        amount=format_quantity,
        held_out=frontier.points[0].held_out is not None,
        machine=machine_line(frontier.identity['machine']),
        command=shlex.join([*command, '--min-metric', '97%', '--work-dir', str(pruned), *trust]),
    )
    save_text(text, work_dir / 'frontier.html')
    return work_dir / 'frontier.html'


@styled
def frontier_figure(frontier: Frontier) -> Figure:
    """Metric over the share of each cost that is left, dominated points hollow.

    Args:
        frontier (Frontier): With one point or more.
    """
    names = frontier.costs()
    figure, panels = new_panels(len(names), 2.6, sharey=True)
    for axes, name in zip(panels, names, strict=True):
        _draw(axes, frontier, name)
    for axes in panels[::2]:
        axes.set_ylabel(frontier.about.get('metric', 'metric'))
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=2, fontsize=9)
    return figure


def _draw(axes: Axes, frontier: Frontier, name: str) -> None:
    points, hollow = frontier.points, frontier.dominated()
    shares = [point.cost(name)['ratio'] for point in points]
    curves = {'images of the choice': (BLUE, [point.metric for point in points])}
    if points[0].held_out is not None:
        curves['held-out images'] = (ORANGE, [point.held_out for point in points])
    for label, (colour, values) in curves.items():
        # In the order of latencies, chance would draw a zigzag.
        axes.plot(shares, values, color=colour, linewidth=0 if name == 'latency' else 1, label=label)
        faces = ['none' if dominated else colour for dominated in hollow]
        axes.scatter(shares, values, s=16, facecolors=faces, edgecolors=colour, zorder=2)
    axes.set_xlabel(f'{HEADS[name]} kept')
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(True)
