"""Heads of second stages that their usual kind does not have: they predict when what they read has become narrower."""

from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from mmautodfp.experiments.families import FAMILIES, build_model, half_plan, settings_of
from mmautodfp.graph import samples_of
from mmautodfp.reconstruction import PruneOnly, SyntheticLeastSquares
from mmautodfp.search.survey import Survey, survey_target
from mmautodfp.surgery import apply_plan

IMAGES = dict(num_images=2, size=128, batch_size=2)
SMALL = {256: 32, 1024: 64}


def settings_of_small(family: str) -> ConfigDict:
    """An eighth of the widths, and boxes for whatever a second stage of random weights says."""
    model = settings_of(f'{family}/{FAMILIES[family]}')
    model.backbone.base_channels = 8
    for part in (model.neck, model.rpn_head, model.roi_head):
        _shrink(part)
    model.neck.in_channels = [32, 64, 128, 256]
    if family == 'grid_rcnn':
        model.roi_head.grid_head.point_feat_channels = 8
    model.test_cfg.rcnn |= dict(score_thr=0.0, max_per_img=8)
    return model


def _shrink(settings: Any) -> None:
    for key, value in list(settings.items()):
        if isinstance(value, dict):
            _shrink(value)
        elif key.endswith('channels') and isinstance(value, int):
            settings[key] = SMALL.get(value, value)


def predict(model: nn.Module) -> dict[str, Any]:
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (sample,) = model(images, samples_of(images), mode='predict')
    return dict(sample.pred_instances.items())


def readers(survey: Survey, start: str) -> set[str]:
    """Who reads the groups of a part."""
    return {one.name for group in survey.groups if group.name.startswith(start) for one in group.consumers}


@pytest.mark.parametrize(
    ('family', 'head'),
    [('grid_rcnn', 'grid_head.convs.0.conv'), ('ms_rcnn', 'mask_iou_head.convs.0'), ('point_rend', None)],
)
@pytest.mark.parametrize('compensation', [PruneOnly(), SyntheticLeastSquares(IMAGES)], ids=['only', 'least squares'])
def test_further_heads_predict_with_half_of_all_channels_and_come_back(family, head, compensation):
    model = build_model(settings_of_small(family))
    survey = survey_target(model, 'model')
    # PointRend's head looks for points in the pyramid's maps, whose channels stay.
    assert any(group.name.startswith('neck.fpn_convs') for group in survey.groups) == (head is not None)
    assert head is None or f'roi_head.{head}' in readers(survey, 'neck.fpn_convs')
    assert any(group.name.startswith('roi_head.bbox_head') for group in survey.groups)
    dense = predict(model)
    assert len(dense['scores']) == 8
    with apply_plan(model, half_plan(survey.groups), compensation, groups=survey.groups):
        assert {key: len(value) for key, value in predict(model).items()} == dict.fromkeys(dense, 8)
    again = predict(model)
    assert all(torch.equal(again[key], value) for key, value in dense.items())


def test_what_a_head_that_was_not_run_may_read_stays_and_is_named():
    model = build_model(settings_of_small('mask_rcnn'))
    known = survey_target(model, 'model').groups
    model.roi_head.quality_head = nn.Sequential(nn.Conv2d(32, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3))
    survey = survey_target(model, 'model')
    left = [group.name for group in known if group not in survey.groups]
    assert left == ['neck.fpn_convs.0.conv']
    (reason,) = (line for line in survey.left if 'was not run' in line)
    assert reason.startswith('4 x may feed roi_head.quality_head, which was not run')


def test_what_only_a_training_runs_is_no_obstacle_but_named():
    model = build_model(settings_of_small('mask_rcnn'))
    known = survey_target(model, 'model').groups
    model.auxiliary_head = nn.Conv2d(32, 8, 3)
    survey = survey_target(model, 'model')
    assert survey.groups == known
    assert any(
        line.startswith('1 x is not run when the model predicts') and 'auxiliary_head' in line for line in survey.left
    )


def test_yolacts_training_branch_reads_what_is_left():
    settings = settings_of('yolact/yolact_r50_1xb8-55e_coco')
    settings.backbone.base_channels = 8
    settings.neck |= dict(in_channels=[32, 64, 128, 256], out_channels=32)
    settings.bbox_head |= dict(in_channels=32, feat_channels=32)
    settings.mask_head.in_channels = 32
    model = build_model(settings)
    survey = survey_target(model, 'model')
    assert not any('segm_branch' in line and 'is not run' in line for line in survey.left)
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with apply_plan(model, half_plan(survey.groups), PruneOnly(), groups=survey.groups):
        features = model.extract_feat(images)
        assert features[0].shape[1] == 16
        assert model.mask_head.segm_branch(features[0]).shape[1] == model.mask_head.num_classes
