"""Markdown tables of measured figures, from the JSON files that hold them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmautodfp.utils import AutoDFPError

from .pareto import draw_pareto

NAMES = {
    'faster_rcnn': 'Faster R-CNN, demo',
    'retinanet': 'RetinaNet, demo',
    'fcos': 'FCOS, demo',
    'mask_rcnn': 'Mask R-CNN, demo',
    'resnet56': 'ResNet-56, CIFAR-10',
    'vgg16': 'VGG-16, CIFAR-10',
    'mobilenet_v1': 'MobileNet-V1, CIFAR-10',
    'mobilenet_v2': 'MobileNet-V2, CIFAR-10',
}


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table: its head [C] and its rows [R, C]."""
    first, *others = (f'| {" | ".join(cells)} |' for cells in (head, *rows))
    return [first, '|' + '---|' * len(head), *others]


def measured_shares(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All shares that were measured in any of the rows, the largest first."""
    return sorted({share for figures in rows for share in figures}, key=float, reverse=True)


def metric_cell(row: Mapping[str, Any] | None, dense: float) -> str:
    """A row's metric, with its deviation if it has one and its share of the dense metric; '' if none was measured."""
    if not row or 'metric' not in row:
        return ''
    spread = f' ± {row["deviation"]:.3f}' if row.get('deviation') is not None else ''
    share = f' ({row["metric"] / dense:.1%})' if dense > 0 else ''  # of an untrained one
    return f'{row["metric"]:.3f}{spread}{share}'


def variant_table(results: Mapping[str, Mapping[str, Any]], variant: str) -> str:
    """The metrics that a variant of the compensation keeps, a row for each model.

    Args:
        results (Mapping): By model, one of :data:`NAMES`, what :func:`mmautodfp.experiments.ablation.ablate` gave.
        variant (str): One of :data:`mmautodfp.experiments.ablation.VARIANTS`.
    """
    measured = {name: result['variants'].get(variant, {}) for name, result in results.items()}
    ratios = measured_shares(measured.values())
    rows = []
    for name, result in results.items():
        if not measured[name]:
            continue
        cells = [metric_cell(measured[name].get(ratio), result['dense']) for ratio in ratios]
        kind = f'{result["metric"]}, shares of {result["shares_of"]}'
        rows.append([f'{NAMES[name]} ({kind})', f'{result["dense"]:.3f}', *cells])
    return '\n'.join(markdown_table(['', 'dense', *(f'{float(ratio):.0%}' for ratio in ratios)], rows))


def ablation_table(result: Mapping[str, Any]) -> str:
    """All measured variants of one model."""
    ratios = measured_shares(result['variants'].values())
    rows = [
        [name, *(metric_cell(figures.get(ratio), result['dense']) for ratio in ratios)]
        for name, figures in result['variants'].items()
    ]
    return '\n'.join(markdown_table(['', *(f'{float(ratio):.0%}' for ratio in ratios)], rows))


def correlation_table(result: Mapping[str, Any]) -> str:
    """How well rewards without data rank plans, from :func:`mmautodfp.experiments.rank_plans.rank_plans`."""
    rows = [[name, f'{rho["all"]:.2f}', f'{rho["better_half"]:.2f}'] for name, rho in result['correlation'].items()]
    return '\n'.join(markdown_table(['reward', f'all {result["plans"]} plans', 'better half'], rows))


def draw_without_search(
    path: str | os.PathLike, results: Mapping[str, Mapping[str, Any]], sweep: Sequence[Mapping[str, Any]]
) -> None:
    """Draw what detectors keep without a search and with uniform pruning, a panel for each detector.

    Args:
        path (str | os.PathLike): PNG to write.
        results (Mapping): As of :func:`variant_table`.
        sweep (Sequence[Mapping]): Cells of :func:`mmautodfp.experiments.sweep.sweep`, of the demos' configs.

    Raises:
        AutoDFPError: The sweep has a config of which there are no figures without a search.
    """
    cells = list(sweep)
    for first in {cell['config']: cell for cell in sweep}.values():
        name = first['config'].removesuffix('_digits_autodfp')
        figures = results.get(name, {}).get('variants', {}).get('full, allocated plan')
        if figures is None:
            raise AutoDFPError(
                f'{first["config"]} of the sweep was to be drawn, but there are no figures of allocated plans of '
                f'{name}; measure them with tools/ablation.py, or take it out of the sweep'
            )
        same = {key: first[key] for key in ('config', 'model', 'metric')}
        cells += [
            same | dict(params=dict(ours=f['params']), held_out=dict(ours=[f['metric']])) for f in figures.values()
        ]
    methods = {'uniform, pruned only': 'uniform, pruned only', 'uniform, Neuron Merging': 'uniform, Neuron Merging'}
    draw_pareto(path, cells, methods | dict(ours='no data, no search'))
