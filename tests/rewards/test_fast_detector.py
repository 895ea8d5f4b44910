"""The stand-in against the model that it stands in for."""

import copy
import re
from pathlib import Path

import pytest
import torch
from conftest import REPO, enliven, random_plan
from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import Bottleneck, ResNet
from mmdet.registry import MODELS
from mmengine.config import Config
from reward_data import (
    CASCADE,
    assert_same_detections,
    demo_detector,
    digits_batches,
    digits_loader,
    gentle_plan,
    small_detector,
    warnings_told,
)
from torch import nn

from mmautodfp.graph import find_units
from mmautodfp.reconstruction import PruneOnly, SimilarityReconstructor, SyntheticLeastSquares
from mmautodfp.rewards import CocoReward
from mmautodfp.rewards.fast import post_processing
from mmautodfp.rewards.fast.detector import FastDetector
from mmautodfp.rewards.fast.model import TOLERANCE, FastModel, choose_precision
from mmautodfp.surgery import PruningPlan, apply_plan
from mmautodfp.utils import AutoDFPError


@pytest.fixture(scope='module', params=['faster_rcnn', 'retinanet', 'fcos', 'mask_rcnn'])
def model(request):
    return demo_detector(request.param)


@pytest.fixture(scope='module')
def faster_rcnn():
    return demo_detector('faster_rcnn')


def unit_names(model: nn.Module) -> list[str]:
    return [f'backbone.{unit.name}' for unit in find_units(model.backbone)]


@torch.no_grad()
def answers(predict, batches) -> list:
    return [sample.pred_instances for data in copy.deepcopy(list(batches)) for sample in predict(**data)]


def model_answers(model: nn.Module, batches) -> list:
    return answers(lambda **data: model(**data, mode='predict'), batches)


def assert_all_same(found: list, expected: list, **tolerances) -> int:
    """How many detections there were."""
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_detections(ours, theirs, **tolerances)
    return sum(map(len, expected))


def test_it_detects_what_the_model_detects_through_plan_after_plan_and_back(model, digits_root):
    batches = digits_batches(model, digits_root)
    detector = FastDetector(model)
    dense = model_answers(model, batches)
    assert assert_all_same(answers(detector.predict, batches), dense) >= 6
    reconstructor = SimilarityReconstructor()
    reconstructor.ensure_fitted(model.backbone)
    plans = [gentle_plan(model.backbone, 0, 0.9), random_plan(model.backbone, 1), gentle_plan(model.backbone, 2, 0.9)]
    totals = []
    for plan in plans:
        with apply_plan(model.backbone, plan, reconstructor):
            detector.update(model)
            expected = model_answers(model, batches)
        # What it detects was brought over: the model is dense again by now.
        totals.append(assert_all_same(answers(detector.predict, batches), expected))
        assert totals[-1] != sum(map(len, dense)) or not torch.equal(expected[0].scores, dense[0].scores)
    assert totals[0]
    assert totals[2]
    detector.update(model)
    assert_all_same(answers(detector.predict, batches), dense)


def test_only_what_changed_is_brought_over(faster_rcnn, monkeypatch):
    detector = FastDetector(faster_rcnn)
    brought = []
    original = FastModel._bring_over
    monkeypatch.setattr(
        FastModel, '_bring_over', lambda self, name, *parts: brought.append(name) or original(self, name, *parts)
    )
    detector.update(faster_rcnn)
    assert brought == []
    unit = find_units(faster_rcnn.backbone)[5]
    whole = gentle_plan(faster_rcnn.backbone, 0, 0.5)
    plan = PruningPlan({unit.name: whole.units[unit.name]})
    changed = {f'backbone.{name}' for name in (unit.name, unit.consumers[0].name)}
    with apply_plan(faster_rcnn.backbone, plan, PruneOnly()):
        detector.update(faster_rcnn)
        assert set(brought) == changed
        assert len(brought) == len(changed)
        brought.clear()
        detector.update(faster_rcnn)
        assert brought == []
    detector.update(faster_rcnn)
    assert set(brought) == changed
    with torch.no_grad():
        brought.clear()
        faster_rcnn.neck.lateral_convs[0].conv.bias.add_(0)  # in place
        detector.update(faster_rcnn)
    assert brought == ['neck.lateral_convs.0.conv']


