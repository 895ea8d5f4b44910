"""Several budgets at once and widths that are multiples, through the whole run."""

import shutil
from pathlib import Path

import pytest
from demo_helpers import CONFIG, read
from mmengine.config import Config

from mmautodfp import runs as apis
from mmautodfp.utils import AutoDFPError

pytestmark = pytest.mark.slow  # whole runs

BUDGETS = [
    dict(type='ParamBudget', preserve_ratio=0.9),
    dict(type='FlopBudget', preserve_ratio=0.8, scope='model'),
    dict(type='LatencyBudget', preserve_ratio=0.97, points=2, repeat=1),
    dict(type='MemoryBudget', limit='95%', scope='model'),
]


@pytest.fixture(scope='module')
def options(small_demo) -> dict:
    return {key: value for key, value in small_demo.items() if 'budget' not in key} | {
        'autodfp.budget': BUDGETS,
        'autodfp.channel_divisor': 8,
    }


@pytest.fixture(scope='module')
def run(options, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp('run')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(work_dir / 'cache'))
        apis.prune(CONFIG, work_dir=str(work_dir), cfg_options=options)
    return work_dir


def test_every_plan_keeps_to_all_budgets_and_to_the_divisor(run):
    summary = read(run / 'summary.json')
    assert [budget['type'] for budget in summary['budget']] == [budget['type'] for budget in BUDGETS]
    assert summary['channel_divisor'] == 8
    dense, *others = summary['results']
    groups = read(run / 'strategy.json')['groups']
    for row in others:
        assert row['module_params']['ratio'] <= 0.9
        assert row['model_flops']['ratio'] <= 0.8
        assert row['module_latency']['ratio'] <= 0.97
        assert row['model_memory']['ratio'] <= 0.95
        assert row['widths']
        for name, width in row['widths'].items():
            assert width % 8 == 0 or width == groups[name]['num_channels']
    assert dense['module_latency']['ratio'] == 1
    assert list((run / 'cache/mmautodfp/latency').glob('*.json'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'autodfp.channel_divisor': 4}, 'channel_divisor=8, but channel_divisor=4'),
        ({'autodfp.channel_divisor': 1}, 'channel_divisor=8, but channel_divisor=1'),
        ({'autodfp.budget': BUDGETS[:2]}, 'constraint='),
    ],
)
def test_a_search_with_another_divisor_or_other_budgets_is_not_resumed(
    run, options, change, message, tmp_path, monkeypatch
):
    monkeypatch.setenv('XDG_CACHE_HOME', str(run / 'cache'))
    shutil.copy(run / 'search.pth', tmp_path)
    with pytest.raises(AutoDFPError, match=f'saved with {message}'):
        apis.prune(CONFIG, work_dir=str(tmp_path), episodes=5, resume=True, cfg_options=options | change)


def test_one_ratio_for_several_budgets_is_refused(options, tmp_path):
    with pytest.raises(AutoDFPError, match=r'but .* has 4; set each with'):
        apis.prune(CONFIG, work_dir=str(tmp_path), preserve_ratio=0.5, cfg_options=options)


def test_the_pruned_config_of_a_run_with_several_budgets_is_readable(run):
    layers = Config.fromfile(run / 'pruned.py').model.layers
    groups = read(run / 'strategy.json')['groups']
    kept = {name: len(group['keep']) for name, group in groups.items() if len(group['keep']) < group['num_channels']}
    assert {name: sizes['out_channels'] for name, sizes in layers.items() if 'out_channels' in sizes} == {
        f'backbone.{name}': width for name, width in kept.items()
    }
