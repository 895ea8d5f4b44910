"""What the experiments share: a config's model with its metric, and results and searches to continue."""

import contextlib
import io
import logging
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from scipy.stats import spearmanr
from torch import Tensor, nn

from mmautodfp.api import PruningTask
from mmautodfp.costs import Budget
from mmautodfp.deploy.models import build_model, input_size
from mmautodfp.graph import samples_of
from mmautodfp.hooks import AutoDFPHook, read_settings
from mmautodfp.reconstruction import PruneOnly, Reconstructor
from mmautodfp.rewards import Reward
from mmautodfp.runs import build_runner, find_checkpoint, load_config, load_search_config, prune
from mmautodfp.search import RandomSearch
from mmautodfp.search.task import digest_weights
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.configs import type_name
from mmautodfp.utils.fileio import load_json, portable, read_state, require_same, save_json
from mmautodfp.utils.registry import HOOKS, REWARDS, build
from mmautodfp.utils.timing import describe_machine, wait_for_gpu

T = TypeVar('T')


def load_runner(config: str | os.PathLike, checkpoint: str | None, cfg_options: dict[str, Any] | None) -> Runner:
    """Build a runner and load its model, without output and without leaving a work dir.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        checkpoint (str | None): Weights of the dense model; None: the config's ``load_from``.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.
    """
    with tempfile.TemporaryDirectory() as scratch, quiet():
        cfg = load_search_config(config, scratch, cfg_options=cfg_options)
        cfg.load_from = find_checkpoint(checkpoint or cfg.get('load_from'), config)
        cfg.log_level = 'ERROR'
        # A visualizer with a name is kept for the next runner.
        cfg.visualizer = dict(type='mmengine.Visualizer', vis_backends=[])
        runner = build_runner(cfg)
        runner.load_or_resume()
    return runner


def random_detector(
    config: str | os.PathLike,
    size: Sequence[int] | None = None,
    cfg_options: dict[str, Any] | None = None,
    otherwise: tuple[int, int] | None = None,
) -> tuple[Config, nn.Module, Tensor]:
    """Build a detector with random weights, to measure speed or memory; nothing is downloaded.

    Args:
        config (str | os.PathLike): Its config.
        size (Sequence[int] | None): Height and width. Defaults to None: the config's.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.
        otherwise (tuple[int, int] | None): Height and width if the config names none. Defaults to None: it has to.

    Returns:
        tuple[Config, nn.Module, Tensor]: The config, the detector in eval mode, and an image for it, [1, 3, H, W].

    Raises:
        AutoDFPError: The config is not one of a detector, or no size is known.
    """
    cfg = load_config(config, cfg_options=cfg_options)
    model = cfg.get('model')
    if not isinstance(model, dict) or not isinstance(model.get('backbone'), dict):
        raise AutoDFPError(f'{config} was to be measured with random weights, but it has no backbone; name a detector')
    cfg.model.backbone.init_cfg = None
    model = build_model(cfg)
    with quiet():
        model.init_weights()  # otherwise one-stage heads give every class of every anchor a score of 0.5
    return cfg, model, torch.rand(1, 3, *(size or input_size(cfg, otherwise)))