def test_a_bias_that_a_plan_gives_goes_with_it():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1, bias=False)

        def extract_feat(self, inputs):
            return [self.conv(inputs)]

    bare = Bare().eval()
    detector = FastDetector(bare)
    inputs = torch.rand(1, 3, 4, 4)
    dense = bare.extract_feat(inputs)[0]
    bare.conv._parameters['bias'] = nn.Parameter(torch.ones(4))
    detector.update(bare)
    assert torch.allclose(detector._features(inputs)[0], dense + 1)
    bare.conv._parameters['bias'] = None
    detector.update(bare)
    assert torch.allclose(detector._features(inputs)[0], dense)


def test_the_dense_model_is_left_as_it_is(digits_root):
    model = demo_detector('mask_rcnn')
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    names = [set(layer.__dict__) for layer in model.modules()]
    for precision in ('float32', 'bfloat16'):
        reward = CocoReward(4, batch_size=2, precision=precision)
        reward.prepare(model, digits_loader(digits_root), unit_names(model))
        assert reward.stand_in is not None
        reward(model)
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is tensor and torch.equal(tensor, copied) for name, (tensor, copied) in before.items())
    assert [set(layer.__dict__) for layer in model.modules()] == names
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


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
            rewards[-1].prepare(model, digits_loader(digits_root), unit_names(model))
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


def test_the_stem_is_run_once_and_changes_nothing(model, digits_root):
    plain, split = (CocoReward(6, batch_size=3) for _ in range(2))
    plain.prepare(model, digits_loader(digits_root))
    split.prepare(model, digits_loader(digits_root), unit_names(model))
    assert plain._batches[0]['inputs'].shape[1:] == (3, 128, 128)
    assert split._batches[0]['inputs'].shape[1:] == (16, 32, 32)
    with apply_plan(model.backbone, gentle_plan(model.backbone, 3), SimilarityReconstructor()):
        for reward in (plain, split):
            reward.stand_in.update(model)
        expected = answers(plain.stand_in.predict, plain._batches)
        assert assert_all_same(answers(split.stand_in.predict, split._batches), expected, scores=1e-5, boxes=1e-3)
        assert assert_all_same(model_answers(model, plain._batches), expected)


def test_a_stem_of_several_layers_is_left_alone_by_plans_that_move_norms(digits_root):
    cfg = Config.fromfile(REPO / 'configs/demo/faster_rcnn_digits.py').model
    model = demo_detector('faster_rcnn')
    torch.manual_seed(0)
    model.backbone = enliven(MODELS.build(cfg.backbone | dict(type='ResNetV1d')))
    reward = CocoReward(4, batch_size=2)
    reward.prepare(model, digits_loader(digits_root), unit_names(model))
    assert reward._batches[0]['inputs'].shape[1:] == (16, 32, 32)  # the stem has been run
    (images,) = digits_batches(model, digits_root, 2, 2)
    with torch.no_grad():
        behind_stem = model.backbone.maxpool(model.backbone.stem(images['inputs']))
    reconstructor = SyntheticLeastSquares(dict(num_images=4, size=64), refinement=False)
    with apply_plan(model.backbone, gentle_plan(model.backbone, 3), reconstructor), torch.no_grad():
        reward.stand_in.update(model)
        expected = model.extract_feat(images['inputs'])
        found = reward.stand_in._features(behind_stem)
    for level, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert ((a - b).norm() / b.norm()).item() < 1e-4, level


@pytest.mark.parametrize('units', [[], ['neck.lateral_convs.0.conv'], ['backbone.conv1']])
def test_what_plans_change_is_no_stem(faster_rcnn, digits_root, units):
    inputs = digits_batches(faster_rcnn, digits_root)[0]['inputs']
    assert FastDetector(faster_rcnn).split_stem(inputs, units) == []


def test_images_that_do_not_fit_keep_the_stem(faster_rcnn, digits_root):
    reward = CocoReward(8, batch_size=2, cache_gb=0.0002)
    reward.prepare(faster_rcnn, digits_loader(digits_root), unit_names(faster_rcnn))
    assert reward._batches[0]['inputs'].shape[1:] == (3, 128, 128)
    full = CocoReward(8, batch_size=2)
    full.prepare(faster_rcnn, digits_loader(digits_root), unit_names(faster_rcnn))
    assert reward(faster_rcnn) == pytest.approx(full(faster_rcnn), abs=1e-6)


