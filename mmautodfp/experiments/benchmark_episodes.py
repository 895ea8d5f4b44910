"""The cost of a search's episodes, and of ways to make them cheaper; ``tools/benchmark.py`` runs it."""

import contextlib
import copy
import os
import re
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mmengine.runner import Runner

from mmautodfp.api import search
from mmautodfp.graph import join_path
from mmautodfp.hooks import AutoDFPHook
from mmautodfp.rewards import CocoReward
from mmautodfp.runs import load_search_config
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_json, save_json
from mmautodfp.utils.registry import REWARDS, build
from mmautodfp.utils.timing import describe_machine, median_in_turns, torch_threads

from .bench import prepare_hook, quiet, random_plans, require_held_out, spearman, timed


def benchmark_reward(config: str | os.PathLike, repeat: int = 5) -> dict[str, Any]:
    """Seconds of an episode of a search and of MMDetection's ``runner.val()`` on the same images.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        repeat (int): Measurements, of which the median counts. Defaults to 5.

    Returns:
        dict[str, Any]: Median seconds of an episode and of ``runner.val()``, both on the uniformly pruned model; the
        ratio of the two; the parts of an episode on one thread; the machine.

    Raises:
        AutoDFPError: The config's reward is not the COCO mAP.
    """
    runner, hook = prepare_hook(config)
    if not isinstance(hook.reward, CocoReward):
        raise AutoDFPError(
            f'an episode was to be compared with runner.val() on its images, but the reward of {config} is a '
            f'{type(hook.reward).__name__}; name a config whose reward is CocoReward'
        )
    plan = hook.task.uniform_plan()
    with tempfile.TemporaryDirectory() as scratch, quiet():
        _restrict_validation(runner, hook, Path(scratch))
        episode = lambda: hook.task.evaluate(plan, hook.reward)
        seconds = median_in_turns(dict(episode=episode), repeat, inference=False)
        with hook.task.apply(plan):
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


def benchmark_racing(config: str | os.PathLike, seeds: int = 5) -> dict[str, Any]:
    """Compare searches with and without racing, which stops hopeless plans early.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        seeds (int): Searches of each kind, with the seeds 0, 1, ... Defaults to 5.

    Returns:
        dict[str, Any]: For both kinds and each seed the best reward, the held-out metric of its plan, the share of the
        images that were evaluated and the seconds; and their means.

    Raises:
        AutoDFPError: No images are held out.
    """
    _, hook = prepare_hook(config)
    require_held_out(hook)
    told = hook.settings
    run = partial(search, hook.task, hook.reward, told.num_episodes, told.agent, told.opening_lams)
    ways: dict[str, list[dict]] = {'whole': [], 'racing': []}
    for seed in range(seeds):
        for way, rows in ways.items():
            with quiet():
                found = run(racing=way == 'racing', seed=seed)
            done = found.image_evaluations
            rows.append(
                dict(
                    seed=seed,
                    best_reward=found.reward,
                    held_out=hook.task.evaluate(found.plan, hook.held_out),
                    evaluated=done['done'] / done['without_racing'],
                    seconds=sum(found.history.seconds),
                )
            )
    means = {
        way: {key: statistics.mean(row[key] for row in found) for key in found[0] if key != 'seed'}
        for way, found in ways.items()
    }
    return dict(episodes=told.num_episodes, stages=hook.reward.stages, means=means, **ways, machine=describe_machine())


def benchmark_precision(config: str | os.PathLike, plans: int = 100, precision: str = 'auto') -> dict[str, Any]:
    """Compare the rewards of random plans in a lower precision with those in float32.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        plans (int): How many plans, see :func:`.bench.random_plans`. Defaults to 100.
        precision (str): To compare with float32. Defaults to 'auto'.

    Returns:
        dict[str, Any]: Spearman's rank correlation, the largest difference, and both rewards of each plan.
    """
    runner, hook = prepare_hook(config)
    settings = runner.cfg.autodfp.reward.to_dict()
    layers = [join_path(hook.task.path, name) for group in hook.task.groups for name in group.layers]
    rewards = {}
    for name in ('float32', precision):
        with quiet():
            reward = build(REWARDS, settings | dict(precision=name))
            reward.prepare(hook.task.model, runner.cfg.val_dataloader, layers)
        rewards[reward.precision] = reward
    found: dict[str, list[float]] = {name: [] for name in rewards}
    for plan in random_plans(hook.task, plans, hook.settings.seed):
        with hook.task.apply(plan):
            for name, reward in rewards.items():
                found[name].append(reward(hook.task.model))
    first, last = next(iter(found.values())), list(found.values())[-1]
    return dict(
        plans=plans,
        precision=list(found)[-1],
        spearman=spearman(first, last),
        largest_difference=max(abs(a - b) for a, b in zip(first, last, strict=True)),
        rewards=found,
        machine=describe_machine(),
    )


