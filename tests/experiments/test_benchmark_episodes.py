from types import SimpleNamespace

import pytest
from conftest import REPO
from mmengine.config import Config

from mmautodfp.experiments.benchmark_episodes import (
    benchmark_overhead,
    benchmark_precision,
    benchmark_racing,
    benchmark_ranks,
    benchmark_reward,
)
from mmautodfp.utils import AutoDFPError


@pytest.fixture(scope='module')
def config(small_demo, tmp_path_factory):
    """The demo made small, as a file."""
    cfg = Config.fromfile('configs/demo/faster_rcnn_digits_autodfp.py')
    cfg.merge_from_dict(small_demo)
    cfg.load_from = str(REPO / cfg.load_from)
    path = tmp_path_factory.mktemp('config') / 'small.py'
    cfg.dump(path)
    return path


@pytest.mark.slow
def test_the_parts_of_an_episode_add_up_and_val_sees_the_same_images(config):
    found = benchmark_reward(config, repeat=1)
    parts = dict(found['one_thread'])
    assert found['images'] == 8
    assert found['ratio'] == pytest.approx(found['seconds']['mmdet_val'] / found['seconds']['episode'])
    assert min(parts.values()) > 0
    assert parts.pop('episode') == pytest.approx(sum(parts.values()))


def test_the_parts_of_a_classifiers_episode_are_refused_in_a_sentence():
    with pytest.raises(AutoDFPError, match='is a AccuracyReward; name a config whose reward is CocoReward'):
        benchmark_reward('configs/demo/vgg_digits_autodfp.py')


@pytest.mark.slow
def test_precisions_are_compared_on_the_same_plans(config):
    found = benchmark_precision(config, plans=4, precision='bfloat16')
    full, half = (found['rewards'][name] for name in ('float32', 'bfloat16'))
    assert len(full) == len(half) == 4
    assert len(set(full)) > 1
    assert found['largest_difference'] == max(abs(a - b) for a, b in zip(full, half, strict=True)) < 0.1


@pytest.mark.slow
def test_races_are_compared_with_whole_searches_over_seeds(config):
    found = benchmark_racing(config, seeds=2)
    assert [row['seed'] for row in found['racing']] == [0, 1]
    # Four episodes are fewer than a race begins with: both ways are the same search.
    assert [row['best_reward'] for row in found['racing']] == [row['best_reward'] for row in found['whole']]
    assert found['means']['racing']['evaluated'] == 1
    assert found['stages'] == [2, 4, 8]


@pytest.mark.slow
def test_ranks_are_compared_on_as_many_episodes(config, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(REPO))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    found = benchmark_ranks(config, episodes=2)
    assert set(found['seconds_per_episode']) == {1, 2}
    assert found['ratio'] == found['seconds_per_episode'][1] / found['seconds_per_episode'][2]


@pytest.mark.parametrize(
    ('stderr', 'told'),
    [
        ('raise\nmmautodfp.AutoDFPError: no room\nTraceback\ntorch.ChildFailedError: \n====', 'no room'),
        ('torch.ChildFailedError: \nexitcode : -9\n====', 'exit code 1'),
    ],
)
def test_of_ranks_that_fail_their_own_error_is_told(monkeypatch, stderr, told):
    monkeypatch.setattr('subprocess.run', lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr))
    with pytest.raises(AutoDFPError, match=f'^the search on 1 ranks failed: {told}$'):
        benchmark_ranks('configs/demo/vgg_digits_autodfp.py', episodes=2)


def test_what_the_agent_costs_is_what_the_evaluations_leave_of_an_episode():
    result = benchmark_overhead(REPO / 'configs/demo/vgg_digits_autodfp.py', episodes=4)
    seconds = result['seconds']
    assert 0 < seconds['evaluation'] < seconds['episode']
    assert result['overhead'] > 0
