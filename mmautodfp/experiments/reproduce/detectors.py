"""Table 5: detectors, pruned without a search and by searches of several seeds; the paper has its first share only."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

from mmautodfp.hooks import read_settings
from mmautodfp.runs import load_search_config, require_data
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.configs import type_name
from mmautodfp.utils.fileio import earlier_result, save_json, save_text
from mmautodfp.utils.registry import REWARDS, build
from mmautodfp.utils.settings import Count, Share, settings

from ..bench import deviation, require_judged, search_in, to_report
from ..shares import OURS, UNSEARCHED, WHOLE_SHARES, budget_of, measure_shares
from ..tables import markdown_table, measured_shares, metric_cell
from .bench import locate

DETECTORS = ('faster_rcnn', 'retinanet', 'mask_rcnn', 'fcos')
SHARES = dict(backbone=(0.9, 0.7, 0.5, 0.35), model=WHOLE_SHARES)
# COCO mAP in percent, dense and at 90 % of the backbone's parameters.
PAPER = dict(FasterRCNN=(36.9, 35.4), RetinaNet=(36.3, 35.2), MaskRCNN=(37.8, 35.9), FCOS=(39.1, 37.1))
OF = dict(backbone="the backbone's parameters", model="the whole detector's FLOPs")
AUTODFP, SEARCHED = "AutoDFP, the paper's compensation", 'ours, searched'
METHODS = (*UNSEARCHED, AUTODFP, SEARCHED)


@settings('table 5')
class DetectorSettings:
    """What to measure for table 5.

    Attributes:
        out (Path): Folder of the results and of the searches. What is there already is not measured again.
        configs (Sequence[Path]): Configs with an ``autodfp`` entry whose rewards have data.
        checkpoints (Path | None): Folder of the weights. Defaults to None: the configs' ``load_from``.
        episodes (int | None): Of each search. Defaults to None: no searched rows.
        seeds (int): Searches of each kind, with the seeds 0, 1, ... Defaults to 5.
        shares (Mapping[str, Sequence[float]]): By what is pruned, 'backbone' or 'model', see :func:`.budget_of`.
            Defaults to 0.9, 0.7, 0.5 and 0.35 of the backbone's parameters, 0.7, 0.5 and 0.35 of the whole FLOPs.
        cfg_options (dict | None): Further overrides of the configs, dotted keys to values.

    Raises:
        AutoDFPError: A setting is of another type or out of its range.
    """

    out: Path
    configs: Sequence[Path]
    checkpoints: Path | None = None
    episodes: Count | None = None
    seeds: Count = 5
    shares: Mapping[Literal['backbone', 'model'], Sequence[Share]] = field(default_factory=lambda: SHARES)
    cfg_options: dict[str, Any] | None = None


def reproduce_detectors(settings: DetectorSettings, tell: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Measure table 5, detector by detector, and write ``table5.json`` and ``table5.md`` after each row.

    Args:
        settings (DetectorSettings): What to measure.
        tell (Callable): Told how long it may take, and a line after each row. Defaults to print.

    Returns:
        list[dict]: For each detector its config; ``reason``, why it was not measured to the end (None if it was); the
        ``dense`` metric; and ``rows`` by what is pruned, share and method: the metric (of searches the mean over the
        seeds, with ``deviation`` and the single ``metrics``) and the kept shares of the model's FLOPs and parameters.
    """
    found: list[dict[str, Any]] = []

    def keep() -> None:
        save_json(found, settings.out / 'table5.json')
        save_text(markdown(found), settings.out / 'table5.md')

    for config in settings.configs:
        entry = dict(config=config.stem, reason=None, rows={})
        found.append(entry)
        say = lambda line, name=config.stem: tell(f'{name}  {line}')
        try:
            detector = _Detector(config, settings, entry, keep, say)
            detector.measure_unsearched()
            if settings.episodes is not None:
                detector.measure_searched()
        except AutoDFPError as error:
            entry['reason'] = str(error)
            keep()
            say(f'not measured to the end: {error}')
    return found