def benchmark_ranks(config: str | os.PathLike, episodes: int = 24) -> dict[str, Any]:
    """Seconds per episode of a search on one and on two ranks; on a CPU with one thread each.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        episodes (int): Of each search. Defaults to 24.

    Returns:
        dict[str, Any]: Seconds per episode by number of ranks, and the ratio of the two; the machine.

    Raises:
        AutoDFPError: A search failed.
    """
    load_search_config(config)  # for its error, which the ranks would wrap into others
    seconds = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as scratch:
            options = {'autodfp.compare': False, 'autodfp.opening_lams': [], 'autodfp.allocate': False}
            call = dict(config=str(config), work_dir=scratch, episodes=episodes, launcher='pytorch')
            code = f'from mmautodfp.runs import prune; prune(**{call!r}, cfg_options={options!r})'
            launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={count}']
            environment = os.environ | dict(OMP_NUM_THREADS='1')
            result = subprocess.run(
                [*launcher, '--no-python', sys.executable, '-c', code], env=environment, capture_output=True, text=True
            )
            if result.returncode:
                found = re.search('error: (.+)', result.stderr, re.IGNORECASE)  # of a rank; torchrun's comes later
                told = found[1] if found else f'exit code {result.returncode}'
                raise AutoDFPError(f'the search on {count} ranks failed: {told}')
            seconds[count] = load_json(Path(scratch) / 'summary.json', 'the summary')['seconds']['search'] / episodes
    return dict(
        episodes=episodes,
        seconds_per_episode=seconds,
        ratio=seconds[1] / seconds[2],
        machine=describe_machine() | dict(threads=1),
    )


def benchmark_overhead(config: str | os.PathLike, episodes: int = 24) -> dict[str, Any]:
    """Time that the agent adds to the evaluation of its plans; a quarter of the episodes is warm-up.

    Args:
        config (str | os.PathLike): Config with an ``autodfp`` entry.
        episodes (int): Of the search; those after the warm-up count. Defaults to 24.

    Returns:
        dict[str, Any]: Median ``seconds`` of an episode with learning and of its evaluation; the ``overhead`` of the
        former, as a share of the latter; the machine.
    """
    _, hook = prepare_hook(config)
    agent = dict(hook.settings.agent)
    if 'warmup_episodes' in agent:
        agent['warmup_episodes'] = max(1, episodes // 4)
    clock: list[float] = []
    hook.task.evaluate = timed(hook.task.evaluate, clock.append)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        file = Path(scratch) / 'search.pth'
        found = search(hook.task, hook.reward, episodes, agent, (), False, checkpoint=file)
    learned = slice(episodes // 4, None)
    shares = [whole / own - 1 for whole, own in zip(found.history.seconds[learned], clock[learned], strict=True)]
    return dict(
        episodes=episodes,
        seconds=dict(
            episode=statistics.median(found.history.seconds[learned]), evaluation=statistics.median(clock[learned])
        ),
        overhead=statistics.median(shares),
        machine=describe_machine(),
    )


def _restrict_validation(runner: Runner, hook: AutoDFPHook, scratch: Path) -> None:
    """Restrict the runner's validation to the images of the reward."""
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
    """Seconds of the parts of an episode; on one thread, so that they add up."""
    reward = hook.reward
    seconds: dict[str, list[float]] = {part: [] for part in ('episode', 'detect', 'post_processing', 'mAP')}
    methods = [(reward, 'detect', 'detect'), (reward, 'score', 'mAP')]
    heads = reward.stand_in.predictors() if reward.stand_in else []
    methods += [(head, 'predict_by_feat', 'post_processing') for head in heads]
    episodes = []
    with torch_threads(1), contextlib.ExitStack() as patches:
        for owner, name, part in methods:
            patches.enter_context(patch.object(owner, name, timed(getattr(owner, name), seconds[part].append)))
        for _ in range(repeat + 1):
            timed(hook.task.evaluate, seconds['episode'].append)(plan, reward)
            episodes.append({part: sum(spent) for part, spent in seconds.items()})
            for spent in seconds.values():
                spent.clear()
    parts = {part: statistics.median(episode[part] for episode in episodes[1:]) for part in seconds}
    return dict(
        episode=parts['episode'],
        forward=parts['detect'] - parts['post_processing'],
        post_processing=parts['post_processing'],
        mAP=parts['mAP'],
        surgery=parts['episode'] - parts['detect'] - parts['mAP'],
    )
