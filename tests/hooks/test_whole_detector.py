"""Detectors pruned as a whole, from the config to stock tools."""

import cv2
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.runner import Runner

from mmautodfp.deploy.onnx import export_onnx
from mmautodfp.runs import prune
from mmautodfp.utils.fileio import load_json

pytestmark = pytest.mark.slow  # whole runs

SMALL = {
    'autodfp.budget.preserve_ratio': 0.6,
    'autodfp.num_episodes': 2,
    'autodfp.reconstructor.images.num_images': 16,
    'autodfp.reconstructor.sensitivity': 4,
}


@pytest.fixture(scope='module', params=['faster_rcnn', 'retinanet', 'fcos', 'mask_rcnn'])
def run(request, small_demo, tmp_path_factory):
    name = request.param
    work_dir = tmp_path_factory.mktemp(name)
    options = small_demo | SMALL | {'visualizer.name': f'whole_{name}'}
    return (
        name,
        work_dir,
        prune(f'configs/demo/{name}_digits_whole_autodfp.py', None, str(work_dir), cfg_options=options),
    )


def test_the_whole_models_flops_are_within_the_limit_and_heads_are_narrower_too(run):
    name, work_dir, _ = run
    summary = load_json(work_dir / 'summary.json', 'the summary')
    (row,) = (row for row in summary['results'] if row['name'] == 'AutoDFP')
    assert row['model_flops']['ratio'] <= 0.6
    parts = {'backbone', 'neck', *(('bbox_head',) if name in ('retinanet', 'fcos') else ('rpn_head', 'roi_head'))}
    changed = {layer.partition('.')[0] for layer in row['layers']}
    assert {'backbone'} < changed <= parts  # a plan may leave the neck or one of two heads whole
    state = torch.load(work_dir / 'pruned.pth', weights_only=True)['state_dict']
    weights = sum(tensor.numel() for key, tensor in state.items() if 'running_' not in key and 'num_batches' not in key)
    assert weights == row['model_params']['count']


def test_stock_tools_load_it_and_get_the_same_map(run, tmp_path):
    _, work_dir, metrics = run
    cfg = Config.fromfile(work_dir / 'pruned.py')
    cfg.work_dir = str(tmp_path)
    assert Runner.from_cfg(cfg).test() == metrics


def test_init_detector_loads_it_without_a_finder_or_a_trace(run, digits_root, monkeypatch):
    _, work_dir, _ = run
    for name in ('groups.walk_groups', 'tracing._Tracer'):
        monkeypatch.setattr(f'mmautodfp.graph.{name}', None)
    model = init_detector(str(work_dir / 'pruned.py'), str(work_dir / 'pruned.pth'), device='cpu')
    result = inference_detector(model, cv2.imread(str(digits_root / 'test' / '00001.png')))
    assert result.pred_instances.scores.max() > 0.1


def test_fine_tuning_starts_from_the_pruned_weights(run, tmp_path):
    _, work_dir, _ = run
    cfg = Config.fromfile(work_dir / 'pruned.py')
    cfg.work_dir = str(tmp_path)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
    cfg.val_dataloader.dataset.indices = 8
    trained = Runner.from_cfg(cfg).train().state_dict()
    before = torch.load(work_dir / 'pruned.pth', weights_only=True)['state_dict']
    assert {name: t.shape for name, t in trained.items()} == {name: t.shape for name, t in before.items()}
    name = 'backbone.layer2.0.conv3.weight'
    step = (trained[name] - before[name]).norm() / before[name].norm()
    assert 0 < step < 0.3  # trained, and from there


def test_it_is_exported_and_agrees_with_torch(run, tmp_path):
    pytest.importorskip('onnxruntime')
    name, work_dir, _ = run
    report = export_onnx(str(work_dir / 'pruned.py'), work_dir=str(tmp_path), repeat=1)
    assert set(report['parts']) == {'backbone_neck', *(('detector',) if name in ('retinanet', 'fcos') else ())}
    for part in report['parts'].values():
        assert part['pruned']['params'] < part['dense']['params']


def test_the_page_shows_the_parts(run):
    _, work_dir, _ = run
    page = (work_dir / 'report.html').read_text()
    section = page.partition('<section id="parts">')[2].partition('</section>')[0]
    for part in ('backbone', 'neck', 'head'):
        assert part in section