def test_bfloat16_stays_near(model, digits_root):
    batches = digits_batches(model, digits_root, 3)
    detector = FastDetector(model, 'bfloat16')
    inputs = batches[0]['inputs']
    assert detector.disagrees(model, inputs) is None
    features = detector._features(inputs)
    assert all(level.dtype == torch.float32 for level in features)
    with torch.no_grad():
        exact = model.extract_feat(inputs)
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(features, exact, strict=True)]
    assert 1e-4 < max(errors) < TOLERANCE[torch.bfloat16]  # it is bfloat16, and it is near
    total = 0
    for found, expected in zip(answers(detector.predict, batches), model_answers(model, batches), strict=True):
        sure = expected[expected.scores > 0.3]
        total += len(sure)
        for box, label, score in zip(sure.bboxes, sure.labels, sure.scores, strict=True):
            near = (found.labels == label) & ((found.bboxes - box).abs().amax(1) < 5)
            assert ((found.scores[near] - score).abs() < 0.15).any()
    assert total


def test_a_reward_in_bfloat16_is_near_the_exact_one(faster_rcnn, digits_root):
    values = []
    for precision in ('float32', 'bfloat16'):
        reward = CocoReward(8, batch_size=8, precision=precision)
        reward.prepare(faster_rcnn, digits_loader(digits_root), unit_names(faster_rcnn))
        assert reward.stand_in.dtype == getattr(torch, precision)
        values.append(reward(faster_rcnn))
    held_out = reward.held_out(faster_rcnn, digits_loader(digits_root) | dict(dataset=small_rest(digits_root)))
    assert held_out.precision == 'float32'
    assert values[0] != values[1]
    assert values[0] == pytest.approx(values[1], abs=0.05)


def small_rest(digits_root) -> dict:
    dataset = digits_loader(digits_root, 'test')['dataset']
    dataset.indices = 4
    return dataset


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        ('flags : sse avx512f avx512_bf16', 'bfloat16'),
        ('flags : amx_bf16', 'bfloat16'),
        ('flags : avx512f', 'float32'),
        (None, 'float32'),
    ],
)
def test_auto_is_what_the_device_is_fast_in(monkeypatch, flags, expected):
    def read(_):
        if flags is None:
            raise FileNotFoundError('/proc/cpuinfo')
        return flags

    monkeypatch.setattr(Path, 'read_text', read)
    assert choose_precision('auto', torch.device('cpu')) == expected
    assert choose_precision('auto', torch.device('cuda')) == 'float16'
    for precision in ('float32', 'bfloat16', 'float16'):
        assert choose_precision(precision, torch.device('cpu')) == precision
    with pytest.raises(AutoDFPError, match="precision='int8'; it must be 'auto', 'float32', 'bfloat16' or 'float16'"):
        CocoReward(4, precision='int8')


@pytest.mark.parametrize(('name', 'metric'), [('faster_rcnn', 'bbox'), ('mask_rcnn', 'mean'), ('fcos', 'bbox')])
def test_the_fast_reward_is_the_slow_one(name, metric, digits_root):
    model = demo_detector(name)
    rewards = []
    for fast in (True, False):
        rewards.append(CocoReward(6, metric=metric, batch_size=3, fast=fast))
        rewards[-1].prepare(model, digits_loader(digits_root), unit_names(model))
    assert rewards[0].stand_in is not None
    assert rewards[1].stand_in is None
    for plan in (gentle_plan(model.backbone, 5, 0.9), PruningPlan({})):
        with apply_plan(model.backbone, plan, SimilarityReconstructor()):
            values = [reward(model) for reward in rewards]
        assert values[0] > 0.02
        assert values[0] == pytest.approx(values[1], abs=1e-6)


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


class LooksAtItsNorm(Bottleneck):
    """It wants more of its norm than an answer; the stand-in has none."""

    def forward(self, x):
        assert self.norm1.num_features
        return super().forward(x)


def test_a_network_of_its_own_kind_is_evaluated_as_it_is_and_the_reason_is_told_once(digits_root):
    model = odd_detector(LooksAtItsNorm)
    with warnings_told() as told:
        reward = CocoReward(4, batch_size=2)
        reward.prepare(model, digits_loader(digits_root))
        held_out = reward.held_out(model, digits_loader(digits_root) | dict(dataset=small_rest(digits_root)))
    assert reward.stand_in is held_out.stand_in is None
    assert told == [
        'episodes are evaluated by the model itself, not faster: '
        "AttributeError: 'Identity' object has no attribute 'num_features'"
    ]


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


def test_a_fault_of_our_own_is_no_reason_to_be_slow(faster_rcnn, digits_root, monkeypatch):
    monkeypatch.setattr(post_processing, 'nms', None)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        CocoReward(4, batch_size=2).prepare(faster_rcnn, digits_loader(digits_root))
