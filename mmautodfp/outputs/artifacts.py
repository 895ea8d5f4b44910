"""The files that a run leaves in its work dir."""

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmcv
import mmdet
import mmengine
import torch
from mmengine.config import Config
from mmengine.dist import get_world_size

import mmautodfp
from mmautodfp.api import PruningTask, SearchResult
from mmautodfp.costs import format_quantity
from mmautodfp.rewards import Reward
from mmautodfp.surgery import Restore
from mmautodfp.utils.fileio import save_json, save_tensors, save_text, weights_of

from .config import PRUNED, slim_config

if TYPE_CHECKING:
    from .report import Evidence


@dataclass(frozen=True)
class Row:
    """One row of the comparison.

    Attributes:
        name (str): Of the model that it is about.
        search_metric (float | None): Metric on the images that reward the search.
        held_out_metric (float | None): Metric on images that the search has not seen.
        counts (dict[str, dict]): 'module_params', 'model_params', 'module_flops' and 'model_flops', and likewise
            latency and memory if they were measured, each with ``count`` and preserved ``ratio``.
        widths (dict[str, int]): Name of each group to the number of channels that it keeps.
        layers (dict[str, dict]): Each changed layer with its new sizes, see :func:`mmautodfp.surgery.Slim`.
    """

    name: str
    search_metric: float | None
    held_out_metric: float | None
    counts: dict[str, dict]
    widths: dict[str, int]
    layers: dict[str, dict[str, int | bool]]


