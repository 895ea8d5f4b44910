"""What all plans leave alone before the first prunable unit is run once and for all."""

import pytest
import torch
from conftest import REPO, enliven
from mmdet.registry import MODELS
from mmengine.config import Config
from reward_data import (
    DEMOS,
    answers,
    assert_all_same,
    demo_detector,
    digits_batches,
    digits_loader,
    gentle_plan,
    model_answers,
    unit_names,
)

from mmautodfp.reconstruction import SimilarityReconstructor, SyntheticLeastSquares
from mmautodfp.rewards import CocoReward
from mmautodfp.rewards.fast.detector import FastDetector
from mmautodfp.surgery import apply_plan


@pytest.fixture(scope='module', params=DEMOS)
def model(request):
    return demo_detector(request.param)


@pytest.fixture(scope='module')
def faster_rcnn():
    return demo_detector('faster_rcnn')


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
