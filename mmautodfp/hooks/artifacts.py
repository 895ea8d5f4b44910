"""The files that a run leaves in its work dir."""

import copy
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import mmengine
import torch
from mmengine.config import Config, ConfigDict
from torch import nn

import mmautodfp
from mmautodfp.errors import AutoDFPError
from mmautodfp.fileio import save_json, save_tensors, save_text
from mmautodfp.report import Evidence, measure_times, write_report
from mmautodfp.search import LayerState
from mmautodfp.surgery import PruningPlan


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        name (str): Who it is about.
        search_metric (float | None): Metric on the images that reward the search.
        held_out_metric (float | None): Metric on images that the search has not seen.
        counts (dict[str, dict]): 'module_params', 'model_params', 'module_flops' and 'model_flops', each with the
            ``count`` and the preserved ``ratio``.
        widths (dict[str, int]): Unit to the number of channels that stay.
    """

    name: str
    search_metric: float | None
    held_out_metric: float | None
    counts: dict[str, dict]
    widths: dict[str, int]


def slim_config(cfg: Config, module: str, widths: dict[str, int], checkpoint: str | os.PathLike | None) -> Config:
    """The config of a pruned model, for stock MMDetection tools.

    Args:
        cfg (Config): Config of the dense model.
        module (str): Path of the pruned module, which must also be its path in ``cfg.model``.
        widths (dict[str, int]): Unit to its number of channels.
        checkpoint (str | os.PathLike | None): Becomes ``load_from``, so that a training starts from the pruned model.

    Returns:
        Config: Builds the slim model; the search's own settings are gone.

    Raises:
        AutoDFPError: The module has no place of its own in ``cfg.model``.
    """
    cfg = copy.deepcopy(cfg)
    place, key = cfg, 'model'
    for part in filter(None, module.split('.')):
        place, key = place[key], part
        if not isinstance(place, dict) or not isinstance(place.get(key), dict):
            raise AutoDFPError(
                f'module {module!r} was to be pruned, but the config has no model.{module} that could be replaced; '
                'name a part that has a config of its own, or its parent'
            )
    dense = place[key]
    _forget_pretrained(dense)
    place[key] = ConfigDict(type='mmautodfp.Slim', module=dense, widths=dict(widths))
    for name in ('autodfp', 'work_dir', 'launcher', 'resume'):
        cfg.pop(name, None)
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks', []) if 'AutoDFPHook' not in str(hook.get('type'))]
    cfg.load_from = None if checkpoint is None else str(checkpoint)
    return cfg


def _forget_pretrained(config: dict) -> None:
    """Remove weights of the dense shapes from a module's config and the configs inside it."""
    for name, value in config.items():
        if name in ('init_cfg', 'pretrained') and value:
            config[name] = None
        elif isinstance(value, dict):
            _forget_pretrained(value)