@dataclass(eq=False)
class RunArtifacts:
    """Writes the files that a run leaves behind, each in one step.

    Attributes:
        cfg (Config): Config of the run.
        work_dir (Path): Where to.
        task (PruningTask): What was pruned.
        found (SearchResult): The plan, and the search that found it.
        settings (Mapping): How the plan was found: configs of the agent and the reconstructor, and of a frontier's
            point, which one.
        summary (dict): Content of ``summary.json``; empty until it is written.
        evidence (Evidence | None): For the report; None until it is gathered.
    """

    cfg: Config
    work_dir: Path
    task: PruningTask
    found: SearchResult
    settings: Mapping[str, Any]
    summary: dict[str, Any] = field(default_factory=dict)
    evidence: 'Evidence | None' = None

    def write_model(self, pruned: Restore, metainfo: dict[str, Any]) -> None:
        """Write ``strategy.json``, ``pruned.pth`` and ``pruned.py``, and remove the report of an earlier run.

        Args:
            pruned (Restore): Of the plan, applied to the model at the moment.
            metainfo (dict): Of the data set; its classes go into the checkpoint, for ``init_detector``.
        """
        _remove_report(self.work_dir)  # it shows another plan, and this run may write none
        task, plan = self.task, self.found.plan
        layers = [asdict(state) for state in task.layer_states]
        plan.to_json(self.work_dir / 'strategy.json', module=task.path, layers=layers, **self.settings)
        meta = dict(
            dataset_meta={key: value for key, value in metainfo.items() if _is_plain(value)},
            autodfp=dict(module=task.path, plan=plan.to_dict(), versions=_versions(), **self.settings),
        )
        save_tensors(dict(state_dict=weights_of(task.model), meta=meta), self.work_dir / 'pruned.pth')
        # mmengine puts the config's folder in place of {{ fileDirname }}: the two files can be moved together.
        beside = '{{ fileDirname }}/pruned.pth'
        text = slim_config(self.cfg, task.path, pruned.changes(task.module), beside).pretty_text
        # It does so before Python reads the text, and the folder's name may hold quotes.
        save_text(text.replace(repr(beside), f"r'''{beside}'''"), self.work_dir / PRUNED)

    def write_summary(
        self,
        reward: Reward,
        held_out: Reward | None,
        judge: Reward | None,
        rows: Sequence[Row],
        seed: int,
        trusted: bool = False,
    ) -> None:
        """Write ``summary.json``.

        Args:
            reward (Reward): Of the search.
            held_out (Reward | None): Gave the held-out metrics.
            judge (Reward | None): Judged the finalists.
            rows (Sequence[Row]): The comparison; the last row is the pruned model's.
            seed (int): Of the search.
            trusted (bool): Whether reading the checkpoint could run code. Defaults to False.
        """
        task, found = self.task, self.found
        self.summary = dict(
            model=type(task.model).__name__,
            config=str(self.cfg.filename),
            module=task.path,
            target=task.target,
            episodes=len(found.history),
            best_episode=found.episode,
            seconds=dict(search=sum(found.history.seconds), this_run=found.seconds),
            seed=seed,
            trust_checkpoint=trusted,
            ranks=get_world_size(),
            budget=task.constraint.describe(),
            channel_divisor=task.constraint.channel_divisor,
            metric=reward.name,
            reported_metric=reward.reported_name,
            search_images=len(reward.images),
            image_evaluations=found.image_evaluations,
            judge_metric=judge.name if judge else None,
            judge_images=len(judge.images) if judge else 0,
            finalists=[asdict(one) for one in found.finalists],
            held_out_images=len(held_out.images) if held_out else 0,
            flops_input=list(task.example_input['inputs'].shape),
            **self.settings,
            # Without `resume`, so that it can be compared with another run's.
            autodfp={key: value for key, value in self.cfg.get('autodfp', {}).items() if key != 'resume'},
        )
        if found.objectives:
            self.summary |= dict(
                objectives=found.objectives.describe(), utility=found.reward, pareto_set=self._pareto_set()
            )
        self.summary['results'] = [
            dict(
                name=row.name,
                search_metric=row.search_metric,
                held_out_metric=row.held_out_metric,
                **row.counts,
                widths=row.widths,
                layers=row.layers,
            )
            for row in rows
        ]
        self.summary['versions'] = _versions()
        save_json(self.summary, self.work_dir / 'summary.json')

    def _pareto_set(self) -> list[dict[str, Any]]:
        """The plans of the search that no other beats, by falling metric, with their outcomes and costs."""
        found, history = self.found, self.found.history
        points = [
            dict(
                episode=episode,
                metric=history.stages[episode][-1],
                utility=history.rewards[episode],
                outcome=dict(zip(found.objectives.weights, history.outcomes[episode], strict=True)),
                **self.task.costs.summary(history.widths[episode]),
            )
            for episode in found.pareto
        ]
        return sorted(points, key=lambda point: -point['metric'])

    def add_test_metrics(self, metrics: dict[str, Any]) -> None:
        """Add the test loop's figures of the pruned model to ``summary.json``."""
        self.summary['test'] = {}
        for name, value in metrics.items():
            with suppress(TypeError, ValueError, RuntimeError):  # a metric may also give a text or a table
                number = float(value)
                # mmdet gives nan for the mAP of a class that does not occur; JSON knows no nan.
                self.summary['test'][name] = number if math.isfinite(number) else None
        save_json(self.summary, self.work_dir / 'summary.json')

    def gather_evidence(self, pruned: Restore, rows: Sequence[Row], needs_data: bool) -> None:
        """Look at the dense and the pruned model, for the report.

        Args:
            pruned (Restore): Of the plan; the model is dense at the moment.
            rows (Sequence[Row]): The comparison.
            needs_data (bool): Whether a data set may be opened.
        """
        from .report import collect  # here: drawing needs libraries that a bare run can do without

        widths = {row.name: row.widths for row in rows}
        self.evidence = collect(self.task, self.found.plan, pruned.swap, self.cfg, widths, needs_data)

    def write_report(self) -> str | None:
        """Measure the latency, and write ``report.html`` and the folder ``report``.

        Returns:
            str | None: Why there is no report, or None; a run does not fail for that.
        """
        from .report import Report, measure_times

        try:
            measure_times(self.evidence, self.work_dir)
            self.evidence.to_json(self.work_dir / 'report' / 'evidence.json')
            Report(self.work_dir).write()
        except Exception as error:
            return f'{type(error).__name__}: {error}'
        return None

    def table(self, rows: Sequence[Row]) -> list[str]:
        """The comparison as a table, line by line."""
        memory = f'{"memory":>15}' if self.task.costs.memory else ''
        head = f'{"":28}{"search":>9}{"held-out":>10}{"params":>19}{"FLOPs":>22}{memory}'
        lines = [f'{head}   of {self.task.target or "all"}']
        for row in rows:
            params, flops = row.counts['module_params'], row.counts['module_flops']
            metrics = [
                f'{"-" if value is None else format(value, ".4f"):>{width}}'
                for value, width in ((row.search_metric, 9), (row.held_out_metric, 10))
            ]
            lines.append(
                f'{row.name:28}{"".join(metrics)}{params["count"]:>14,} {params["ratio"]:4.0%}'
                f'{flops["count"]:>17,} {flops["ratio"]:4.0%}'
            )
            if memory:
                held = row.counts['module_memory']
                lines[-1] += f'{format_quantity(held["count"], "memory"):>10} {held["ratio"]:4.0%}'
        return lines

    def next_steps(self) -> list[str]:
        """What the run has left, and what can be done with it, line by line."""
        config, checkpoint = (shlex.quote(str(self.work_dir / name)) for name in ('pruned.py', 'pruned.pth'))
        told = self.evidence and (self.work_dir / 'report.html').is_file()  # it may have failed
        report = 'report.html (open it in a browser; pictures in report/), ' if told else ''
        searched = len(self.found.history) > 1
        weighed = searched and self.found.objectives is not None
        lacking = [name for name in ('train_dataloader', 'train_cfg', 'optim_wrapper') if not self.cfg.get(name)]
        train = f'add {", ".join(lacking)} to {config} and hand it' if lacking else f'hand {config}'
        return [
            f'in {self.work_dir}: {report}pruned.py and pruned.pth (the model), strategy.json (the plan), summary.json '
            f'(figures){", search.pth (to go on)" if searched else ""}',
            f'evaluate it:    python -m mmautodfp test {config} {checkpoint}',
            f'export it:      python -m mmautodfp export_onnx {config} {checkpoint}',
            f'fine-tune it:   {train} to tools/train.py of MMDetection; it starts from the pruned weights',
            *(['search longer:  the same command with --resume --episodes N'] if searched else []),
            *(['weigh otherwise: the same command with --resume and other autodfp.objectives'] if weighed else []),
        ]


def _remove_report(work_dir: Path) -> None:
    """Remove the page of a run, its pictures and its evidence; without evidence, the page is not a run's."""
    page, evidence = work_dir / 'report.html', work_dir / 'report' / 'evidence.json'
    if not evidence.is_file():
        return
    text = page.read_text(encoding='utf-8', errors='replace') if page.is_file() else ''
    for file in (*re.findall(r'"(report/\w+\.png)"', text), page, evidence):
        (work_dir / file).unlink(missing_ok=True)
    with suppress(OSError):  # others may have put files there
        evidence.parent.rmdir()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)


def _versions() -> dict[str, str]:
    packages = (mmautodfp, mmengine, mmcv, mmdet, torch)
    # str(): torch's version is of a class of its own, which torch.load(weights_only=True) does not know.
    versions = {package.__name__: str(package.__version__) for package in packages}
    return dict(python=sys.version.split()[0]) | versions
