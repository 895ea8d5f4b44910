"""torchvision's detectors: their parts and all of them, norms frozen or not."""

import copy

import pytest
import torch
from conftest import enliven, random_plan
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d

from mmautodfp.graph import outputs_by_kind, outputs_of
from mmautodfp.graph.forward import random_regions
from mmautodfp.reconstruction import SyntheticImages, shares_missed
from mmautodfp.search.task import PruningTask
from mmautodfp.utils import AutoDFPError

LEAST_SQUARES = dict(type='SyntheticLeastSquares', images=dict(num_images=4, size=64))


def detector(norm: type, kind: type = FasterRCNN) -> nn.Module:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name='resnet18', weights=None, norm_layer=norm)
    return enliven(kind(backbone, 5))


def build(model: nn.Module, **settings) -> PruningTask:
    example = ([torch.rand(3, 96, 96)],)
    return PruningTask.build(
        model, 'backbone.body', example, dict(type='FlopBudget', preserve_ratio=0.5), LEAST_SQUARES, **settings
    )


@pytest.mark.parametrize('norm', [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_a_plan_leaves_what_a_masked_dense_model_gives(norm):
    model = detector(norm)
    model.transform.min_size = (96,)
    task = build(model)
    assert [group.norm for group in task.groups[:2]] == ['layer1.0.bn1', 'layer1.1.bn1']
    plan = random_plan(task.module, 1)
    images = torch.randn(2, 3, 64, 64)
    masked = copy.deepcopy(model)
    body = masked.backbone.body
    task.reconstructor.recalibration, task.reconstructor._recalibration = 0, None  # surgery alone
    for group in task.groups:
        keep = torch.tensor(plan.groups[group.name].keep)
        found = task.reconstructor.reconstruct(group, keep, 0.5)
        (consumer,) = group.consumers
        layer, behind = body.get_submodule(consumer.name), body.get_submodule(consumer.norm)
        constant = layer.weight.data.sum((2, 3)) @ found.constant.float()  # of what its inputs lose on average
        behind.running_mean = behind.running_mean - constant - found.change.shift.float()
        merged = torch.einsum('mnyx,nk->mkyx', layer.weight.data.double(), found.delivery)
        layer.weight.data[:, keep] = (merged * found.change.gain.view(-1, 1, 1, 1)).float()
        gone = torch.tensor([n for n in range(group.num_channels) if n not in set(keep.tolist())])
        layer.register_forward_pre_hook(lambda _, args, gone=gone: args[0].index_fill(1, gone, 0))
    with torch.no_grad(), task.apply(plan):
        for found, expected in zip(outputs_of(model, images), outputs_of(masked, images), strict=True):
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
        assert task.summary(plan)['module_flops']['ratio'] < 1


@pytest.mark.parametrize('kind', [FasterRCNN, RetinaNet])
def test_images_have_the_scale_that_the_detector_gives_its_own(kind):
    model = detector(nn.BatchNorm2d, kind)
    pixels = torch.cat(list(SyntheticImages(num_images=2, size=64, mean=(0.0,) * 3, std=(255.0,) * 3).batches()))
    model.transform.min_size, model.transform.max_size = (64,), 64
    (images,) = SyntheticImages(num_images=2, size=64).normalized_as(model).batches()
    expected = model.transform(list(pixels))[0].tensors
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


class BoxHead(TwoMLPHead):
    """Wants more than torchvision's own."""

    def forward(self, x, proposals):
        return super().forward(x)


class NamedLevels(RetinaNetHead):
    """Wants the features by their names."""

    def forward(self, features):
        return super().forward(list(features.values()))


class LargeOnes(RetinaNetHead):
    """Does not take small images."""

    def forward(self, levels):
        if levels[0].shape[-1] <= 16:
            raise RuntimeError('the size of the anchors must match')
        return super().forward(levels)


@pytest.mark.parametrize(
    ('path', 'kind', 'said'),
    [
        (
            'roi_heads.box_head',
            BoxHead,
            r'roi_heads\.box_head of the FasterRCNN was called .* this BoxHead takes something else \(TypeError: .*'
            "missing 1 required positional argument: 'proposals'.*let its forward take what theirs do, or",
        ),
        (
            'head',
            NamedLevels,
            r"head of the RetinaNet was called .* this NamedLevels .*'list' object has no attribute 'values'",
        ),
        ('head', LargeOnes, r'images of shape \[4, 3, 64, 64\] .* through the RetinaNet, .* \(the size of the anchors'),
    ],
)
def test_a_head_of_another_kind_is_told_in_a_sentence(path, kind, said):
    model = detector(nn.BatchNorm2d, FasterRCNN if kind is BoxHead else RetinaNet)
    model.get_submodule(path).__class__ = kind
    model.transform.min_size = (96,)
    example = ([torch.rand(3, 96, 96)],) if kind is LargeOnes else None
    settings = (model, 'backbone.body', example, dict(type='ParamBudget', preserve_ratio=0.5))
    with pytest.raises(AutoDFPError, match=f'^{said}'):
        PruningTask.build(*settings, LEAST_SQUARES)
    task = PruningTask.build(*settings, dict(type='SimilarityReconstructor'))  # which asks no head
    assert task.summary(task.uniform_plan())['module_params']['ratio'] <= 0.5


class TwoLevels(nn.Module):
    """A backbone of three convolutions, whose features are of two sizes."""

    out_channels = 16

    def __init__(self):
        super().__init__()
        block = lambda inputs, stride: nn.Sequential(
            nn.Conv2d(inputs, 16, 3, stride, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.first = nn.Sequential(block(3, 4), block(16, 1))
        self.second = block(16, 2)

    def forward(self, images):
        fine = self.first(images)
        return {'0': fine, '1': self.second(fine)}


def small_detector(kind: type) -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(min_size=96, max_size=96)
    anchors = AnchorGenerator(((16,), (32,)), ((1.0,),) * 2)
    if kind is RetinaNet:
        return enliven(RetinaNet(TwoLevels(), 5, anchor_generator=anchors, **sizes))
    pool = MultiScaleRoIAlign(['0', '1'], 7, 2)
    heads = dict(box_head=TwoMLPHead(16 * 49, 32), box_predictor=FastRCNNPredictor(32, 5))
    if kind is MaskRCNN:
        heads |= dict(mask_head=MaskRCNNHeads(16, (8,), 1), mask_predictor=MaskRCNNPredictor(8, 8, 5))
    return enliven(kind(TwoLevels(), rpn_anchor_generator=anchors, box_roi_pool=pool, **heads, **sizes))


def test_all_heads_are_heard_before_boxes_are_made():
    images = torch.randn(2, 3, 64, 64)
    model = small_detector(RetinaNet)
    with torch.no_grad():
        features = model.backbone(images)
        expected = model.head(list(features.values()))  # [B, positions, channels]
        assert all(map(torch.equal, outputs_of(model, images), (x.transpose(1, 2) for x in expected.values())))
        model = small_detector(MaskRCNN)
        features = model.backbone(images)
        boxes = random_regions(images)
        inside = [boxes[boxes[:, 0] == index, 1:] for index in (0, 1)]
        pooled = model.roi_heads.box_roi_pool(features, inside, [(64, 64)] * 2)
        *first, logits, offsets, masks = outputs_of(model, images)
        proposals = [answer for level in model.rpn.head(list(features.values())) for answer in level]
        assert all(map(torch.equal, first, proposals))
        found = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
        assert all(map(torch.equal, (logits, offsets), found))
        assert masks.shape == (2 * len(inside[0]) // 4, 5, 28, 28)


# Both levels go together, as heads read them by the same weights.
LEVELS = ('backbone.first.0.0', 'backbone.first.1.0')


@pytest.mark.parametrize(
    ('kind', 'read'),
    [
        (FasterRCNN, {*LEVELS, 'rpn.head.conv.0.0', 'roi_heads.box_head.fc6', 'roi_heads.box_head.fc7'}),
        (MaskRCNN, {*LEVELS, 'roi_heads.mask_head.0.0', 'roi_heads.mask_predictor.conv5_mask'}),
        (RetinaNet, {*LEVELS, 'head.classification_head.conv.3.0'}),
    ],
)
def test_a_whole_detector_goes_on_saying_what_it_said(kind, read):
    model, images = small_detector(kind), torch.randn(2, 3, 64, 64)
    limit, missed = dict(type='FlopBudget', preserve_ratio=0.8), {}
    with torch.no_grad():
        dense = outputs_by_kind(model, images)
        for settings in (dict(type='PruneOnly'), LEAST_SQUARES | dict(refinement=False)):
            task = PruningTask.build(model, 'model', [torch.rand(3, 96, 96)], limit, settings, allocate=False)
            assert read <= {group.name for group in task.groups}
            plan = task.uniform_plan()
            assert task.summary(plan)['model_flops']['ratio'] <= 0.8
            with task.apply(plan):
                missed[settings['type']] = sum(shares_missed([outputs_by_kind(model, images)], [dense]))
                assert {'boxes', 'scores', 'labels'} <= set(model([torch.rand(3, 96, 96)])[0])
    assert missed['SyntheticLeastSquares'] < 0.7 * missed['PruneOnly']
