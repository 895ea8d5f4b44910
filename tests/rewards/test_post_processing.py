"""Batched post-processing against mmdet's own, image by image and level by level."""

import copy

import cv2
import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from reward_data import CASCADE, DEMOS, assert_same_detections, demo_detector, small_detector
from torch import nn
from torchvision.ops import nms

from mmautodfp.rewards.fast.post_processing import _best_survivors, _first_of_each, use_batched_post_processing

# Three images of one batch: their sizes after resizing, and how they were resized (width, height).
METAS = [
    dict(img_shape=(128, 128), scale_factor=(1.0, 1.0), ori_shape=(128, 128)),
    dict(img_shape=(96, 128), scale_factor=(2.0, 1.5), ori_shape=(64, 64)),
    dict(img_shape=(128, 80), scale_factor=(0.625, 0.5), ori_shape=(256, 128)),
]


ATSS = {'base': 'atss/atss_r50_fpn_1x_coco.py', 'test_cfg.nms_pre': 60}
HEADS = dict(
    faster_rcnn=['rpn_head', 'roi_head.bbox_head'],
    retinanet=['bbox_head'],
    fcos=['bbox_head'],
    mask_rcnn=['rpn_head', 'roi_head.bbox_head'],
    atss=['bbox_head'],
    cascade=['rpn_head', *(f'roi_head.bbox_head.{stage}' for stage in range(3))],
)


@pytest.fixture(scope='module', params=[*DEMOS, 'atss', 'cascade'])
def pair(request, tmp_path_factory) -> tuple[str, nn.Module, nn.Module]:
    """A detector, and the same one with batched post-processing."""
    if request.param in DEMOS:
        model = demo_detector(request.param)
    else:
        model = small_detector(tmp_path_factory.mktemp('config'), **dict(atss=ATSS, cascade=CASCADE)[request.param])
    batched = copy.deepcopy(model)
    assert use_batched_post_processing(batched) == HEADS[request.param]
    return request.param, model, batched


@pytest.fixture(scope='module')
def images(digits_root) -> list[np.ndarray]:
    return [cv2.imread(str(digits_root / 'test' / f'{number:05d}.png')) for number in (1, 2, 3)]


def predict(model: nn.Module, images: list[np.ndarray], **test_cfg) -> list:
    """Predictions on a batch whose images fill different parts of it."""
    heads = [layer for layer in model.modules() if isinstance(getattr(layer, 'test_cfg', None), dict)]
    old = [head.test_cfg for head in heads]
    for head in heads:
        head.test_cfg = copy.deepcopy(head.test_cfg)
        for key, value in test_cfg.items():
            for part in (head.test_cfg, head.test_cfg.get('rcnn')):
                if part is not None and key in part:
                    part[key] = value
    resized = [
        cv2.resize(image, meta['img_shape'][::-1]).transpose(2, 0, 1) for image, meta in zip(images, METAS, strict=True)
    ]
    samples = [DetDataSample(metainfo=meta) for meta in METAS]
    data = model.data_preprocessor(dict(inputs=[torch.tensor(i) for i in resized], data_samples=samples))
    with torch.no_grad():
        found = model(**data, mode='predict')
    for head, cfg in zip(heads, old, strict=True):
        head.test_cfg = cfg
    return [sample.pred_instances for sample in found]


SOFT = dict(type='soft_nms', iou_threshold=0.5, min_score=0.05)
AGNOSTIC = dict(type='nms', iou_threshold=0.5, class_agnostic=True)


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(score_thr=0.02, max_per_img=5),
        dict(nms=ConfigDict(SOFT)),
        dict(nms=ConfigDict(AGNOSTIC)),
        dict(max_per_img=-1),
    ],
    ids=['stock', 'few', 'soft', 'agnostic', 'all'],
)
def test_detections_are_mmdets(pair, images, settings):
    name, model, batched = pair
    # The random ones are sure of nothing.
    settings = (dict() if name in DEMOS else dict(score_thr=0.013)) | settings
    expected, found = (predict(m, images, **settings) for m in (model, batched))
    assert sum(map(len, expected)) > 3
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_detections(ours, theirs, scores=1e-5, boxes=1e-3)


def test_images_without_detections_are_the_same(pair, images):
    _, model, batched = pair
    low, threshold, high = 0.0, 0.5, 1.0
    while (empty := sum(not len(found) for found in predict(model, images, score_thr=threshold))) in (0, 3):
        low, high = (threshold, high) if empty == 0 else (low, threshold)
        threshold = (low + high) / 2
    for thr, count in ((threshold, empty), (2.0, 3)):
        expected, found = (predict(m, images, score_thr=thr) for m in (model, batched))
        assert sum(not len(instances) for instances in expected) == count
        for ours, theirs in zip(found, expected, strict=True):
            assert_same_detections(ours, theirs, scores=1e-5, boxes=1e-3)
            assert ours.bboxes.shape == theirs.bboxes.shape


def dense_head(**settings) -> nn.Module:
    head = dict(type='RetinaHead', num_classes=5, in_channels=8) | settings
    cfg = dict(nms_pre=100, min_bbox_size=0, score_thr=0.3, nms=dict(type='nms', iou_threshold=0.5), max_per_img=30)
    return MODELS.build(head | dict(test_cfg=ConfigDict(cfg)))


