"""Where a detector sees something."""

import pytest
import torch
from mmdet.apis import init_detector
from mmdet.models.dense_heads import CenterNetHead, YOLOV3Head
from torch import nn

from mmautodfp.graph import outputs_by_kind
from mmautodfp.reconstruction.foreground import BACKGROUND, Foreground, foreground_of


def test_a_map_of_the_size_of_a_level_counts_as_that_level_does():
    fine, coarse = torch.rand(2, 8, 12), torch.rand(2, 4, 6)
    foreground = Foreground([fine, coarse])
    for level in (fine, coarse):
        weights = foreground.weights(torch.zeros(2, 5, *level.shape[1:]))
        torch.testing.assert_close(weights, level.flatten() + BACKGROUND)


def test_other_maps_count_as_the_level_that_is_surest():
    foreground = Foreground([torch.rand(2, 8, 12), torch.rand(2, 4, 6)])
    surest = [
        [
            [
                max(float(level[b, y * level.shape[1] // 8, x * level.shape[2] // 12]) for level in foreground.levels)
                for x in range(12)
            ]
            for y in range(8)
        ]
        for b in range(2)
    ]
    surest = torch.tensor(surest)
    twice = foreground.weights(torch.zeros(2, 5, 16, 24))
    torch.testing.assert_close(twice, surest.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten() + BACKGROUND)
    quarter = foreground.weights(torch.zeros(2, 5, 2, 3))
    torch.testing.assert_close(
        quarter, surest.unflatten(1, (2, 4)).unflatten(3, (3, 4)).amax((2, 4)).flatten() + BACKGROUND
    )


def test_what_is_no_map_of_the_images_has_no_places():
    foreground = Foreground([torch.rand(2, 8, 12)])
    assert foreground.weights(torch.zeros(96, 7)) is None
    assert foreground.weights(torch.zeros(96, 7, 7, 7)) is None


@pytest.mark.parametrize(
    ('config', 'head', 'levels'),
    [('demo/faster_rcnn_digits_autodfp', 'rpn_head', 5), ('bccd/rtmdet_tiny_bccd_autodfp', 'bbox_head', 3)],
)
def test_a_dense_head_sees_on_every_level_what_its_scores_say(config, head, levels):
    model = init_detector(f'configs/{config}.py', device='cpu')
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        scores = model.get_submodule(head)(model.extract_feat(images))[0]
        found = foreground_of(model, outputs_by_kind(model, images))
    assert len(found.levels) == len(scores) == levels
    for level, score in zip(found.levels, scores, strict=True):
        torch.testing.assert_close(level, score.sigmoid().max(1).values)


def test_heads_that_give_probabilities_see_what_they_say():
    head = CenterNetHead(8, 8, 3)
    with torch.no_grad():
        outputs = [list(levels) for levels in head([torch.randn(2, 8, 6, 9)])]
    model = nn.Module()
    model.bbox_head = head
    (level,) = foreground_of(model, outputs).levels
    torch.testing.assert_close(level, outputs[0][0].amax(1))


def test_yolo_sees_objects_where_one_of_its_anchors_does():
    model, scores = nn.Module(), torch.randn(2, 3 * 9, 4, 5)  # 3 anchors, 4 classes
    model.bbox_head = YOLOV3Head(4, [8] * 3, out_channels=[8] * 3)
    (level,) = foreground_of(model, [[scores]]).levels
    for image, y, x in [(0, 0, 0), (1, 3, 4), (1, 2, 1)]:
        anchors = scores[image, :, y, x].view(3, 9).sigmoid()
        assert level[image, y, x] == pytest.approx(max(float(one[4] * one[5:].max()) for one in anchors))


def test_a_classifier_sees_no_foreground():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert foreground_of(model, outputs_by_kind(model, torch.zeros(1, 3, 8, 8))) is None
