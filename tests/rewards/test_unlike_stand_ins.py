"""A stand-in that does not answer as its model does is noticed, and the model itself is evaluated."""

import re

import pytest
import torch
from conftest import REPO, enliven
from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import Bottleneck, ResNet
from mmdet.registry import MODELS
from mmengine.config import Config
from reward_data import (
    CASCADE,
    demo_detector,
    digits_batches,
    digits_loader,
    group_names,
    small_detector,
    warnings_told,
)
from torch import nn

from mmautodfp.rewards import CocoReward
from mmautodfp.rewards.fast import post_processing
from mmautodfp.rewards.fast.detector import FastDetector


class NormFirst(Bottleneck):
    """The second norm runs before the conv that stands before it."""

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.conv2(self.norm2(out)))
        out = self.norm3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class TwoNorms(Bottleneck):
    """One conv runs twice, each time with a norm of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.again = nn.BatchNorm2d(self.planes)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)))
        out = self.relu(self.again(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def odd_detector(block: type) -> nn.Module:
    class Odd(ResNet):
        arch_settings = {50: (block, (3, 4, 6, 3))}  # noqa: RUF012, mmdet's

    cfg = Config.fromfile(REPO / 'configs/demo/faster_rcnn_digits.py').model
    cfg.backbone.update(type=Odd, style='caffe')  # the second conv keeps the size
    model = demo_detector('faster_rcnn')
    torch.manual_seed(0)
    model.backbone = enliven(MODELS.build(cfg.backbone))
    return model


@pytest.mark.parametrize('block', [NormFirst, TwoNorms])
def test_a_network_that_runs_in_another_order_is_noticed_and_evaluated_as_it_is(block, digits_root):
    model = odd_detector(block)
    rewards = []
    with warnings_told() as told:
        for fast in (True, False):
            rewards.append(CocoReward(3, batch_size=2, fast=fast, precision='bfloat16'))
            rewards[-1].prepare(model, digits_loader(digits_root), group_names(model))
    (reason,) = told
    assert 'not faster: the features of level' in reason
    assert rewards[0].stand_in is None
    assert rewards[0].identity.split(', ')[1] == 'float32'
    assert rewards[0].detect(model) == rewards[1].detect(model)


def test_a_detector_of_its_own_kind_is_evaluated_as_it_is(digits_root):
    model = demo_detector('faster_rcnn')
    expected = CocoReward(4, batch_size=2, fast=False)
    expected.prepare(model, digits_loader(digits_root))
    value = expected(model)
    model.extract_feat = lambda inputs, own=model.extract_feat: dict(enumerate(own(inputs)))
    forward = model.rpn_head.predict
    model.rpn_head.predict = lambda feats, *args, **kwargs: forward(tuple(feats.values()), *args, **kwargs)
    head = model.roi_head.predict
    model.roi_head.predict = lambda feats, *args, **kwargs: head(tuple(feats.values()), *args, **kwargs)
    reward = CocoReward(4, batch_size=2)
    reward.prepare(model, digits_loader(digits_root))
    assert reward.stand_in is None
    assert reward(model) == value


def test_predictions_that_fail_are_noticed_before_the_search(digits_root, monkeypatch):
    model = demo_detector('faster_rcnn')

    def fail(*_):
        raise RuntimeError('expected scalar type Float but found BFloat16')

    monkeypatch.setattr(FastDetector, 'predict', fail)
    reward = CocoReward(4, batch_size=2)
    reward.prepare(model, digits_loader(digits_root))
    assert reward.stand_in is None
    assert reward(model) > 0.3


def norm_first(channels: int) -> ConvModule:
    """The norm stands behind the conv and runs before it."""
    torch.manual_seed(0)
    return enliven(
        ConvModule(channels, channels, 3, padding=1, norm_cfg=dict(type='BN'), order=('norm', 'conv', 'act'))
    )


def test_a_head_that_runs_in_another_order_is_noticed(digits_root):
    model = demo_detector('retinanet')
    inputs = digits_batches(model, digits_root)[0]['inputs']
    assert FastDetector(model).disagrees(model, inputs) is None
    for number in range(4):
        model.bbox_head.cls_convs[number] = norm_first(64)
    assert "bbox_head's outputs" in FastDetector(model).disagrees(model, inputs)


def conv_head(channels: int, classes: int) -> nn.Module:
    """A second stage with a convolution of its own."""
    layers = dict(num_shared_convs=1, num_shared_fcs=1, conv_out_channels=channels, fc_out_channels=16)
    torch.manual_seed(0)
    return MODELS.build(dict(type='ConvFCBBoxHead', in_channels=channels, num_classes=classes, **layers)).eval()


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_a_second_stage_that_runs_in_another_order_is_noticed(precision, digits_root):
    model = demo_detector('mask_rcnn')
    head = model.roi_head
    head.bbox_head = conv_head(64, 10)
    inputs = digits_batches(model, digits_root, 2, 2)[0]['inputs']
    assert FastDetector(model, precision).disagrees(model, inputs) is None
    sound, head.mask_head.convs[1] = head.mask_head.convs[1], norm_first(head.mask_head.convs[1].out_channels)
    assert "roi_head's mask_preds differ" in FastDetector(model, precision).disagrees(model, inputs)
    head.mask_head.convs[1], head.bbox_head.shared_convs[0] = sound, norm_first(64)
    assert "roi_head's cls_score differ" in FastDetector(model, precision).disagrees(model, inputs)
    assert FastDetector.instead_of(model, precision, inputs) is None


def test_a_later_stage_of_a_cascade_that_runs_in_another_order_is_noticed(digits_root, tmp_path):
    model = small_detector(tmp_path, **CASCADE)
    inputs = torch.rand(1, 3, 128, 128)
    model.roi_head.bbox_head[1] = conv_head(256, 80)
    assert FastDetector(model).disagrees(model, inputs) is None
    model.roi_head.bbox_head[1].shared_convs[0] = norm_first(256)
    assert "roi_head's cls_score of stage 1 differ" in FastDetector(model).disagrees(model, inputs)


@pytest.mark.parametrize(
    ('extract_feat', 'inputs', 'reason'),
    [
        (
            lambda images, depths: [images],
            torch.rand(1, 3, 8, 8),
            'extract_feat asks for images, depths, more than images',
        ),
        (lambda images, **_: images, [torch.rand(3, 8, 8)], r'the images are no tensor \[B, C, H, W\]'),
        (
            lambda images, scale=1: dict(a=images),
            torch.rand(1, 3, 8, 8),
            'the features are neither a tensor nor a list',
        ),
        (None, torch.rand(1, 3, 8, 8), "AttributeError: .* has no attribute 'extract_feat'"),
    ],
)
def test_a_model_that_cannot_be_asked_for_its_features_has_no_stand_in_and_it_is_told_why(extract_feat, inputs, reason):
    model = nn.Conv2d(3, 4, 1)
    if extract_feat:
        model.extract_feat = extract_feat
    with warnings_told() as told:
        assert FastDetector.instead_of(model, 'float32', inputs, []) is None
    assert len(told) == 1
    assert re.search(reason, told[0])


def test_a_fault_of_our_own_is_no_reason_to_be_slow(digits_root, monkeypatch):
    monkeypatch.setattr(post_processing, 'nms', None)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        CocoReward(4, batch_size=2).prepare(demo_detector('faster_rcnn'), digits_loader(digits_root))
