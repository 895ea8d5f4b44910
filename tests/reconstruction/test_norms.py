"""Norms of other kinds that compute the same: whatever is done to a module, the outcome is the same too."""

import copy

import pytest
import torch
from conftest import enliven, random_plan
from least_squares_data import IMAGES, assert_same, snapshot
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from mmautodfp.graph import find_groups
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, SimilarityReconstructor, SyntheticLeastSquares
from mmautodfp.surgery import Slim, apply_plan
from mmautodfp.zoo import CifarResNet, MobileNetV2

NETWORKS = {
    'resnet': lambda: CifarResNet(depth=8),
    'mobilenet': lambda: MobileNetV2(stem=8, last=24, stages=((1, 8, 1, 1), (3, 12, 2, 2))),
}
RECONSTRUCTORS = (PruneOnly, SimilarityReconstructor, NeuronMerging, lambda: SyntheticLeastSquares(IMAGES))


def frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    new = FrozenBatchNorm2d(norm.num_features, norm.eps)
    new.load_state_dict(norm.state_dict())
    return new


def without_affine(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    new = nn.BatchNorm2d(norm.num_features, norm.eps, affine=False)
    new.load_state_dict({name: tensor for name, tensor in norm.state_dict().items() if 'running' in name}, strict=False)
    return new


def pair(network: str, replace) -> tuple[nn.Module, nn.Module]:
    """A network with BatchNorm, and with what computes the same."""
    torch.manual_seed(0)
    usual = enliven(NETWORKS[network]())
    if replace is without_affine:
        for norm in usual.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.ones_(norm.weight)
                nn.init.zeros_(norm.bias)
    other = copy.deepcopy(usual)
    for name, norm in usual.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            parent, _, last = name.rpartition('.')
            setattr(other.get_submodule(parent), last, replace(norm))
    return usual, other.eval()


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('replace', [frozen, without_affine])
def test_every_compensation_gives_what_it_gives_with_batch_norm(network, replace):
    usual, other = pair(network, replace)
    assert find_groups(other) == find_groups(usual)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before, plan = snapshot(other), random_plan(usual)
    for build in RECONSTRUCTORS:
        for final in (False, True):
            with torch.no_grad(), apply_plan(usual, plan, build(), final):
                expected = usual(images)
            with torch.no_grad(), apply_plan(other, plan, build(), final) as restore:
                torch.testing.assert_close(other(images), expected, rtol=1e-3, atol=1e-4)
                slim = Slim(pair(network, replace)[1], layers=restore.changes(other)).eval()
                slim.load_state_dict(other.state_dict())
                assert torch.equal(slim(images), other(images))
            assert_same(other, before)


def test_norms_that_keep_no_statistics_go_on_using_their_batch():
    module = enliven(CifarResNet(depth=8))
    module.bn1 = nn.BatchNorm2d(16, track_running_stats=False)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        dense = module(images)
        with apply_plan(module, random_plan(module), SyntheticLeastSquares(IMAGES), final=True):
            assert module(images).isfinite().all()
        assert torch.equal(module(images), dense)