class Bench:
    """A dense model with its metric on all images of the test data loader.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.
        cfg_options (dict | None): Overrides of the config, dotted keys to values.

    Attributes:
        config (Path): Where the config is.
        cfg_options (dict | None): The overrides.
        cfg (Config): The config, with the overrides.
        checkpoint (str): Name of the file of weights.
        settings (HookSettings): Of the ``autodfp`` entry.
        model (nn.Module): The dense model.
        reward (Reward): The metric.
    """

    def __init__(
        self, config: str | os.PathLike, checkpoint: str | None = None, cfg_options: dict[str, Any] | None = None
    ):
        runner = load_runner(config, checkpoint, cfg_options)
        self.cfg = runner.cfg
        self.config = Path(config)
        self.cfg_options = cfg_options
        self.checkpoint = Path(self.cfg.load_from).name
        self.settings = read_settings(self.cfg.autodfp.to_dict())
        self.model = runner.model.eval()
        self.reward = self.reward_on(self.cfg.test_dataloader)

    def take_up(self, known: dict[str, Any] | None, **asked: Any) -> dict[str, Any]:
        """An earlier result with these settings, or a new one, see :func:`take_up`."""
        common = dict(config=self.config.as_posix(), checkpoint=self.checkpoint, metric=self.reward.name)
        common |= dict(images=len(self.reward.images))
        return take_up(known, common | asked, self.model, self.cfg_options)

    def task(
        self, limit: Budget | float = 1.0, reconstructor: Reconstructor | dict | None = None, **settings: Any
    ) -> PruningTask:
        """Limit the model's target; without a reconstructor, nothing is compensated.

        Further settings are those of :meth:`PruningTask.build`. By default they are the config's, but groups may become
        as narrow as the limit asks for, and nothing is allocated.
        """
        told = self.settings
        own = {name: getattr(told, name) for name in ('target', 'p_max', 'channel_divisor', 'residual_streams')}
        own |= dict(p_min=0.01, allocate=False)
        return PruningTask.build(
            self.model, constraint=limit, reconstructor=reconstructor or PruneOnly(), **own | settings
        )

    def uniform_widths(self, ratio: float) -> list[int]:
        """Widths of the largest uniform plan within a share of the target's parameters."""
        return list(self.task(ratio).uniform_plan().widths.values())

    def reward_on(self, dataloader: dict) -> Reward:
        """The metric on all images of a data loader."""
        reward = build(REWARDS, to_report(self.settings.reward))
        reward.prepare(self.model, dataloader)
        return reward


def to_report(reward: dict) -> dict:
    """Config of the reward to report, from that of a search: on all images, in float32, with the reported metric.

    Raises:
        AutoDFPError: It is of no data set, or a setting is wrong.
    """
    if not build(REWARDS, reward).needs_data:
        raise AutoDFPError(
            f'figures are measured on annotated images, but the reward of the config is {type_name(reward)}; name '
            'a config with CocoReward or AccuracyReward'
        )
    settings = reward | dict(num_images=None) | ({'precision': 'float32'} if 'precision' in reward else {})
    built = build(REWARDS, settings)
    return settings if built.name == built.reported_name else settings | dict(metric=built.reported_name)


def prepare_hook(
    config: str | os.PathLike,
    checkpoint: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    finalists: int = 0,
) -> tuple[Runner, AutoDFPHook]:
    """Build a runner and its hook, with task and rewards; arguments as of :func:`load_runner`.

    Without ``finalists``, no images are set aside to choose among the best plans.
    """
    runner = load_runner(config, checkpoint, cfg_options)
    hook = build(HOOKS, runner.cfg.autodfp.to_dict() | dict(finalists=finalists))
    with quiet():
        hook.prepare(runner)
    return runner, hook


def require_held_out(hook: AutoDFPHook) -> None:
    """Raise :class:`AutoDFPError` if there are no held-out images."""
    if hook.held_out is None:
        raise AutoDFPError('plans were to be compared on held-out images, but test_dataloader has none')


def those_named(candidates: Mapping[str, T], only: str, what: str) -> dict[str, T]:
    """The candidates whose names match a regular expression, or all for ''.

    Args:
        candidates (Mapping): By name.
        only (str): The regular expression.
        what (str): What the candidates are, for the message, such as 'searches'.

    Raises:
        AutoDFPError: No name matches, or ``only`` is no regular expression.
    """
    try:
        found = {name: one for name, one in candidates.items() if re.fullmatch(only or '.*', name)}
    except re.error as error:
        raise AutoDFPError(f'only={only!r} was expected to be a regular expression: {error}') from None
    if not found:
        raise AutoDFPError(f'{what} that match only={only!r} were asked for, but there are {", ".join(candidates)}')
    return found


