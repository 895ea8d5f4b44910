"""Detectors of mmdet's own configs go through a search without a line of code for them."""

import copy
import json

import cv2
import pytest
import torch
from conftest import REPO, enliven
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config

from mmautodfp import runs as apis
from mmautodfp.graph import survey_groups
from mmautodfp.reconstruction import SimilarityReconstructor
from mmautodfp.surgery import PruningPlan, apply_plan

pytestmark = pytest.mark.slow  # whole runs

# What a user would write for a data set of their own, and what makes it small.
CONFIG = """
_base_ = ['mmdet::{base}', '{repo}/configs/_base_/autodfp.py']
classes = dict(classes=tuple('0123456789'))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]


def loader(split):
    dataset = dict(
        _delete_=True,
        type='CocoDataset',
        data_root='{root}',
        metainfo=classes,
        ann_file='annotations/instances_' + split + '.json',
        data_prefix=dict(img=split + '/'),
        test_mode=True,
        indices=6,
        pipeline=pipeline,
    )
    return dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)


val_dataloader, test_dataloader = loader('val'), loader('test')
val_evaluator = dict(ann_file='{root}/annotations/instances_val.json')
test_evaluator = dict(ann_file='{root}/annotations/instances_test.json')
model = dict(backbone=dict(base_channels=8, init_cfg=None), neck=dict(in_channels={channels}))
autodfp = dict(num_episodes=3, reward=dict(num_images=4), agent=dict(warmup_episodes=1), opening_lams=(0.5,))
"""
FPN = [32, 64, 128, 256]
CASCADE = {
    'neck.out_channels': 32,
    'rpn_head.in_channels': 32,
    'rpn_head.feat_channels': 32,
    'roi_head.bbox_roi_extractor.out_channels': 32,
    'test_cfg.rpn.max_per_img': 20,
    **{
        f'roi_head.bbox_head.{stage}.{key}': value
        for stage in range(3)
        for key, value in (('num_classes', 10), ('in_channels', 32), ('fc_out_channels', 64))
    },
}
DETECTORS = {
    'cascade_rcnn': ('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', FPN, CASCADE),
    'cascade_rcnn_caffe': ('cascade_rcnn/cascade-rcnn_r50-caffe_fpn_1x_coco.py', FPN, CASCADE),
    'atss': (
        'atss/atss_r50_fpn_1x_coco.py',
        FPN,
        {
            'neck.out_channels': 64,
            'bbox_head.in_channels': 64,
            'bbox_head.feat_channels': 64,
            'bbox_head.num_classes': 10,
            'test_cfg.score_thr': 0.0,
            'test_cfg.nms_pre': 50,
        },
    ),
    'detr': (
        'detr/detr_r50_8xb2-150e_coco.py',
        [256],
        {
            'bbox_head.num_classes': 10,
            'num_queries': 10,
            'encoder.num_layers': 1,
            'decoder.num_layers': 1,
            'test_cfg.max_per_img': 10,
        },
    ),
}


@pytest.fixture(scope='module', params=DETECTORS)
def run(request, digits_root, tmp_path_factory):
    """A finished search: the folder, the dense detector's config and weights, and what the test loop said."""
    folder = tmp_path_factory.mktemp(request.param)
    base, channels, settings = DETECTORS[request.param]
    text = CONFIG
    for key, value in dict(base=base, repo=REPO, root=digits_root, channels=channels).items():
        text = text.replace(f'{{{key}}}', str(value))
    config, checkpoint = folder / f'{request.param}.py', folder / 'dense.pth'
    config.write_text(text)
    options = {f'model.{key}': value for key, value in settings.items()}
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options)
    torch.manual_seed(0)
    model = enliven(init_detector(copy.deepcopy(cfg), device='cpu', palette='random'))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(cfg.classes))), checkpoint)
    metrics = apis.prune(config, str(checkpoint), work_dir=str(folder / 'run'), cfg_options=options)
    return folder / 'run', cfg, checkpoint, metrics


def test_the_search_ends_within_the_budget_with_every_bottleneck_pruned(run):
    folder, _, _, metrics = run
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['episodes'] == 3
    assert summary['test'] == metrics
    dense, pruned = summary['results'][0], summary['results'][-1]
    assert dense['module_params']['ratio'] == 1
    assert 0 < pruned['module_params']['ratio'] <= 0.9
    assert len(PruningPlan.from_json(folder / 'strategy.json').groups) == 32


def test_episodes_run_on_the_fast_stand_in(run):
    log = next(run[0].glob('*/*.log')).read_text()
    assert 'episodes are evaluated by the model itself' not in log
    assert 'episode 3/3' in log


def test_stock_mmdet_loads_the_pruned_detector_which_is_the_plan_on_the_dense_one(run, digits_root):
    folder, cfg, checkpoint, _ = run
    slim = init_detector(str(folder / 'pruned.py'), str(folder / 'pruned.pth'), device='cpu')
    dense = init_detector(copy.deepcopy(cfg), str(checkpoint), device='cpu')
    plan = PruningPlan.from_json(folder / 'strategy.json')
    widths = {group.name: group.num_channels for group in survey_groups(slim.backbone).groups}
    assert widths == plan.widths
    image = cv2.imread(str(digits_root / 'test' / '00001.png'))
    inputs = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        before = dense.extract_feat(inputs)
        apply_plan(dense.backbone, plan, SimilarityReconstructor())
        for ours, expected, whole in zip(slim.extract_feat(inputs), dense.extract_feat(inputs), before, strict=True):
            assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(ours, whole, rtol=1e-4, atol=1e-5)
    found, expected = (inference_detector(model, image).pred_instances for model in (slim, dense))
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    assert torch.allclose(found.bboxes, expected.bboxes, atol=1e-3)
