"""The stand-in against the model that it stands in for, and what it runs once and for all."""

from pathlib import Path

import pytest
import torch
from conftest import REPO, enliven, random_plan
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from reward_data import (
    DEMOS,
    answers,
    assert_all_same,
    demo_detector,
    digits_batches,
    digits_loader,
    gentle_plan,
    group_names,
    model_answers,
)
from torch import nn

from mmautodfp.graph import find_groups
from mmautodfp.reconstruction import PruneOnly, SimilarityReconstructor, SyntheticLeastSquares
from mmautodfp.rewards import CocoReward
from mmautodfp.rewards.fast.detector import FastDetector
from mmautodfp.rewards.fast.model import TOLERANCE, FastModel, choose_precision
from mmautodfp.surgery import PruningPlan, Restore, apply_plan, replace_tensor
from mmautodfp.utils import AutoDFPError


@pytest.fixture(scope='module', params=DEMOS)
def model(request):
    return demo_detector(request.param)


@pytest.fixture(scope='module')
def faster_rcnn():
    return demo_detector('faster_rcnn')


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
    group = find_groups(faster_rcnn.backbone)[5]
    whole = gentle_plan(faster_rcnn.backbone, 0, 0.5)
    plan = PruningPlan({group.name: whole.groups[group.name]})
    changed = {f'backbone.{name}' for name in (group.name, group.consumers[0].name)}
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
        reward.prepare(model, digits_loader(digits_root), group_names(model))
        assert reward.stand_in is not None
        reward(model)
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is tensor and torch.equal(tensor, copied) for name, (tensor, copied) in before.items())
    assert [set(layer.__dict__) for layer in model.modules()] == names
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


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
    off = []
    for found, expected in zip(answers(detector.predict, batches), model_answers(model, batches), strict=True):
        sure = expected[expected.scores > 0.3]
        for box, label, score in zip(sure.bboxes, sure.labels, sure.scores, strict=True):
            near = (found.labels == label) & ((found.bboxes - box).abs().amax(1) < 5)
            off.append((found.scores[near] - score).abs().amin().item())
    # Processors round at different places, and a single score may be off by more than most are.
    assert max(off) < 0.3
    assert sum(off) / len(off) < 0.05


def small_rest(digits_root) -> dict:
    dataset = digits_loader(digits_root, 'test')['dataset']
    dataset.indices = 4
    return dataset


def test_a_reward_in_bfloat16_is_near_the_exact_one(faster_rcnn, digits_root):
    values, scores = [], []
    for precision in ('float32', 'bfloat16'):
        reward = CocoReward(8, batch_size=8, precision=precision)
        reward.prepare(faster_rcnn, digits_loader(digits_root), group_names(faster_rcnn))
        assert reward.stand_in.dtype == getattr(torch, precision)
        values.append(reward(faster_rcnn))
        scores.append([detection['score'] for detection in reward.detect(faster_rcnn)])
    held_out = reward.held_out(faster_rcnn, digits_loader(digits_root) | dict(dataset=small_rest(digits_root)))
    assert held_out.precision == 'float32'
    assert scores[0] != scores[1]
    assert values[0] == pytest.approx(values[1], abs=0.05)


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
        rewards[-1].prepare(model, digits_loader(digits_root), group_names(model))
    assert rewards[0].stand_in is not None
    assert rewards[1].stand_in is None
    for plan in (gentle_plan(model.backbone, 5, 0.9), PruningPlan({})):
        with apply_plan(model.backbone, plan, SimilarityReconstructor()):
            values = [reward(model) for reward in rewards]
        assert values[0] > 0.02
        assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_the_stem_is_run_once_and_changes_nothing(model, digits_root):
    plain, split = (CocoReward(6, batch_size=3) for _ in range(2))
    plain.prepare(model, digits_loader(digits_root))
    split.prepare(model, digits_loader(digits_root), group_names(model))
    assert plain._batches[0]['inputs'].shape[1:] == (3, 128, 128)
    assert split._batches[0]['inputs'].shape[1:] == (16, 32, 32)
    with apply_plan(model.backbone, gentle_plan(model.backbone, 3), SimilarityReconstructor()):
        for reward in (plain, split):
            reward.stand_in.update(model)
        expected = answers(plain.stand_in.predict, plain._batches)
        assert assert_all_same(answers(split.stand_in.predict, split._batches), expected, scores=1e-5, boxes=1e-3)
        assert assert_all_same(model_answers(model, plain._batches), expected)