def take_up(
    known: dict[str, Any] | None, asked: dict[str, Any], model: nn.Module, cfg_options: dict[str, Any] | None
) -> dict[str, Any]:
    """An earlier result to continue, or else a new one that holds the settings; with this machine in it.

    Args:
        known (dict | None): The earlier result.
        asked (dict): The settings.
        model (nn.Module): The dense model, whose weights count as a setting.
        cfg_options (dict | None): Overrides of the config, which count as a setting.

    Raises:
        AutoDFPError: The earlier result was measured with other settings or weights, or does not tell with which.
    """
    asked = portable(asked | dict(weights=_fingerprint(model.state_dict()), cfg_options=cfg_options or {}))
    if known:
        require_same(known, asked, 'the earlier result')
    return dict(known or asked, machine=describe_machine())


def _fingerprint(state: Mapping[str, Tensor]) -> str:
    return f'sha256 {digest_weights(state)[:16]}'


def search_in(folder: Path, config: str | os.PathLike, episodes: int | None = None, **options: Any) -> dict[str, Any]:
    """Run a search in a folder, unless it is finished there, and return its summary.

    Its settings, other overrides of the config and a fingerprint of the weights are kept as ``asked.json``. A search is
    resumed, or counts as finished, only if they are the same.

    Args:
        folder (Path): Its work dir.
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        episodes (int | None): Of the search; one of fewer episodes is resumed. Defaults to None: the config's.
        **options: ``checkpoint``, ``preserve_ratio``, ``seed`` and ``cfg_options`` of :func:`mmautodfp.runs.prune`.

    Raises:
        AutoDFPError: The folder holds a search with other or unknown settings, or the search cannot be run.
    """
    overrides = {name: value for name, value in options.items() if name != 'checkpoint'}
    cfg = load_search_config(config, str(folder), episodes=episodes, **overrides)
    settings = asdict(read_settings(cfg.autodfp.to_dict()))
    episodes = settings.pop('num_episodes')  # more can be added
    del settings['resume']
    others = {key: value for key, value in (options.get('cfg_options') or {}).items() if key.split('.')[0] != 'autodfp'}
    weights = read_state(find_checkpoint(options.get('checkpoint') or cfg.get('load_from'), config))
    asked = portable(settings | dict(weights=_fingerprint(weights), cfg_options=others))
    record, summary = folder / 'asked.json', folder / 'summary.json'
    done = load_json(summary, 'a search') if summary.is_file() else {}
    if record.is_file() or done:
        stored = load_json(record, 'the settings of a search') if record.is_file() else {}
        require_same(stored, asked, f'the search {folder.name}')
    save_json(asked, record)
    if 'test' not in done or done['episodes'] < episodes:
        resume = (folder / 'search.pth').is_file()
        prune(config, work_dir=str(folder), episodes=episodes, resume=resume, **options)
        done = load_json(summary, 'a search')
    return done


def require_judged(row: dict[str, Any], search: str) -> None:
    """Raise :class:`AutoDFPError` if a row of a search's summary has no held-out metric."""
    if row['held_out_metric'] is None:
        raise AutoDFPError(
            f'the search in {search} was not judged on held-out images; leave autodfp.compare alone, and let '
            'test_dataloader have images that do not reward it'
        )


def random_plans(task: PruningTask, count: int, seed: int = 0) -> Iterator[PruningPlan]:
    """Random plans around the one that a search starts from, within the budget."""
    explorer = RandomSearch(task.agent_spec(seed), around_uniform=True)
    for episode in range(count):
        explorer.begin_episode(episode)
        rollout = task.env.rollout(explorer.act)
        yield task.env.plan(rollout.widths, rollout.lams)


def example_of(images: Tensor) -> dict[str, Any]:
    """Arguments of a detector's forward on images [B, C, H, W], without post-processing."""
    return dict(inputs=images, data_samples=samples_of(images), mode='tensor')


def timed(call: Callable[..., T], tell: Callable[[float], None]) -> Callable[..., T]:
    """Wrap a call so that it tells how many seconds it took."""

    def run(*args: Any, **kwargs: Any) -> T:
        wait_for_gpu()
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            wait_for_gpu()
            tell(time.perf_counter() - start)

    return run


def clocks() -> np.ndarray:
    """Wall-clock and processor seconds [2]; other work on the machine adds to the first only."""
    return np.array([time.perf_counter(), time.process_time()])


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence stdout and the log, but for errors."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of two samples [S]; 0 if the values of one are all equal."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)
