"""``report.html``: a run on one page, and its pictures as PNGs."""

import os
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mmautodfp.outputs.config import kept_as
from mmautodfp.outputs.latency import ROWS
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError, in_one_line
from mmautodfp.utils.command_line import option_of
from mmautodfp.utils.fileio import load_json, load_tensors, save_text

from .evidence import GATHERED, ChannelMap, Evidence
from .markup import templates
from .part_plots import parts_figure, strategy_figure
from .parts import part_of
from .plots import channels_figure, pictures_figure, save_png, search_figure, svg_uri

FOLDER = 'report'
#: Row of the table to its name in :func:`mmautodfp.outputs.latency.measure_latency`. All other rows are uniform plans,
#: which are equally fast.
_LATENCY = {row: name for name, row in ROWS.items()} | {'AutoDFP, before distillation': 'AutoDFP'}


class Report:
    """The page of a run, made from the files in its work dir. In place of what cannot be shown, it says why.

    Args:
        work_dir (str | os.PathLike): With ``summary.json``.

    Raises:
        AutoDFPError: There is no summary, or it is damaged.
    """

    def __init__(self, work_dir: str | os.PathLike):
        self.work_dir = Path(work_dir)
        self.summary: dict[str, Any] = load_json(self.work_dir / 'summary.json', 'the summary of a run')
        if not isinstance(self.summary, dict) or not self.summary.get('results'):
            raise AutoDFPError(
                f'{self.work_dir / "summary.json"} was expected to hold the results of a run; it does not'
            )
        self.missing: dict[str, str] = {}
        kept = self._try('evidence', lambda: Evidence.from_json(self.work_dir / FOLDER / 'evidence.json'))
        self.evidence = kept or Evidence()
        # Without the file, all that it holds is missing.
        if kept:
            self.missing |= self.evidence.missing
        else:
            self.miss(self.missing['evidence'])

    @property
    def has_parts(self) -> bool:
        """Whether the run pruned more than one part of a model, or all of it."""
        return not self.summary['module'] and bool(self.summary['target'])

    def miss(self, reason: str) -> None:
        """Let the page say why nothing of the evidence is shown; of parts only if there are any."""
        self.missing |= {name: reason for name in GATHERED if name != 'parts' or self.has_parts}

    def write(self) -> Path:
        """Write ``report.html`` and the PNGs in ``report``.

        Returns:
            Path: The page.

        Raises:
            AutoDFPError: There is no room, or no right to write there.
        """
        path = self.work_dir / 'report.html'
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Glyph .* missing')  # of class names; the page has them
            content = self._content()
        save_text(templates().get_template('report.html.jinja').render(content), path)
        return path

    def _content(self) -> dict[str, Any]:
        shown = [found for found in self.evidence.channels if found.places]
        budgets, searched = self.summary['budget'], self.summary['episodes'] > 1
        parts = self._try('parts', self._parts) or []
        pictures = self.evidence.pictures
        save_pictures = lambda: self._save('pictures', pictures_figure(pictures))
        content = dict(
            title=f'{self.summary["model"]}, pruned',
            summary=self.summary,
            about=self._about(),
            budgets=budgets if isinstance(budgets, list) else [budgets],
            parts=parts,
            parts_plot=self._plot('parts', lambda: parts_figure(self.evidence.parts)) if parts else None,
            rows=self._rows(),
            # COCOeval says -1 where there is no object of a size
            tested=[item for item in (self.summary.get('test') or {}).items() if item[1] not in (None, -1)],
            device=self.evidence.device,
            searched=searched,
            search=self._plot('search', self._search_figure) if searched else None,
            strategy=self._plot('strategy', self._strategy_figure),
            clusters=self._plot('channels', lambda: channels_figure(shown)) if shown else None,
            merges=[_merges(found) for found in self.evidence.channels],
            whole=[found.group for found in self.evidence.channels if len(found.kept) == len(found.labels)],
            pictures=pictures,
            pictures_file=self._try('pictures_file', save_pictures) if pictures else None,
            colours={label: number % 8 for number, label in enumerate(self._labels())},
            config=self._try('config', self._config),
            command=self._try('command', self._command),
        )
        return content | dict(missing=self.missing)  # last, as all the others add to it

    def _try(self, name: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except Exception as error:  # what fails must not cost the rest of the page
            self.missing[name] = str(error) if isinstance(error, AutoDFPError) else in_one_line(error)
            return None

    def _plot(self, name: str, draw: Callable[[], Figure]) -> dict[str, str] | None:
        """A figure for the page, as an address (``uri``), and the path of its PNG from there (``file``)."""

        def make() -> dict[str, str]:
            figure = draw()
            return dict(uri=svg_uri(figure), file=self._save(name, figure))

        return self._try(name, make)

    def _save(self, name: str, figure: Figure) -> str:
        file = f'{FOLDER}/{name}.png'
        save_png(figure, self.work_dir / file)
        return file

    def _rows(self) -> list[dict[str, Any]]:
        """Rows of the table, with latency [s] and size [bytes] where they were measured."""
        latency, sizes = self.evidence.latency, self.evidence.sizes
        return [
            dict(row, latency=latency.get(_LATENCY.get(row['name'], 'uniform')), size=sizes.get(row['name']))
            for row in self.summary['results']
        ]

    def _about(self) -> dict[str, str]:
        """Names of what was pruned, for the header and for the heads of the table."""
        module, target = self.summary['module'], self.summary['target']
        if module:
            return dict(header=module, short=module)
        return dict(header=target if target not in ('', 'model') else 'the whole model', short='whole model')

    def _parts(self) -> list[dict[str, Any]]:
        """The parts of a detector with their ``counts``, groups and channels; none if one part alone was pruned."""
        if not self.evidence.parts:
            return []
        groups = PruningPlan.from_json(self.work_dir / 'strategy.json').groups
        rows = []
        for counts in self.evidence.parts:
            own = [group for name, group in groups.items() if part_of(name) == counts.name]
            kept, channels = sum(group.width for group in own), sum(group.num_channels for group in own)
            rows.append(dict(counts=counts, groups=len(own), kept=kept, channels=channels))
        return rows

    def _labels(self) -> list[str]:
        found = [finding for picture in self.evidence.pictures for finding in (*picture.dense, *picture.pruned)]
        return sorted({finding.label for finding in found})

    def _search_figure(self) -> Figure:
        history = load_tensors(self.work_dir / 'search.pth', 'the search')['history']
        if self.summary.get('objectives'):  # rewards are utilities, and no baseline has one
            return search_figure(history['rewards'].tolist(), {}, 'utility')
        rows = self.summary['results']
        baselines = {row['name']: row['search_metric'] for row in rows[:-1] if row['search_metric'] is not None}
        return search_figure(history['rewards'].tolist(), baselines, self.summary['metric'])

    def _strategy_figure(self) -> Figure:
        strategy = load_json(self.work_dir / 'strategy.json', 'the plan')
        groups, layers = PruningPlan.from_dict(strategy).groups, strategy['layers']
        return strategy_figure(
            list(groups),
            [group.width / group.num_channels for group in groups.values()],
            [group.lam for group in groups.values()],
            [layer['noise_ratio'] for layer in layers],
            [layer['bias_small'] for layer in layers],
            by_part=self.has_parts,
        )

    @property
    def config_file(self) -> Path:
        """The config as it was run, overrides included; the hook keeps it."""
        return self.work_dir / kept_as(self.summary['config'])

    def _config(self) -> str:
        return self.config_file.read_text(encoding='utf-8')

    def _command(self) -> str:
        again = self.work_dir.with_name(f'{self.work_dir.name}_again')
        parts = ['python', '-m', 'mmautodfp', 'prune', str(self.config_file), '--work-dir', str(again)]
        chosen = self.summary.get('frontier')
        if chosen:
            parts += ['--from-frontier', chosen['file']]
            for name, limit in chosen['limits'].items():
                parts += [option_of(name), limit]
        if self.summary.get('trust_checkpoint'):
            parts.append('--trust-checkpoint')
        # The config of a resumed search would resume another one that is not there.
        if 'resume=True' in self._config().replace(' ', ''):
            parts += ['--cfg-options', 'autodfp.resume=False']
        return shlex.join(parts)


def _merges(found: ChannelMap) -> dict[str, Any]:
    """The retained channels of a group with the pruned ones that each stands in for, and those without a stand-in."""
    kept = set(found.kept)
    stand_ins: dict[int, list[tuple[int, float]]] = {}
    for channel, partner in enumerate(found.partner):
        if channel not in kept and partner != -1:
            stand_ins.setdefault(partner, []).append((channel, found.scale[channel]))
    pruned = [channel for channel in range(len(found.labels)) if channel not in kept]
    return dict(
        group=found.group,
        total=len(found.labels),
        kept=len(kept),
        stand_ins=sorted(stand_ins.items()),
        dropped=[channel for channel in pruned if found.partner[channel] == -1],
    )