def test_a_model_whose_stem_was_trained_is_rewarded_with_that_stem(digits_root):
    model = demo_detector('faster_rcnn')
    reward, slow = CocoReward(6, batch_size=3), CocoReward(6, batch_size=3, fast=False)
    reward.prepare(model, digits_loader(digits_root), group_names(model))
    slow.prepare(model, digits_loader(digits_root))
    dense = reward(model)
    with Restore() as restore:  # as a distillation puts its weights in place
        replace_tensor(restore.remember(model.backbone.conv1), 'weight', model.backbone.conv1.weight.detach() * 1.5)
        expected = slow(model)
        assert expected != pytest.approx(dense, abs=1e-3)
        assert reward(model) == pytest.approx(expected, abs=1e-6)
        assert [*reward.evaluate(model)][-1] == pytest.approx(expected, abs=1e-6)
    assert reward(model) == dense


def test_a_stem_of_several_layers_is_left_alone_by_plans_that_move_norms(digits_root):
    cfg = Config.fromfile(REPO / 'configs/demo/faster_rcnn_digits.py').model
    model = demo_detector('faster_rcnn')
    torch.manual_seed(0)
    model.backbone = enliven(MODELS.build(cfg.backbone | dict(type='ResNetV1d')))
    reward = CocoReward(4, batch_size=2)
    reward.prepare(model, digits_loader(digits_root), group_names(model))
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


def test_a_stem_ends_where_its_output_is_a_feature(faster_rcnn, digits_root):
    plain, split = (CocoReward(4, batch_size=2) for _ in range(2))
    plain.prepare(faster_rcnn, digits_loader(digits_root))
    split.prepare(faster_rcnn, digits_loader(digits_root), ['backbone.layer3.0.conv1'])  # layer2 is not changed
    assert split._batches[0]['inputs'].shape[1:] == (64, 32, 32)  # what layer1 gives is the first level
    expected, found = (one.stand_in._features(one._batches[0]['inputs']) for one in (plain, split))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('layers', [[], ['neck.lateral_convs.0.conv'], ['backbone.conv1']])
def test_what_plans_change_is_no_stem(faster_rcnn, digits_root, layers):
    inputs = digits_batches(faster_rcnn, digits_root)[0]['inputs']
    assert FastDetector(faster_rcnn).split_stem(inputs, layers) == []


def test_a_layer_that_gives_more_than_a_map_is_no_stem():
    cfg = get_config('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py').model
    cfg.backbone.update(embed_dims=24, num_heads=[1, 2, 4, 8], depths=[1, 1, 1, 1], init_cfg=None)
    cfg.neck.in_channels = [48, 96, 192]
    images, layers = torch.rand(1, 3, 64, 64), ['backbone.stages.0.blocks.0.ffn.layers.0.0']
    assert FastDetector(MODELS.build(cfg).eval()).split_stem(images, layers) == []  # patch_embed tells the size, too


def test_a_stem_with_larger_outputs_than_fit_is_run_each_time(faster_rcnn, digits_root):
    reward = CocoReward(4, batch_size=2, cache_gb=0.0008)  # 4 images of 3 x 128 x 128 are 0.79 MB, 64 x 32 x 32 1.05 MB
    reward.prepare(faster_rcnn, digits_loader(digits_root), ['backbone.layer3.0.conv1'])
    assert reward._batches.all_preprocessed
    assert reward._batches[0]['inputs'].shape[1:] == (3, 128, 128)


def test_images_that_do_not_fit_keep_the_stem(faster_rcnn, digits_root):
    reward = CocoReward(8, batch_size=2, cache_gb=0.0002)
    reward.prepare(faster_rcnn, digits_loader(digits_root), group_names(faster_rcnn))
    assert reward._batches[0]['inputs'].shape[1:] == (3, 128, 128)
    full = CocoReward(8, batch_size=2)
    full.prepare(faster_rcnn, digits_loader(digits_root), group_names(faster_rcnn))
    assert reward(faster_rcnn) == pytest.approx(full(faster_rcnn), abs=1e-6)
