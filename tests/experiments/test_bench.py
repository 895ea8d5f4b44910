"""What experiments have in common: what they report, and which earlier results they go on with."""

import pytest
from conftest import REPO

from mmautodfp.experiments import bench as module
from mmautodfp.experiments.bench import Bench, search_in, spearman, to_report
from mmautodfp.experiments.shares import build_task
from mmautodfp.graph import find_groups
from mmautodfp.hooks import HookSettings
from mmautodfp.reconstruction import PruneOnly
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import save_json

CONFIG = 'configs/demo/vgg_digits_autodfp.py'


def test_figures_are_of_what_is_reported_whatever_rewards_a_search():
    own = dict(type='AccuracyReward', num_images=1000, metric='probability', precision='auto')
    assert to_report(own) == own | dict(num_images=None, metric='top1', precision='float32')
    assert to_report(dict(type='CocoReward', metric='segm')) == dict(type='CocoReward', metric='segm', num_images=None)


def test_figures_are_not_of_a_reward_without_data():
    with pytest.raises(AutoDFPError, match='but the reward of the config is SyntheticReward; name a config'):
        to_report(dict(type='SyntheticReward', images=dict(size=64)))


def test_samples_without_spread_are_not_correlated():
    assert spearman([1, 2, 3], [2, 2, 2]) == 0
    assert spearman([1, 2, 3, 4], [1, 3, 2, 8]) == pytest.approx(0.8)


def test_an_earlier_result_is_gone_on_with_under_the_same_settings_overrides_and_weights_alone(other_weights):
    known = Bench(CONFIG).take_up(None, share=0.5)
    assert Bench(CONFIG).take_up(known, share=0.5) == known
    with pytest.raises(AutoDFPError, match=r'measured with share=0\.5, but share=0\.4 is asked for'):
        Bench(CONFIG).take_up(known, share=0.4)
    other = Bench(CONFIG, cfg_options={'autodfp.p_min': 0.3})
    with pytest.raises(
        AutoDFPError, match=r"measured with cfg_options={}, but cfg_options={'autodfp\.p_min': 0\.3} is"
    ):
        other.take_up(known, share=0.5)
    with pytest.raises(AutoDFPError, match=r"measured with weights='sha256 \w{16}', but weights='sha256 .* is asked"):
        Bench(CONFIG, other_weights).take_up(known, share=0.5)
    known.pop('weights')
    with pytest.raises(AutoDFPError, match='the earlier result does not tell with what weights it was measured, but'):
        Bench(CONFIG).take_up(known, share=0.5)


@pytest.fixture
def played(monkeypatch) -> list[int]:
    """Episodes of the searches that are run; each ends at once."""
    found = []

    def prune(config, work_dir, episodes, **_):
        found.append(episodes)
        save_json(dict(test={}, episodes=episodes), f'{work_dir}/summary.json')

    monkeypatch.setattr(module, 'prune', prune)
    return found


def test_a_search_of_other_settings_or_weights_is_not_passed_off_as_this_one(tmp_path, played, other_weights):
    options = {'test_dataloader.dataset.indices': 8}
    asked = dict(config=CONFIG, episodes=2, preserve_ratio=0.5, seed=0, cfg_options=options)
    for _ in range(2):
        search_in(tmp_path / 'run', **asked)
    for other, message in (
        (dict(seed=1), 'seed=0, but seed=1 is asked for'),
        (dict(checkpoint=other_weights), r"weights='sha256 \w{16}', but weights='sha256 .* is"),
        (dict(cfg_options=options | dict(load_from=other_weights)), "weights='sha256 .*, but weights='sha256 .* is"),
        (dict(cfg_options=options | {'autodfp.reconstructor.type': 'PruneOnly'}), "reconstructor=.*'PruneOnly'"),
        (dict(cfg_options={'test_dataloader.dataset.indices': 4}), r'cfg_options={.*: 8}, but cfg_options={.*: 4}'),
    ):
        with pytest.raises(AutoDFPError, match=f'the search run was measured with {message}'):
            search_in(tmp_path / 'run', **asked | other)
    (tmp_path / 'run/asked.json').unlink()
    with pytest.raises(AutoDFPError, match='the search run does not tell with what target it was measured, but'):
        search_in(tmp_path / 'run', **asked)
    assert played == [2]


def test_a_finished_search_is_not_run_again_and_has_as_many_episodes_as_the_hook_unless_told(tmp_path, played):
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


def test_plans_without_a_search_keep_to_the_configs_divisor_and_widest_share():
    bench = Bench(CONFIG, cfg_options={'autodfp.channel_divisor': 4, 'autodfp.p_max': 0.75})
    assert bench.task().dense_widths == [24, 24, 48, 48, 48]
    for plan in (bench.task(0.9).uniform_plan(), build_task(bench, 'network', 0.9, PruneOnly()).uniform_plan()):
        assert list(plan.widths.values()) == [16, 16, 36, 36, 36]  # 0.75 of each, as multiples of 4
    assert all(width % 4 == 0 for width in bench.uniform_widths(0.5))


def test_the_residual_streams_that_a_config_asks_for_are_measured_too(small_demo):
    config, options = 'configs/demo/retinanet_digits_autodfp.py', {'autodfp.residual_streams': True}
    found = Bench(config, cfg_options=small_demo | options).task()
    inside = find_groups(found.module)  # of blocks
    assert {group.name for group in inside} < {group.name for group in found.groups}
