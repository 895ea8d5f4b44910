"""The table of detectors, on a demo detector and few images; and on photographs of COCO with random weights."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPO, SHARED
from mmdet.registry import MODELS
from mmengine.config import Config

from mmautodfp.experiments.bench import Bench
from mmautodfp.experiments.reproduce.detectors import (
    AUTODFP,
    SEARCHED,
    DetectorSettings,
    markdown,
    options_of,
    reproduce_detectors,
)
from mmautodfp.experiments.shares import OURS, build_task
from mmautodfp.reconstruction import PruneOnly
from mmautodfp.utils import AutoDFPError

CONFIG = REPO / 'configs/demo/retinanet_digits_autodfp.py'
OURS_SMALL = {'autodfp.reconstructor': dict(images=dict(size=64, num_images=8), refinement=False)}


@pytest.fixture(scope='module')
def table(small_demo, tmp_path_factory):
    out = tmp_path_factory.mktemp('table5')
    options = {key: value for key, value in small_demo.items() if 'budget' not in key} | OURS_SMALL
    settings = DetectorSettings(out, [CONFIG], shares=dict(backbone=(0.9,), model=(0.7,)), cfg_options=options)
    (unsearched,) = reproduce_detectors(settings, lambda _: None)
    told = []
    searched = replace(settings, episodes=3, seeds=2, shares=dict(backbone=(0.9,)))
    (found,) = reproduce_detectors(searched, told.append)
    return searched, unsearched, found, told


@pytest.mark.slow
def test_rows_hold_what_the_pruned_detector_scores(table):
    settings, unsearched, found, _ = table
    assert unsearched['reason'] is None
    assert unsearched['metric'] == 'bbox_mAP'
    bench = Bench(
        CONFIG, cfg_options=settings.cfg_options | {'autodfp.reconstructor': dict(type='PruneOnly', _delete_=True)}
    )
    assert unsearched['dense'] == bench.reward(bench.model)
    task = build_task(bench, 'backbone', 0.9, PruneOnly())
    rows = unsearched['rows']['backbone']['0.9']
    assert rows['pruned only, uniform']['metric'] == task.evaluate(task.uniform_plan(), bench.reward)
    whole = unsearched['rows']['model']['0.7']
    assert len(whole) == 7
    assert all(row['flops'] <= 0.7 for row in whole.values() if 'metric' in row)
    for name, row in rows.items():
        assert found['rows']['backbone']['0.9'][name] == row  # searches were added to it


@pytest.mark.slow
def test_searches_are_means_over_seeds_and_are_not_run_again(table):
    settings, _, found, told = table
    folders = sorted((settings.out / 'searches').iterdir())
    kinds = ('autodfp', 'ours')
    assert [one.name for one in folders] == [
        f'{CONFIG.stem}_backbone_0.9_{kind}_seed{s}' for kind in kinds for s in (0, 1)
    ]
    summaries = [json.loads((one / 'summary.json').read_text()) for one in folders]
    assert [one['autodfp']['reconstructor']['type'] for one in summaries[1:3]] == [
        'SimilarityReconstructor',
        'SyntheticLeastSquares',
    ]
    for method, own in ((AUTODFP, summaries[:2]), (SEARCHED, summaries[2:])):
        row = found['rows']['backbone']['0.9'][method]
        first, second = row['metrics']
        assert [first, second] == [one['results'][-1]['held_out_metric'] for one in own]
        assert row['metric'] == pytest.approx((first + second) / 2)
        assert row['deviation'] == pytest.approx(abs(first - second) / 2**0.5)
    assert '4 searches of 3 episodes' in told[0]
    before = {one: (one / 'search.pth').stat().st_mtime_ns for one in folders}
    (again,) = reproduce_detectors(settings, lambda _: None)
    assert again == json.loads((settings.out / 'table5.json').read_text())[0]
    assert again['rows'] == json.loads(json.dumps(found['rows']))
    assert {one: (one / 'search.pth').stat().st_mtime_ns for one in folders} == before
    options = settings.cfg_options | {'autodfp.reconstructor': dict(ridge=0.1)}
    (refused,) = reproduce_detectors(replace(settings, cfg_options=options), lambda _: None)
    assert 'reconstructor' in refused['reason']


@pytest.fixture
def _unmeasured(monkeypatch):
    """Let the dense model have a metric, and leave out the rows without a search."""

    def measure(config, target, shares, checkpoint, options, known, report):
        report(dict(metric='bbox_mAP', images=1000, dense=0.5, seconds=60.0, rows={}), 'dense 0.5000')

    monkeypatch.setattr('mmautodfp.experiments.reproduce.detectors.measure_shares', measure)
    monkeypatch.setattr('mmautodfp.experiments.reproduce.detectors.require_data', lambda *_: None)


@pytest.mark.usefixtures('_unmeasured')
def test_searches_that_would_not_be_judged_are_refused_before_anything_is_measured(tmp_path):
    options, told = {'autodfp.compare': False}, []
    settings = DetectorSettings(tmp_path, [CONFIG], shares=dict(backbone=(0.9,)), cfg_options=options)
    (found,) = reproduce_detectors(replace(settings, episodes=1), told.append)
    assert 'judged on held-out images, which autodfp.compare=False leaves out' in found['reason']
    assert 'dense' not in found
    (unsearched,) = reproduce_detectors(settings, told.append)
    assert unsearched['reason'] is None


@pytest.mark.usefixtures('_unmeasured')
def test_a_search_that_was_not_judged_on_held_out_images_is_told(tmp_path, monkeypatch):
    summary = dict(results=[dict(held_out_metric=None)])
    monkeypatch.setattr('mmautodfp.experiments.reproduce.detectors.search_in', lambda *_, **__: summary)
    settings = DetectorSettings(tmp_path, [CONFIG], episodes=1, shares=dict(backbone=(0.9,)))
    (found,) = reproduce_detectors(settings, lambda _: None)
    assert re.match(r'the search in retinanet_.*_0\.9_autodfp_seed0 was not judged on held-out images', found['reason'])


@pytest.mark.usefixtures('_unmeasured')
def test_what_is_to_come_is_told_first_whatever_the_config_leaves_to_the_defaults(tmp_path):
    config = tmp_path / 'bare.py'
    bare = "autodfp = dict(_delete_=True, type='mmautodfp.AutoDFPHook', reward=dict(type='CocoReward'))"
    config.write_text(f"_base_ = '{CONFIG}'\n{bare}\nmodel = dict(type='mmdet.RetinaNet')\n")
    settings = DetectorSettings(tmp_path, [config], shares=dict(backbone=(0.9, 0.7), model=(0.7,)))
    told = []
    (found,) = reproduce_detectors(settings, told.append)
    assert (found['reason'], found['model'], found['search_images']) == (None, 'RetinaNet', 500)
    assert '(19 rows without a search, 19 minutes' in told[0]  # the model's backbone alone is one more


def test_a_config_whose_reward_has_no_data_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr('mmautodfp.experiments.reproduce.detectors.require_data', lambda *_: None)
    settings = DetectorSettings(tmp_path, [REPO / 'configs/demo/retinanet_digits_zero_data.py'])
    (found,) = reproduce_detectors(settings, lambda _: None)
    assert found['reason'].startswith('figures are measured on annotated images, but the reward of the config is Synth')


@pytest.mark.parametrize(
    'told',
    [
        {'autodfp.reconstructor': dict(images=dict(size=64))},
        {'autodfp.reconstructor.images.size': 64},  # as on the command line
    ],
)
def test_what_is_told_of_a_reconstructor_is_of_ours(tmp_path, told):
    settings = DetectorSettings(tmp_path, [CONFIG], cfg_options=told | {'autodfp.p_min': 0.3})
    found = {}
    for method in (AUTODFP, OURS):
        cfg = Config.fromfile(CONFIG)
        cfg.merge_from_dict(options_of(settings, 'model', method))
        assert (cfg.autodfp.target, cfg.autodfp.p_min) == ('model', 0.3)
        found[method] = cfg.autodfp.reconstructor
    assert found[AUTODFP] == dict(type='SimilarityReconstructor')
    assert found[OURS] == dict(type='SyntheticLeastSquares', images=dict(size=64))


def test_a_table_tells_what_was_not_measured_and_the_papers_figures(tmp_path):
    row = dict(metric=0.5, deviation=0.01, flops=0.7, params=0.6)
    known = dict(
        config='a', model='RetinaNet', dense=0.8, reason=None, rows=dict(backbone={'0.9': {OURS: row, AUTODFP: row}})
    )
    missing = dict(config='b', rows={}, reason='no weights: b.pth is not there')
    lines = markdown([known, missing]).splitlines()
    assert lines[0] == "## Shares of the backbone's parameters"
    assert f'| RetinaNet (0.800) | {OURS} | 0.500 ± 0.010 (62.5%) |' in lines
    assert '| RetinaNet, COCO (36.3) | the paper | 35.2 (97.0%) |' in lines
    assert lines[-1] == '- b: no weights: b.pth is not there'
    lines = markdown([known, known | dict(config='c')]).splitlines()
    assert [line.split()[1] for line in lines if OURS in line] == ['a', 'c']
    config = tmp_path / 'gone.py'
    config.write_text(f"_base_ = {str(CONFIG)!r}\nload_from = 'nowhere/retinanet_digits.pth'\n")
    (found,) = reproduce_detectors(DetectorSettings(tmp_path, [config]), lambda _: None)
    assert found['reason'] == 'no weights: retinanet_digits.pth is not there'
    (found,) = reproduce_detectors(DetectorSettings(tmp_path, [tmp_path / 'none.py']), lambda _: None)
    assert 'none.py' in found['reason']
    plain = tmp_path / 'plain.py'
    plain.write_text(f'_base_ = {str(REPO / "configs/demo/retinanet_digits.py")!r}\n')
    config.write_text(f"_base_ = {str(plain)!r}\nautodfp = dict(type='AutoDFPHook')\n")
    found = reproduce_detectors(DetectorSettings(tmp_path, [plain, config]), lambda _: None)
    assert [one['reason'].partition(' ')[2] for one in found] == [
        "was to be pruned, but it has no 'autodfp' entry; put '_base_/autodfp.py' among its bases",
        f'5 takes the weights that a config names, but {config} has no load_from; add it',
    ]


@pytest.mark.slow
def test_photographs_of_coco_go_the_same_way(tmp_path):
    root = SHARED / 'data/coco'
    if not root.is_dir():
        pytest.skip(f'{root} with real COCO images is not there')
    config = REPO / 'configs/retinanet_autodfp.py'
    # A quarter of its width and few boxes: the way is the same, and otherwise it takes minutes.
    narrow = {'model.backbone.base_channels': 16, 'model.neck.in_channels': [64, 128, 256, 512]}
    narrow |= {'model.neck.out_channels': 64, 'model.bbox_head.in_channels': 64, 'model.bbox_head.feat_channels': 64}
    narrow |= {'model.test_cfg.nms_pre': 50, 'model.test_cfg.max_per_img': 5}
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(narrow)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / cfg.load_from.rpartition('/')[2])
    annotations = 'annotations/instances_val2017_mini.json'
    options = narrow | {'autodfp.reconstructor': dict(images=dict(size=64, num_images=4), refinement=False)}
    for split in ('val', 'test'):
        options |= {
            f'{split}_dataloader.num_workers': 0,
            f'{split}_dataloader.persistent_workers': False,
            f'{split}_dataloader.dataset.data_root': str(root),
            f'{split}_dataloader.dataset.ann_file': annotations,
            f'{split}_dataloader.dataset.pipeline.1.scale': (128, 96),
            f'{split}_evaluator.ann_file': str(root / annotations),
        }
    settings = DetectorSettings(tmp_path, [config], tmp_path, shares=dict(backbone=(0.9,)), cfg_options=options)
    (found,) = reproduce_detectors(settings, lambda _: None)
    assert found['reason'] is None
    assert found['images'] == 106
    rows = found['rows']['backbone']['0.9']
    assert len(rows) == 6
    assert all(0 < row['params'] < 1 and row['metric'] == pytest.approx(0, abs=0.01) for row in rows.values())
    assert str(tmp_path) not in (tmp_path / 'table5.json').read_text()


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(seeds=0), 'seeds=0; it must be greater than or equal to 1'),
        (dict(shares=dict(backbone=[3.0])), 'item 1 of it must be less than or equal to 1'),
        (dict(shares=dict(neck=[0.5])), "it must be 'backbone' or 'model'"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_measured(wrong, message):
    with pytest.raises(AutoDFPError, match=f'table 5 was asked for .*{message}'):
        DetectorSettings(Path('out'), [CONFIG], **wrong)
