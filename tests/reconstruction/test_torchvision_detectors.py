"""torchvision's detectors: features of the backbone alone, norms frozen or not."""

import copy

import pytest
import torch
from conftest import enliven, random_plan
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from mmautodfp.graph import outputs_of
from mmautodfp.reconstruction import SyntheticImages
from mmautodfp.search.task import PruningTask

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
        keep = torch.tensor(plan.units[group.name].keep)
        found = task.reconstructor.reconstruct(group, keep, 0.5)
        (consumer,) = group.consumers
        layer, behind = body.get_submodule(consumer.name), body.get_submodule(consumer.norm)
        change = found.changes[consumer.name]
        constant = layer.weight.data.sum((2, 3)) @ found.constant.float()  # of what its inputs lose on average
        behind.running_mean = behind.running_mean - constant - change.shift.float()
        merged = torch.einsum('mnyx,nk->mkyx', layer.weight.data.double(), found.delivery)
        layer.weight.data[:, keep] = (merged * change.gain.view(-1, 1, 1, 1)).float()
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
    assert all(
        torch.equal(a, b) for a, b in zip(outputs_of(model, images), model.backbone(images).values(), strict=True)
    )
