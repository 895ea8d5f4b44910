"""Searches of several detectors, ratios and seeds; ``tools/sweep.py`` runs it."""

import os
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mmautodfp.outputs.latency import measure_latency
from mmautodfp.utils import AutoDFPError, in_one_line
from mmautodfp.utils.fileio import save_json, save_text
from mmautodfp.utils.settings import Count, ShareAboveZero, Whole, checked

from .bench import search_in
from .pareto import draw_pareto
from .tables import markdown_table

METHODS = {
    'uniform, pruned only': 'pruned only',
    'uniform, Neuron Merging': 'Neuron Merging',
    'uniform, same compensation': 'same compensation',
    'allocated, same compensation': 'allocated',
    'AutoDFP': 'AutoDFP',
}

LATENCIES = ('dense', 'uniform', 'AutoDFP')  # of what measure_latency tells, in the table


@checked('a sweep')
def sweep(
    configs: Sequence[str | os.PathLike],
    ratios: Sequence[ShareAboveZero],
    seeds: Sequence[int] = (0,),
    work_dir: str | os.PathLike = 'work_dirs/sweep',
    episodes: Count | None = None,
    latency_repeat: Whole = 50,
    cfg_options: dict[str, Any] | None = None,
) -> list[dict]:
    """Prune each detector to each ratio with each seed; write ``sweep.json``, ``sweep.md`` and ``pareto.png``.

    Finished runs are not repeated, and interrupted ones are resumed. A run that ends in an :class:`AutoDFPError` or a
    RuntimeError is logged and left out, and so is a latency that cannot be measured.

    Args:
        configs (Sequence[str | os.PathLike]): Configs with an ``autodfp`` entry and a checkpoint.
        ratios (Sequence[float]): Values of ``budget.preserve_ratio``, in (0, 1].
        seeds (Sequence[int]): Seeds of the searches. Defaults to (0,).
        work_dir (str | os.PathLike): Holds a folder for each run. Defaults to 'work_dirs/sweep'.
        episodes (int | None): Overrides the configs' number of episodes.
        latency_repeat (int): Measurements of each latency, of which the median counts; 0 for none. Defaults to 50.
        cfg_options (dict | None): Further overrides, dotted keys to values, for all runs.

    Returns:
        list[dict]: A cell for each detector and ratio.

    Raises:
        AutoDFPError: A number is out of range, or runs failed: which, and why.
    """
    if not configs or not ratios or not seeds:
        raise AutoDFPError('a sweep needs at least one config, one ratio and one seed')
    names = [Path(config).stem for config in configs]
    if len(set(names)) < len(names):
        raise AutoDFPError(f'two configs of a sweep have the same name: {", ".join(sorted(names))}')
    root, failures, cells = Path(work_dir), [], []
    for (config, name), ratio in product(zip(configs, names, strict=True), ratios):
        done = []
        for seed in seeds:
            folder = root / name / f'{ratio:g}_seed{seed}'
            options = dict(preserve_ratio=ratio, seed=seed, cfg_options=cfg_options)
            try:
                done.append((folder, search_in(folder, config, episodes, **options)))
            except (AutoDFPError, RuntimeError) as error:  # RuntimeError: out of memory, above all
                failures.append(f'{folder}: {error}')
                print_log(f'{folder} failed: {error}', logger='current')
        if done:
            cells.append(_cell(root, name, ratio, done))
            _write(root, cells)
    if latency_repeat:
        for cell in cells:
            try:
                seconds = measure_latency(root / cell['runs'][0], latency_repeat)
            except Exception as error:  # what is pruned may take no image, and raise anything
                told = f'the latency of {root / cell["runs"][0]} cannot be measured: {in_one_line(error)}'
                print_log(told, logger='current')
                continue
            cell['latency'] = {name: dict(module=value) for name, value in seconds.items()}
            _write(root, cells)
    if cells:
        print_log(f'in {root}: sweep.md (the table), sweep.json, pareto.png', logger='current')
    if failures:
        some = f'{len(failures)} runs of the sweep failed, the others are done'
        raise AutoDFPError(f'{some if cells else "no run of the sweep succeeded"}; {"; ".join(failures)}')
    return cells


def _cell(root: Path, name: str, ratio: float, done: Sequence[tuple[Path, dict]]) -> dict[str, Any]:
    """A row of ``sweep.json`` from the folders and summaries of the seeds that are done."""
    summaries = [summary for _, summary in done]
    rows: dict[str, list[dict]] = {}
    for summary in summaries:
        for row in summary['results']:
            rows.setdefault(row['name'], []).append(row)
    return dict(
        config=name,
        model=summaries[0]['model'],
        metric=summaries[0]['reported_metric'],
        preserve_ratio=ratio,
        seeds=[summary['seed'] for summary in summaries],
        episodes=summaries[0]['episodes'],
        search_images=summaries[0]['search_images'],
        held_out_images=summaries[0]['held_out_images'],
        runs=[str(folder.relative_to(root)) for folder, _ in done],
        held_out={key: [row['held_out_metric'] for row in found] for key, found in rows.items()},
        search={key: [row['search_metric'] for row in found] for key, found in rows.items()},
        params={key: statistics.mean(row['module_params']['ratio'] for row in found) for key, found in rows.items()},
        flops={key: statistics.mean(row['module_flops']['ratio'] for row in found) for key, found in rows.items()},
    )


def _write(root: Path, cells: Sequence[dict]) -> None:
    save_json(list(cells), root / 'sweep.json')
    save_text('\n'.join(markdown(cells)) + '\n', root / 'sweep.md')
    draw_pareto(root / 'pareto.png', cells, _methods(cells))


def _methods(cells: Sequence[dict]) -> dict[str, str]:
    """Those of :data:`METHODS` that were measured."""
    return {name: title for name, title in METHODS.items() if any(name in cell['held_out'] for cell in cells)}


def markdown(cells: Sequence[dict]) -> list[str]:
    """The table of a sweep; held-out metrics, the best of the pruned ones in bold."""
    methods = _methods(cells)
    rows = []
    for cell in cells:
        dense, *means = (_mean(cell['held_out'].get(name)) for name in ('dense', *methods))
        best = max((mean for mean in means if mean is not None), default=None)
        texts = [_text(dense), *(_text(mean, best) for mean in means)]
        latency = cell.get('latency', {})
        times = ' / '.join(f'{latency[key]["module"] * 1000:.1f}' for key in LATENCIES if key in latency)
        left = [f'{cell[cost]["AutoDFP"]:.0%}' for cost in ('params', 'flops')]
        rows.append(
            [f'{cell["model"]} ({cell["metric"]})', f'{cell["preserve_ratio"]:.0%}', *texts, *left, times or '-']
        )
    head = ['detector', 'ratio', 'dense', *methods.values(), 'parameters', 'FLOPs', 'latency, ms']
    return markdown_table(head, rows)


def _text(metric: float | None, best: float | None = None) -> str:
    if metric is None:
        return '-'
    return f'**{metric:.3f}**' if metric == best else f'{metric:.3f}'


def _mean(values: Sequence[float | None] | None) -> float | None:
    return None if not values or None in values else statistics.mean(values)
