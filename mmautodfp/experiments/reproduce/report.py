"""Rows as JSON, as Markdown and as the curves of figure 6."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmautodfp.outputs.report.plots import save_png
from mmautodfp.utils.fileio import save_json, save_text
from mmautodfp.utils.timing import describe_machine

from ..pareto import Panel, panels_figure
from ..tables import markdown_table
from .paper import ALL_TABLES, METHODS, NETWORKS

TITLES = {
    '1': 'Table 1: MobileNet-V2, what searching and compensating contribute',
    '2': 'Table 2: CIFAR-10',
    '3': 'Table 3: CIFAR-10, parameters and FLOPs',
    '4': 'Table 4: ImageNet',
    'fig6': 'Figure 6: accuracy against preserved parameters (the paper draws curves, without figures)',
    '6': 'Table 6: hours for 3,000 episodes',
    '7': 'Table 7: inference of one image',
}
COLUMNS = ('network', 'preserved', 'method', 'paper', 'ours', 'parameters', 'FLOPs', 'images', 'episodes')
STYLES = {
    METHODS[method]: dict(color=colour, marker=marker)
    for method, colour, marker in (('prune', '#8d99ae', 's'), ('merging', '#d1495b', '^'), ('autodfp', '#2364aa', 'o'))
}


def write_report(rows: Sequence[dict], out: Path, settings: dict) -> None:
    """Write ``reproduce.json``, ``reproduce.md`` and, where a curve has points, ``pareto.png``.

    Args:
        rows (Sequence[dict]): What :func:`.run.reproduce` gave.
        out (Path): Folder.
        settings (dict): JSON-able facts to keep beside the rows.
    """
    save_json(dict(settings=settings, machine=describe_machine(), rows=list(rows)), out / 'reproduce.json')
    save_text(markdown(rows), out / 'reproduce.md')
    points = [row for row in rows if row['table'] == 'fig6' and row['ours'] is not None]
    if points:
        _draw_figure_6(points, out / 'pareto.png')


def markdown(rows: Sequence[dict]) -> str:
    """Tables of the paper's numbers and ours, and below each what could not be measured."""
    parts = []
    for table in ALL_TABLES:
        own = [row for row in rows if row['table'] == table]
        if not own:
            continue
        parts += [f'## {TITLES[table]}', '']
        measured = [row for row in own if row['reason'] is None]
        if measured:
            parts += [*markdown_table(COLUMNS, map(_cells, measured)), '']
        parts += _absent([row for row in own if row['reason'] is not None])
    return '\n'.join(parts).rstrip() + '\n'


def compact(results: Sequence[dict]) -> str:
    """Tables 1 and 2 of several results in one: a line for each network and share, the paper's numbers in brackets.

    Args:
        results (Sequence[dict]): Contents of several ``reproduce.json``.
    """
    head = ['network', 'kept', *(METHODS[method] for method in METHODS if method != 'dense'), 'reward', 'episodes']
    lines = [line for result in results for line in _compact_lines(result)]
    used = [any(line[place] for line in lines) for place in range(len(head))]
    head, *rows = ([cell for cell, keep in zip(line, used, strict=True) if keep] for line in (head, *lines))
    return '\n'.join(markdown_table(head, rows))


def _compact_lines(result: dict) -> list[list[str]]:
    lines = []
    own = [row for row in result['rows'] if row['table'] in '12' and row['reason'] is None]
    for network, ratio in dict.fromkeys((row['network'], row['preserve_ratio']) for row in own):
        found = {row['method']: row for row in own if (row['network'], row['preserve_ratio']) == (network, ratio)}
        if 'dense' in found:  # nothing is pruned, and nothing compensated
            found = {'prune': found['dense']}
        figures = {method: f'{row["ours"]:.2f} ({row["paper"]:.2f})' for method, row in found.items()}
        searched = next((row for row in found.values() if row['episodes']), None)
        how = ['', ''] if searched is None else [searched['reward'], f'{searched["episodes"]:,}']
        cells = [figures.get(method, '') for method in METHODS if method != 'dense']
        lines.append([NETWORKS[network], f'{ratio:.0%}', *cells, *how])
    return lines


def _cells(row: dict) -> list[str]:
    paper = '-' if row['paper'] is None else f'{row["paper"]:.2f} {row["unit"]}'
    flops = '-' if row['ours_flops_ratio'] is None else f'{row["ours_flops_ratio"]:.1%}'
    if row['flops_ratio'] is not None:
        flops += f' (paper {row["flops_ratio"]:.1%})'
    return [
        NETWORKS[row['network']],
        f'{row["preserve_ratio"]:.1%}',
        METHODS[row['method']],
        paper,
        f'{row["ours"]:.2f} {row["unit"]}',
        '-' if row['params_ratio'] is None else f'{row["params_ratio"]:.1%}',
        flops,
        '-' if row['images'] is None else f'{row["images"]:,}',
        '-' if row['episodes'] is None else f'{row["episodes"]:,}',
    ]


def _absent(rows: Sequence[dict]) -> list[str]:
    """A line for each network and reason why rows are absent."""
    groups = Counter((row['network'], row['reason']) for row in rows)
    lines = [f'- not measured: {count} of {NETWORKS[network]}: {reason}' for (network, reason), count in groups.items()]
    return [*lines, ''] if lines else []


def _draw_figure_6(rows: Sequence[dict], path: Path) -> None:
    """Draw accuracy over the preserved share of parameters, a panel for each network."""
    curves: dict[str, dict[str, list]] = {row['network']: {} for row in rows}
    for row in rows:
        curves[row['network']].setdefault(METHODS[row['method']], []).append((row['params_ratio'], row['ours']))
    panels = [
        Panel(NETWORKS[network], 'preserved parameters', 'top-1, %', own, ylim=(0, 100))
        for network, own in curves.items()
    ]
    save_png(panels_figure(panels, STYLES), path)
