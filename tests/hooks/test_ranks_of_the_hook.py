"""The hook on two ranks: they share the work, and one that fails ends it on both."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import REPO
from demo_helpers import CONFIG, read
from gloo_ranks import free_port, on_ranks
from mmengine.config import Config
from mmengine.runner import Runner

from mmautodfp.costs import Budget
from mmautodfp.rewards import SyntheticReward
from mmautodfp.search import counting, task
from mmautodfp.utils.registry import HOOKS, build

pytestmark = pytest.mark.slow  # whole runs

OPTIONS = {
    # Reachable whatever a single measurement says on a busy machine.
    'autodfp.budget': dict(type='LatencyBudget', preserve_ratio=1.0, points=2, repeat=1),
    'autodfp.agent.warmup_episodes': 1,
    'autodfp.reconstructor.images': dict(num_images=4, size=64, batch_size=2),
    'autodfp.reward.images': dict(num_images=2, size=64),
}


def prepare(rank: int, folder: Path, failing: tuple[str, int] | None):
    """How often the rank measured, and what the dense module takes by its limit; ``failing`` is a step and a rank."""
    os.environ['XDG_CACHE_HOME'] = str(folder)
    cfg = Config.fromfile('configs/demo/faster_rcnn_digits_zero_data.py')
    cfg.merge_from_dict(OPTIONS)
    cfg.work_dir, cfg.log_level = str(folder / str(rank)), 'ERROR'
    hook = build(HOOKS, cfg.autodfp.to_dict())
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()

    def step(name, call, *args, **kwargs):
        if (name, rank) == failing:
            raise OSError('the disk is full')
        return call(*args, **kwargs)

    measure, bind = partial(step, 'measuring', counting.measure_latency_costs), Budget.bind
    with (
        patch.object(counting, 'measure_latency_costs', side_effect=measure) as measured,
        patch.object(SyntheticReward, 'prepare', partial(step, 'loading', hook.reward.prepare)),
        patch.object(Budget, 'bind', lambda *args: step('binding', bind, *args)),
    ):
        hook.prepare(runner)
    return measured.call_count, hook.task.constraint.budgets[0].limit


def test_the_first_rank_measures_and_all_keep_to_its_limit(tmp_path):
    first, second = on_ranks(partial(prepare, folder=tmp_path, failing=None))
    assert (first[0], second[0]) == (1, 0)
    assert first[1] == second[1] > 0


@pytest.mark.parametrize(
    'failing',
    [('loading', 0), ('loading', 1), ('measuring', 0), ('binding', 1)],
    ids=lambda step: f'{step[0]}_{step[1]}',
)
def test_a_rank_that_fails_in_the_preparation_ends_it_on_all(failing, tmp_path):
    found = on_ranks(partial(prepare, folder=tmp_path, failing=failing))
    rank = failing[1]
    assert found[rank] == 'OSError: the disk is full'
    assert found[1 - rank] == (
        f'AutoDFPError: rank {rank} failed, which ends the job on all ranks: OSError: the disk is full'
    )


def finalize(rank: int, folder: Path):
    """Search one episode, and fail on the second rank in the full pass of the plan that was found."""
    cfg = Config.fromfile('configs/demo/faster_rcnn_digits_zero_data.py')
    cfg.merge_from_dict({key: value for key, value in OPTIONS.items() if 'budget' not in key})
    cfg.work_dir, cfg.log_level = str(folder / str(rank)), 'ERROR'
    hook = build(HOOKS, cfg.autodfp.to_dict() | dict(num_episodes=1, compare=False, report=False))
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    apply = task.PruningTask.apply

    def fail(self, plan, final=False):
        if final and rank == 1:
            raise OSError('the disk is full')
        return apply(self, plan, final)

    with patch.object(task.PruningTask, 'apply', fail):
        hook.before_test(runner)


def test_a_rank_that_fails_in_the_full_pass_ends_it_on_all(tmp_path):
    found = on_ranks(partial(finalize, folder=tmp_path))
    assert found[1] == 'OSError: the disk is full'
    assert found[0] == 'AutoDFPError: rank 1 failed, which ends the job on all ranks: OSError: the disk is full'


def on_two_ranks(small_demo, folder, **options) -> subprocess.CompletedProcess:
    options = [f'{key}={value}' for key, value in (small_demo | options).items()]
    tool = [CONFIG, '2', '--device=cpu', f'--work-dir={folder}', '--cfg-options', *options]
    environment = os.environ | dict(
        PYTHONPATH=str(REPO), OMP_NUM_THREADS='1', PORT=str(free_port()), PYTHON=sys.executable
    )
    return subprocess.run(['tools/dist_prune.sh', *tool], env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_share_the_episodes_and_agree_with_one_where_nothing_is_learned(demo_run, small_demo, tmp_path):
    result = on_two_ranks(small_demo, tmp_path)
    assert result.returncode == 0, result.stderr
    ours, alone = (read(path / 'summary.json') for path in (tmp_path, demo_run[0]))
    assert ours['ranks'] == 2
    assert ours['episodes'] == 4
    for row, expected in zip(ours['results'][:-1], alone['results'][:-1], strict=True):
        assert row['module_params'] == expected['module_params']
        # One thread a rank and two in one process: sums are taken in another order.
        assert row['held_out_metric'] == pytest.approx(expected['held_out_metric'], abs=2e-3)
    rewards = [torch.load(path / 'search.pth')['history']['rewards'] for path in (tmp_path, demo_run[0])]
    assert rewards[0][:3].tolist() == pytest.approx(rewards[1][:3].tolist(), abs=2e-2)  # the opening's


def test_a_rank_that_fails_ends_the_job_with_its_error(small_demo, tmp_path):
    (tmp_path / 'mmautodfp_broken.py').write_text(
        'from mmengine.dist import get_rank\n'
        'from mmautodfp.registry import REWARDS\n'
        'from mmautodfp.rewards import CocoReward\n\n'
        '@REWARDS.register_module()\n'
        'class Broken(CocoReward):\n'
        '    def __call__(self, model):\n'
        '        if get_rank() == 1:\n'
        "            raise OSError('the image has vanished')\n"
        '        return super().__call__(model)\n'
    )
    config = tmp_path / 'broken.py'
    config.write_text(
        f"_base_ = {str(REPO / CONFIG)!r}\ncustom_imports = dict(imports=['mmautodfp_broken'])\n"
        "autodfp = dict(reward=dict(type='Broken'))\n"
    )
    options = [f'{key}={value}' for key, value in small_demo.items()]
    environment = os.environ | dict(
        PYTHONPATH=f'{REPO}{os.pathsep}{tmp_path}', OMP_NUM_THREADS='1', PORT=str(free_port()), PYTHON=sys.executable
    )
    result = subprocess.run(
        ['tools/dist_prune.sh', config, '2', '--device=cpu', f'--work-dir={tmp_path}/w', '--cfg-options', *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode != 0
    assert 'rank 1 failed, which ends the job on all ranks: OSError: the image has vanished' in result.stderr