def random_outputs(head, seed=0, factors=False) -> list:
    """What a dense head could say of three images; no two scores are the same, so that their order is certain."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    anchors = head.num_base_priors
    outputs = [
        [torch.randn(3, anchors * width, *size, generator=generator) * scale for size in sizes]
        for width, scale in ((head.cls_out_channels, 1), (4, 0.5), (1, 1))
    ]
    count = sum(level.numel() for level in outputs[0])
    distinct = torch.linspace(-5, 2, count)[torch.randperm(count, generator=generator)]
    parts = distinct.split([level.numel() for level in outputs[0]])
    outputs[0] = [part.view_as(level) for part, level in zip(parts, outputs[0], strict=True)]
    return outputs if factors else [*outputs[:2], None]


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(nms_pre=7),
        dict(nms_pre=-1, score_thr=0.8),
        dict(nms_pre=10000),
        dict(min_bbox_size=20),
        dict(min_bbox_size=-1),
        dict(nms=ConfigDict(type='nms', iou_threshold=0.3, split_thr=50)),
        dict(nms=ConfigDict(SOFT)),
        dict(nms=ConfigDict(AGNOSTIC)),
    ],
)
@pytest.mark.parametrize('kind', ['sigmoid', 'softmax', 'factors'])
def test_whatever_a_dense_head_says_is_read_alike(kind, settings, seed):
    loss = dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False)) if kind == 'softmax' else {}
    head = dense_head(**loss)
    outputs = random_outputs(head, seed, kind == 'factors')
    batched = copy.deepcopy(head)
    assert use_batched_post_processing(batched) == ['']
    cfg = copy.deepcopy(head.test_cfg)
    cfg.update(settings)
    for rescale in (False, True):
        expected, found = (h.predict_by_feat(*outputs, METAS, cfg, rescale) for h in (head, batched))
        assert max(map(len, expected)) > 3
        for ours, theirs in zip(found, expected, strict=True):
            assert_same_detections(ours, theirs, scores=1e-6, boxes=1e-3)


@pytest.mark.parametrize('agnostic', [False, True])
def test_the_second_stage_reads_images_of_many_and_of_no_proposals_alike(agnostic):
    torch.manual_seed(0)
    head = MODELS.build(
        dict(type='Shared2FCBBoxHead', in_channels=2, fc_out_channels=4, num_classes=6, reg_class_agnostic=agnostic)
    )
    batched = copy.deepcopy(head)
    assert use_batched_post_processing(batched) == ['']
    cfg = ConfigDict(score_thr=0.1, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20)
    for counts in ((40, 0, 25), (0, 0, 0), (1, 1, 1)):
        rois = [
            torch.cat([torch.full((n, 1), i), torch.rand(n, 2) * 60, 60 + torch.rand(n, 2) * 60], 1).float()
            for i, n in enumerate(counts)
        ]
        outputs = [[torch.randn(n, width) for n in counts] for width in (7, 4 if agnostic else 24)]
        expected, found = (h.predict_by_feat(rois, *outputs, METAS, cfg, True) for h in (head, batched))
        for ours, theirs, count in zip(found, expected, counts, strict=True):
            assert_same_detections(ours, theirs, scores=1e-6, boxes=1e-3)
            assert bool(len(theirs)) == bool(count)


class OwnSingle(RetinaHead):
    def _predict_by_feat_single(self, *args, **kwargs):
        return super()._predict_by_feat_single(*args, **kwargs)


class OwnSecondStage(Shared2FCBBoxHead):
    def predict_by_feat(self, *args, **kwargs):
        return super().predict_by_feat(*args, **kwargs)


@pytest.mark.parametrize(
    'head',
    [
        dict(
            type='GFLHead',
            num_classes=5,
            in_channels=8,
            anchor_generator=dict(
                type='AnchorGenerator',
                ratios=[1.0],
                octave_base_scale=8,
                scales_per_octave=1,
                strides=[8, 16, 32, 64, 128],
            ),
        ),
        dict(type='YOLOXHead', num_classes=5, in_channels=8, feat_channels=8),
        dict(type='CenterNetHead', num_classes=5, in_channels=8, feat_channels=8),
        dict(type='YOLOV3Head', num_classes=5, in_channels=[8, 8, 8]),
        dict(type=OwnSingle, num_classes=5, in_channels=8),
        dict(type=OwnSecondStage, in_channels=2, fc_out_channels=4, num_classes=6),
        dict(type='Shared2FCBBoxHead', in_channels=2, fc_out_channels=4, with_reg=False),
        dict(type='RPNHead', in_channels=8, loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False)),
        dict(type='RetinaHead', num_classes=5, in_channels=8, bbox_coder=dict(type='TBLRBBoxCoder')),
    ],
    ids=lambda head: str(getattr(head['type'], '__name__', head['type'])),
)
def test_heads_with_ways_of_their_own_are_left_alone(head):
    built = nn.Sequential(MODELS.build(head))
    assert use_batched_post_processing(built) == []
    assert 'predict_by_feat' not in built[0].__dict__


@pytest.mark.parametrize('count', [1, 5, 40, 1000])
def test_the_best_survivors_are_the_first_of_all(count):
    for seed, spread in ((0, 20), (1, 100), (2, 1000)):
        generator = torch.Generator().manual_seed(seed)
        corner, size = (torch.rand(600, 2, generator=generator) for _ in range(2))
        boxes = torch.cat([corner * spread, corner * spread + 5 + size * 40], 1)
        scores = torch.rand(600, generator=generator).sort(descending=True).values
        every = nms(boxes, scores, 0.5)
        assert 2 < len(every) < 600
        assert torch.equal(_best_survivors(boxes, scores, 0.5, count), every[:count])


def test_the_first_of_each_group_by_falling_score():
    group = torch.tensor([2, 0, 2, 0, 2, 3])
    scores = torch.tensor([0.1, 0.3, 0.9, 0.8, 0.5, 0.2])
    assert _first_of_each(group, scores, 2).tolist() == [3, 1, 2, 4, 5]
    assert _first_of_each(group, scores, -1).tolist() == [3, 1, 2, 4, 0, 5]
    assert _first_of_each(group[:0], scores[:0], 2).tolist() == []
