"""Measurements of the tool itself, each a ratio within one process; ``tools/benchmark.py`` runs them."""

import contextlib
import copy
import io
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mmengine.runner import Runner
from scipy.stats import spearmanr

from .apis import build_runner, find_checkpoint, load_config
from .errors import AutoDFPError
from .fileio import load_json, save_json
from .hooks import AutoDFPHook
from .hooks.summary import image_evaluations
from .registry import HOOKS, REWARDS, build
from .search import Racing, RandomSearch
from .surgery import PruningPlan, apply_plan
from .timing import describe_machine, median_in_turns, wait_for_gpu


def benchmark_reward(config: str | os.PathLike, repeat: int = 5, checkpoint: str | None = None) -> dict[str, Any]:
    """What one episode of a search costs, beside MMDetection's own ``runner.val()`` on the same images.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        repeat (int): Measurements, of which the median counts. Defaults to 5.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.

    Returns:
        dict[str, Any]: Median seconds of an episode and of ``runner.val()``, both on the uniformly pruned model, the
        ratio of the two, an episode's parts on one thread, and the machine.
    """
    with tempfile.TemporaryDirectory() as scratch:
        runner, hook = prepare_hook(config, scratch, checkpoint)
        with quiet():
            _restrict_validation(runner, hook, Path(scratch))
        plan = hook.env.uniform_plan()
        with quiet():
            seconds = median_in_turns(dict(episode=lambda: hook.evaluate(plan)), repeat, inference=False)
            with apply_plan(hook.target, plan, hook.reconstructor):
                seconds |= median_in_turns(dict(mmdet_val=runner.val), repeat, inference=False)
            parts = _reward_parts(hook, plan, repeat)
    return dict(
        images=len(hook.reward.images),
        seconds=seconds,
        ratio=seconds['mmdet_val'] / seconds['episode'],
        precision=hook.reward.precision,
        one_thread=parts,
        share_beside_forward=1 - parts['forward'] / parts['episode'],
        machine=describe_machine(),
    )


