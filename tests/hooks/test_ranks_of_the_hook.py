"""The hook's preparation on two ranks: one of them measures, and one that fails ends it on both."""

import os
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from conftest import REPO
from gloo_ranks import on_ranks
from mmengine.config import Config
from mmengine.runner import Runner

from mmautodfp.hooks import preparation
from mmautodfp.registry import HOOKS, build
from mmautodfp.rewards import SyntheticReward

OPTIONS = {
    'autodfp.budget': dict(type='LatencyBudget', preserve_ratio=0.97, points=2, repeat=1),
    'autodfp.agent.warmup_episodes': 1,
    'autodfp.reconstructor.images': dict(num_images=4, size=64, batch_size=2),
    'autodfp.reward.images': dict(num_images=2, size=64),
}


def prepare(rank: int, folder: Path, failing: tuple[str, int] | None):
    """How often the rank measured, and what the dense module takes by its limit; ``failing`` is a step and a rank."""
    os.chdir(REPO)
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

    measure = partial(step, 'measuring', preparation.measure_latency_costs)
    with (
        patch.object(preparation, 'measure_latency_costs', side_effect=measure) as measured,
        patch.object(SyntheticReward, 'prepare', partial(step, 'loading', hook.reward.prepare)),
        patch.object(hook.budget, 'bind', partial(step, 'binding', hook.budget.bind)),
    ):
        hook.prepare(runner)
    return measured.call_count, hook.budget.limit


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
