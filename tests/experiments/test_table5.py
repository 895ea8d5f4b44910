"""The table of detectors, on a demo detector and few images; and on photographs of COCO with random weights."""

import json

import pytest
import torch
from conftest import REPO, SHARED
from mmdet.registry import MODELS
from mmengine.config import Config

from mmautodfp.experiments.ablation import Bench
from mmautodfp.experiments.reproduce import DetectorSettings, reproduce_detectors
from mmautodfp.experiments.reproduce.detectors import AUTODFP, SEARCHED, markdown
from mmautodfp.experiments.shares import OURS
from mmautodfp.reconstruction import PruneOnly
from mmautodfp.utils import AutoDFPError

CONFIG = REPO / 'configs/demo/retinanet_digits_autodfp.py'
IMAGES = {'autodfp.reconstructor': dict(images=dict(size=64, num_images=8))}


@pytest.fixture(scope='module')
def table(small_demo, tmp_path_factory):
    out = tmp_path_factory.mktemp('table5')
    settings = DetectorSettings(
        out,
        [CONFIG],
        episodes=4,
        seeds=2,
        shares=dict(backbone=(0.9,), model=(0.7,)),
        cfg_options={key: value for key, value in small_demo.items() if 'budget' not in key} | IMAGES,
    )
    told = []
    return settings, reproduce_detectors(settings, told.append), told


@pytest.mark.slow
def test_rows_hold_what_the_pruned_detector_scores(table):
    settings, (found,), _ = table
    assert found['reason'] is None
    assert found['metric'] == 'bbox_mAP'
    options = settings.cfg_options | {'autodfp.reconstructor': dict(type='SyntheticLeastSquares', _delete_=True)}
    bench = Bench(CONFIG, cfg_options=options)
    assert found['dense'] == bench.reward(bench.model)
    task = bench.task(PruneOnly(), 0.9)
    row = found['rows']['backbone']['0.9']['pruned only, uniform']
    assert row['metric'] == task.evaluate(task.uniform_plan(), bench.reward)
    for target, share, cost in (('backbone', '0.9', 'params'), ('model', '0.7', 'flops')):
        rows = found['rows'][target][share]
        assert SEARCHED in rows
        assert (AUTODFP in rows) == (target == 'backbone')
        if target == 'model':
            assert all(row[cost] <= 0.7 for name, row in rows.items() if 'metric' in row)


@pytest.mark.slow
def test_searches_are_means_over_seeds_and_are_not_run_again(table):
    settings, (found,), told = table
    folders = sorted((settings.out / 'searches').iterdir())
    kinds = ('backbone_0.9_autodfp', 'backbone_0.9_ours', 'model_0.7_ours')
    assert [one.name for one in folders] == [f'{CONFIG.stem}_{kind}_seed{seed}' for kind in kinds for seed in (0, 1)]
    row = found['rows']['model']['0.7'][SEARCHED]
    summaries = [json.loads((one / 'summary.json').read_text()) for one in folders[-2:]]
    assert row['metrics'] == [summary['results'][-1]['held_out_metric'] for summary in summaries]
    assert row['metric'] == pytest.approx(sum(row['metrics']) / 2)
    assert row['deviation'] == pytest.approx(abs(row['metrics'][0] - row['metrics'][1]) / 2**0.5)
    assert 'rows without a search' in told[0]
    assert '6 searches of 4 episodes' in told[0]
    before = {one: (one / 'search.pth').stat().st_mtime_ns for one in folders}
    again = reproduce_detectors(settings, lambda _: None)
    assert again == json.loads((settings.out / 'table5.json').read_text())
    assert again[0]['rows'] == json.loads(json.dumps(found['rows']))
    assert {one: (one / 'search.pth').stat().st_mtime_ns for one in folders} == before
    other = DetectorSettings(
        settings.out, [CONFIG], shares=settings.shares, cfg_options=settings.cfg_options | {'autodfp.p_min': 0.3}
    )
    (refused,) = reproduce_detectors(other, lambda _: None)
    assert 'p_min' in refused['reason']


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
    config = tmp_path / 'gone.py'
    config.write_text(CONFIG.read_text().replace('{{ fileDirname }}', 'nowhere').replace('./', f'{CONFIG.parent}/'))
    (found,) = reproduce_detectors(DetectorSettings(tmp_path, [config]), lambda _: None)
    assert found['reason'] == 'no weights: retinanet_digits.pth is not there'
    with pytest.raises(AutoDFPError, match='no such file'):
        reproduce_detectors(DetectorSettings(tmp_path, [tmp_path / 'none.py']), lambda _: None)


@pytest.mark.slow
def test_photographs_of_coco_go_the_same_way(tmp_path):
    root = SHARED / 'data/coco'
    if not root.is_dir():
        pytest.skip(f'{root} with real COCO images is not there')
    config = REPO / 'configs/retinanet_autodfp.py'
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / cfg.load_from.rpartition('/')[2])
    annotations = 'annotations/instances_val2017_mini.json'
    options = {'autodfp.reconstructor': dict(images=dict(size=64, num_images=4), refinement=False)}
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