class RunArtifacts:
    """Writes what a run leaves behind; each file appears whole or not at all.

    Args:
        cfg (Config): Config of the run.
        work_dir (Path): Where to.
        module (str): Path of the pruned module.
        plan (PruningPlan): What was found.
        settings (dict): Configs of the agent and the reconstructor, to tell how the plan came about.
    """

    def __init__(
        self,
        cfg: Config,
        work_dir: Path,
        module: str,
        plan: PruningPlan,
        settings: dict[str, Any],
    ):
        self.cfg = cfg
        self.work_dir = work_dir
        self.module = module
        self.plan = plan
        self.settings = settings
        self.summary: dict[str, Any] = {}

    def write_model(self, model: nn.Module, layer_states: Sequence[LayerState], metainfo: dict[str, Any]) -> None:
        """Write ``strategy.json``, ``pruned.pth`` and ``pruned.py``.

        Args:
            model (nn.Module): The pruned model.
            layer_states (Sequence[LayerState]): [L], what the agent saw of the units.
            metainfo (dict): Of the data set; its classes go into the checkpoint, for ``init_detector``.
        """
        self.summary['model'] = type(model).__name__
        layers = [state.to_dict() for state in layer_states]
        self.plan.to_json(self.work_dir / 'strategy.json', module=self.module, layers=layers, **self.settings)
        state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        meta = dict(
            dataset_meta={key: value for key, value in metainfo.items() if _is_plain(value)},
            autodfp=dict(module=self.module, plan=self.plan.to_dict(), versions=_versions(), **self.settings),
        )
        save_tensors(dict(state_dict=state, meta=meta), self.work_dir / 'pruned.pth')
        # mmengine fills in the folder of the config: the two files can be moved together.
        beside = '{{ fileDirname }}/pruned.pth'
        text = slim_config(self.cfg, self.module, self.plan.widths, beside).pretty_text
        # It does so before Python reads the text: the folder's name may hold quotes.
        save_text(text.replace(repr(beside), f"r'''{beside}'''"), self.work_dir / 'pruned.py')

    def write_summary(self, facts: dict[str, Any], rows: Sequence[Row]) -> None:
        """Write ``summary.json``.

        Args:
            facts (dict): What else belongs into ``summary.json``; ``metric`` names the reward.
            rows (Sequence[Row]): The comparison; the last one is the pruned model.
        """
        self.summary |= dict(config=str(self.cfg.filename), module=self.module, **facts)
        self.summary['results'] = [
            dict(name=row.name, search_metric=row.search_metric, held_out_metric=row.held_out_metric, **row.counts)
            | dict(widths=row.widths)
            for row in rows
        ]
        self.summary['versions'] = _versions()
        save_json(self.summary, self.work_dir / 'summary.json')

    def add_test_metrics(self, metrics: dict[str, float]) -> None:
        """Put the test loop's figures of the pruned model into ``summary.json``."""
        values = {name: float(value) for name, value in metrics.items()}
        # A class that does not occur has no mAP, which mmdet tells as nan; JSON has no word for it.
        self.summary['test'] = {name: value if math.isfinite(value) else None for name, value in values.items()}
        save_json(self.summary, self.work_dir / 'summary.json')

    def write_report(self, evidence: Evidence) -> str | None:
        """Write ``report.html`` and the folder ``report``.

        Args:
            evidence (Evidence): What the models showed; the latency is measured here.

        Returns:
            str | None: Why there is no report, if so; a run does not fail for want of one.
        """
        try:
            measure_times(evidence, self.work_dir)
            evidence.to_json(self.work_dir / 'report' / 'evidence.json')
            write_report(self.work_dir)
        except Exception as error:
            return f'{type(error).__name__}: {error}'
        return None

    def table(self, rows: Sequence[Row]) -> list[str]:
        """The comparison as lines of text."""
        lines = [f'{"":28}{"search":>9}{"held-out":>10}{"params":>16}{"FLOPs":>18}   of the {self.module}']
        for row in rows:
            params, flops = row.counts['module_params'], row.counts['module_flops']
            metrics = [
                f'{"-" if value is None else format(value, ".4f"):>{width}}'
                for value, width in ((row.search_metric, 9), (row.held_out_metric, 10))
            ]
            lines.append(
                f'{row.name:28}{"".join(metrics)}{params["count"]:>12,} {params["ratio"]:4.0%}'
                f'{flops["count"]:>13,} {flops["ratio"]:4.0%}'
            )
        return lines

    def next_steps(self) -> list[str]:
        """Where everything is, and what can be done with it."""
        config, checkpoint = (shlex.quote(str(self.work_dir / name)) for name in ('pruned.py', 'pruned.pth'))
        return [
            f'in {self.work_dir}: report.html (open it in a browser; pictures in report/), pruned.py and pruned.pth '
            '(the model), strategy.json (the plan), summary.json (figures), search.pth (to go on)',
            f'evaluate it:    python tools/test.py {config} {checkpoint}',
            f'export it:      python tools/export_onnx.py {config} {checkpoint}',
            f'fine-tune it:   hand {config} to tools/train.py of MMDetection; it starts from the pruned weights',
            'search longer:  the same command with --resume --episodes N',
        ]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)


def _versions() -> dict[str, str]:
    packages = (mmautodfp, mmengine, mmcv, mmdet, torch)
    # str(): torch's version is of a class of its own, which torch.load(weights_only=True) does not know.
    versions = {package.__name__: str(package.__version__) for package in packages}
    return dict(python=sys.version.split()[0]) | versions