class _Detector:
    """Measures the rows of one detector; each is put into its entry, kept, and told in a line."""

    def __init__(
        self,
        config: Path,
        settings: DetectorSettings,
        entry: dict[str, Any],
        keep: Callable[[], None],
        say: Callable[[str], None],
    ):
        self.config, self.settings, self.entry, self.keep, self.say = config, settings, entry, keep, say
        cfg = load_search_config(config, cfg_options=settings.cfg_options)
        if not cfg.get('load_from'):
            raise AutoDFPError(f'table 5 takes the weights that a config names, but {config} has no load_from; add it')
        self.checkpoint = locate(cfg.load_from, settings.checkpoints)
        require_data(cfg, 'val', 'test')
        told = read_settings(cfg.autodfp.to_dict())
        to_report(told.reward)  # for its error, if it is of no data set
        if settings.episodes is not None and not told.compare:
            raise AutoDFPError(
                'the searches of table 5 are judged on held-out images, which autodfp.compare=False leaves out; leave '
                'it alone, or ask for no searches (without --episodes)'
            )
        self.facts = dict(model=type_name(cfg.model), search_images=build(REWARDS, told.reward).num_images)

    def measure_unsearched(self) -> None:
        for target, shares in self.settings.shares.items():
            file = self.settings.out / f'{self.config.stem}_{target}.json'
            report = partial(self._report_unsearched, target, file)
            options = options_of(self.settings, target, OURS)
            measure_shares(self.config, target, shares, self.checkpoint, options, earlier_result(file), report)

    def _report_unsearched(self, target: str, file: Path, result: dict[str, Any], line: str) -> None:
        save_json(result, file)
        begins = line.startswith('dense') and not self.entry['rows']
        self.say(f'{line}  {self._estimate(result)}' if begins else line)
        self.entry |= self.facts | {name: result[name] for name in ('metric', 'images', 'dense', 'seconds')}
        self.entry['rows'][target] = {share: dict(rows) for share, rows in result['rows'].items()}
        self.keep()

    def measure_searched(self) -> None:
        for target, shares in self.settings.shares.items():
            for share, method, seed in product(shares, methods_of(target)[1], range(self.settings.seeds)):
                found = self._search(target, share, method, seed)
                rows = self.entry['rows'].setdefault(target, {}).setdefault(f'{share:g}', {})
                rows[method] = _add(rows.get(method), found)
                self.say(f'{target} {share:g} {method}, seed {seed}: {found["held_out_metric"]:.4f}')
                self.keep()

    def _estimate(self, result: dict[str, Any]) -> str:
        """How long all of it may take, from the seconds of one evaluation."""
        settings, minutes = self.settings, result['seconds'] / 60
        kinds = [methods_of(target) for target, shares in settings.shares.items() for _ in shares]
        rows = sum(len(unsearched) for unsearched, _ in kinds)
        text = f'({rows} rows without a search, {rows * minutes:.0f} minutes and what fitting takes'
        if settings.episodes:
            count = settings.seeds * sum(len(searched) for _, searched in kinds)
            share = min(1.0, (self.facts['search_images'] or result['images']) / result['images'])
            hours = count * settings.episodes * minutes * share / 60
            text += f'; {count} searches of {settings.episodes} episodes, {hours:.1f} hours'
        return f'{text})'

    def _search(self, target: str, share: float, method: str, seed: int) -> dict[str, Any]:
        kind = 'autodfp' if method == AUTODFP else 'ours'
        folder = self.settings.out / 'searches' / f'{self.config.stem}_{target}_{share:g}_{kind}_seed{seed}'
        budget = budget_of(target, share)
        limit = dict(type=type(budget).__name__, preserve_ratio=share, scope=budget.scope, _delete_=True)
        options = options_of(self.settings, target, method) | {'autodfp.budget': limit}
        if method == AUTODFP:
            options['autodfp.finalists'] = 0  # the paper has none
        told = dict(checkpoint=self.checkpoint, seed=seed, cfg_options=options)
        row = search_in(folder, self.config, self.settings.episodes, **told)['results'][-1]
        require_judged(row, folder.name)
        return row


def methods_of(target: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Methods without a search, and with one; the paper's searches prune backbones."""
    if target == 'model':
        return UNSEARCHED, (SEARCHED,)
    return UNSEARCHED[:-1], (AUTODFP, SEARCHED)


def options_of(settings: DetectorSettings, target: str, method: str) -> dict[str, Any]:
    """Overrides of a config for a target and a method; the caller's overrides of the reconstructor apply to ours."""
    told, ours = dict(settings.cfg_options or {}), 'autodfp.reconstructor'
    own = {key: told.pop(key) for key in list(told) if f'{key}.'.startswith(f'{ours}.')}
    options = {'autodfp.target': target, 'log_level': 'WARNING'} | told
    if method == AUTODFP:
        return options | {ours: dict(type='SimilarityReconstructor', _delete_=True)}
    # Overrides within the entry have to come after it.
    return options | {ours: dict(own.pop(ours, {}), type='SyntheticLeastSquares', _delete_=True)} | own


def _add(row: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """Add one more seed to a searched row."""
    metrics = [*(row or {}).get('metrics', []), found['held_out_metric']]
    return dict(
        metric=statistics.mean(metrics),
        deviation=deviation(metrics),
        metrics=metrics,
        flops=found['model_flops']['ratio'],  # of the last seed
        params=found['model_params']['ratio'],
    )


def markdown(detectors: Sequence[dict[str, Any]]) -> str:
    """A table for each target, a line for each detector and method; in brackets the share of the dense metric.

    Detectors are named by their type, or by their config if there are several of a type.

    Args:
        detectors (Sequence[dict]): What :func:`reproduce_detectors` gave.
    """
    parts: list[str] = []
    types = Counter(one.get('model') for one in detectors)
    for target in OF:
        shares = measured_shares(one['rows'].get(target, {}) for one in detectors)
        if not shares:
            continue
        rows = []
        for one in detectors:
            name = one.get('model') if types[one.get('model')] == 1 else one['config']
            rows += _rows(one, name, one['rows'].get(target, {}), shares)
            if target == 'backbone' and one.get('model') in PAPER:
                dense, pruned = PAPER[one['model']]
                cells = [f'{pruned} ({pruned / dense:.1%})' if share == '0.9' else '-' for share in shares]
                rows.append([f'{one["model"]}, COCO ({dense})', 'the paper', *cells])
        head = ['detector', 'method', *(f'{float(share):.0%}' for share in shares)]
        parts += [f'## Shares of {OF[target]}', '', *markdown_table(head, rows), '']
    parts += [f'- {one["config"]}: {one["reason"]}' for one in detectors if one['reason']]
    return '\n'.join(parts).rstrip() + '\n'


def _rows(detector: dict[str, Any], name: str, measured: dict[str, dict], shares: Sequence[str]) -> Iterator[list[str]]:
    """A row for each method that was measured at one of the shares."""
    dense = detector.get('dense', 0)  # it is unknown where nothing was measured
    for method in METHODS:
        cells = [metric_cell(measured.get(share, {}).get(method), dense) or '-' for share in shares]
        if any(cell != '-' for cell in cells):
            yield [f'{name} ({dense:.3f})', method, *cells]
