"""What experiments have in common: what they report, and which earlier results they go on with."""

import pytest
from conftest import REPO

from mmautodfp.experiments import bench as module
from mmautodfp.experiments.bench import Bench, search_in, spearman, to_report
from mmautodfp.experiments.shares import build_task
from mmautodfp.hooks import HookSettings
from mmautodfp.reconstruction import PruneOnly
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import save_json

CONFIG = 'configs/demo/vgg_digits_autodfp.py'


def test_figures_are_of_what_is_reported_whatever_rewards_a_search():
    own = dict(type='AccuracyReward', num_images=1000, metric='probability', precision='auto')
    assert to_report(own) == own | dict(num_images=None, metric='top1', precision='float32')
    assert to_report(dict(type='CocoReward', metric='segm')) == dict(type='CocoReward', metric='segm', num_images=None)


def test_samples_without_spread_are_not_correlated():
    assert spearman([1, 2, 3], [2, 2, 2]) == 0
    assert spearman([1, 2, 3, 4], [1, 3, 2, 8]) == pytest.approx(0.8)


def test_an_earlier_result_is_gone_on_with_under_the_same_overrides_alone():
    known = Bench(CONFIG).take_up(None, share=0.5)
    assert Bench(CONFIG).take_up(known, share=0.5) == known
    with pytest.raises(AutoDFPError, match=r'measured with share=0\.5, but share=0\.4 is asked for'):
        Bench(CONFIG).take_up(known, share=0.4)
    other = Bench(CONFIG, cfg_options={'autodfp.p_min': 0.3})
    with pytest.raises(
        AutoDFPError, match=r"measured with cfg_options={}, but cfg_options={'autodfp\.p_min': 0\.3} is"
    ):
        other.take_up(known, share=0.5)


def test_a_finished_search_is_not_run_again_and_has_as_many_episodes_as_the_hook_unless_told(tmp_path, monkeypatch):
    played = []

    def prune(config, work_dir, episodes, resume):
        played.append(episodes)
        save_json(dict(test={}, episodes=episodes), f'{work_dir}/summary.json')

    monkeypatch.setattr(module, 'prune', prune)
    config = tmp_path / 'plain.py'
    config.write_text(f"_base_ = {str(REPO / CONFIG)!r}\nautodfp = dict(_delete_=True, type='AutoDFPHook')\n")
    config.write_text(config.read_text() + f'load_from = {str(REPO / "configs/demo/vgg_digits.pth")!r}\n')
    for _ in range(2):
        assert search_in(tmp_path / 'run', config)['episodes'] == HookSettings.num_episodes
    assert played == [HookSettings.num_episodes]
    more = HookSettings.num_episodes + 1
    assert search_in(tmp_path / 'run', config, more)['episodes'] == more
    config.write_text(config.read_text() + 'autodfp.update(p_min=0.3)\n')
    with pytest.raises(AutoDFPError, match=r'the search run was measured with p_min=0\.2, but p_min=0\.3 is asked for'):
        search_in(tmp_path / 'run', config)


def test_plans_without_a_search_keep_to_the_configs_divisor():
    bench = Bench(CONFIG, cfg_options={'autodfp.channel_divisor': 4})
    widths = build_task(bench, 'network', 0.5, PruneOnly()).uniform_plan().widths
    assert all(width % 4 == 0 for width in widths.values())