def benchmark_racing(
    config: str | os.PathLike, seeds: Sequence[int] = (0, 1, 2, 3, 4), checkpoint: str | None = None
) -> dict[str, Any]:
    """What a race loses and saves: the same searches with and without it.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        seeds (Sequence[int]): Seeds of the searches. Defaults to (0, 1, 2, 3, 4).
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.

    Returns:
        dict[str, Any]: For either way and each seed the best reward, the held-out metric of its plan, the share of
        the images that were evaluated and the seconds; and their means.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _, hook = prepare_hook(config, scratch, checkpoint)
        ways: dict[str, list[dict]] = {'whole': [], 'racing': []}
        for seed in seeds:
            hook.seed = seed
            for way, found in ways.items():
                hook.racing = Racing() if way == 'racing' else None
                searcher = hook.build_searcher(Path(scratch) / f'{way}{seed}.pth')
                with quiet():
                    plan = searcher.run()
                done = image_evaluations(hook, searcher.history)
                with apply_plan(hook.target, plan, hook.reconstructor):
                    held_out = hook.held_out(hook.model)
                found.append(
                    dict(
                        seed=seed,
                        best_reward=searcher.best_reward,
                        held_out=held_out,
                        evaluated=done['done'] / done['without_racing'],
                        seconds=sum(searcher.history.seconds),
                    )
                )
    means = {
        way: {key: statistics.mean(row[key] for row in found) for key in found[0] if key != 'seed'}
        for way, found in ways.items()
    }
    return dict(episodes=hook.num_episodes, stages=hook.reward.stages, means=means, **ways, machine=describe_machine())


def benchmark_precision(
    config: str | os.PathLike, plans: int = 100, precision: str = 'auto', checkpoint: str | None = None
) -> dict[str, Any]:
    """Whether a lower precision ranks plans as float32 does.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        plans (int): Random plans around the one that a search starts from, within the budget. Defaults to 100.
        precision (str): To compare with float32. Defaults to 'auto'.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.

    Returns:
        dict[str, Any]: Spearman's rank correlation, the largest difference, and both rewards of each plan.
    """
    with tempfile.TemporaryDirectory() as scratch:
        runner, hook = prepare_hook(config, scratch, checkpoint)
        settings = dict(runner.cfg.autodfp.reward.to_dict())
        units = [f'{hook.module}.{unit.name}' for unit in hook.units]
        rewards = {}
        for name in ('float32', precision):
            with quiet():
                reward = build(REWARDS, settings | dict(precision=name))
                reward.prepare(hook.model, runner.cfg.val_dataloader, units)
            rewards[reward.precision] = reward
        explorer = RandomSearch(hook.spec, around_uniform=True)
        found: dict[str, list[float]] = {name: [] for name in rewards}
        for episode in range(plans):
            explorer.begin_episode(episode)
            rollout = hook.env.rollout(explorer.act)
            with apply_plan(hook.target, hook.env.plan(rollout.widths, rollout.lams), hook.reconstructor):
                for name, reward in rewards.items():
                    found[name].append(reward(hook.model))
    first, last = next(iter(found.values())), list(found.values())[-1]
    return dict(
        plans=plans,
        precision=list(found)[-1],
        spearman=float(spearmanr(first, last).statistic),
        largest_difference=max(abs(a - b) for a, b in zip(first, last, strict=True)),
        rewards=found,
        machine=describe_machine(),
    )


def benchmark_ranks(
    config: str | os.PathLike, ranks: int = 2, episodes: int = 24, checkpoint: str | None = None
) -> dict[str, Any]:
    """Seconds an episode of a search on one and on several ranks; on a CPU with one thread each.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        ranks (int): Defaults to 2.
        episodes (int): Of each search. Defaults to 24.
        checkpoint (str | None): Weights of the dense model. Defaults to the config's ``load_from``.

    Returns:
        dict[str, Any]: Seconds an episode for either number of ranks, and how many times faster the several are.

    Raises:
        AutoDFPError: A search failed.
    """
    seconds = {}
    for count in (1, ranks):
        with tempfile.TemporaryDirectory() as scratch:
            options = {'autodfp.compare': False, 'autodfp.opening_lams': [], 'autodfp.allocate': False}
            call = dict(
                config=str(config), checkpoint=checkpoint, work_dir=scratch, episodes=episodes, launcher='pytorch'
            )
            code = f'from mmautodfp.apis import prune; prune(**{call!r}, cfg_options={options!r})'
            launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={count}']
            environment = os.environ | dict(OMP_NUM_THREADS='1')
            result = subprocess.run(
                [*launcher, '--no-python', sys.executable, '-c', code], env=environment, capture_output=True, text=True
            )
            if result.returncode:
                raise AutoDFPError(f'the search on {count} ranks failed: {result.stderr.strip().splitlines()[-1]}')
            seconds[count] = load_json(Path(scratch) / 'summary.json', 'the summary')['seconds']['search'] / episodes
    return dict(
        episodes=episodes,
        seconds_per_episode=seconds,
        ratio=seconds[1] / seconds[ranks],
        machine=describe_machine() | dict(threads=1),
    )


def prepare_hook(config: str | os.PathLike, scratch: str, checkpoint: str | None) -> tuple[Runner, AutoDFPHook]:
    """A runner and a hook that is ready to search."""
    cfg = load_config(config, scratch, 'none', None)
    cfg.load_from = find_checkpoint(checkpoint or cfg.get('load_from'), config)
    cfg.log_level = 'ERROR'
    # The scratch folder goes, and a visualizer with a name is kept for the next runner.
    cfg.visualizer = dict(type='mmengine.Visualizer', vis_backends=[])
    hook = build(HOOKS, cfg.autodfp.to_dict())
    with quiet():
        runner = build_runner(cfg)
        runner.load_or_resume()
        hook.prepare(runner)
    return runner, hook


def _restrict_validation(runner: Runner, hook: AutoDFPHook, scratch: Path) -> None:
    """Let the runner's validation see the images of the reward and no others."""
    cfg = runner.cfg
    chosen = {os.path.basename(image) for image in hook.reward.images}
    content = load_json(hook.reward.annotation_file, 'the annotations')
    content['images'] = [image for image in content['images'] if os.path.basename(image['file_name']) in chosen]
    ids = {image['id'] for image in content['images']}
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in ids]
    save_json(content, scratch / 'subset.json')
    loader = copy.deepcopy(cfg.val_dataloader)
    loader.dataset.ann_file = cfg.val_evaluator.ann_file = str(scratch / 'subset.json')
    runner._val_dataloader, runner._val_evaluator = loader, cfg.val_evaluator
    runner.val()  # builds the loop and starts the workers


def _reward_parts(hook: AutoDFPHook, plan: PruningPlan, repeat: int) -> dict[str, float]:
    """Where an episode's seconds go, on one thread, so that they add up."""
    reward, clock = hook.reward, {}

    def timed(name: str, call: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            wait_for_gpu()
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                wait_for_gpu()
                clock[name] = clock.get(name, 0.0) + time.perf_counter() - start

        return run

    heads = reward.detector.predictors() if reward.detector else []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as patches:
        patches.callback(torch.set_num_threads, threads)
        for head in heads:
            patches.enter_context(patch.object(head, 'predict_by_feat', timed('post_processing', head.predict_by_feat)))
        patches.enter_context(patch.object(reward, 'detect', timed('detect', reward.detect)))
        patches.enter_context(patch.object(reward, 'score', timed('mAP', reward.score)))
        episodes = []
        for _ in range(repeat + 1):
            clock.clear()
            timed('episode', hook.evaluate)(plan)
            episodes.append(dict(clock))
    parts = {name: statistics.median(e.get(name, 0.0) for e in episodes[1:]) for name in episodes[0]}
    post_processing = parts.get('post_processing', 0.0)
    return dict(
        episode=parts['episode'],
        forward=parts['detect'] - post_processing,
        post_processing=post_processing,
        mAP=parts['mAP'],
        surgery=parts['episode'] - parts['detect'] - parts['mAP'],
    )


@contextlib.contextmanager
def quiet():
    """No tables and no log lines, inside."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
