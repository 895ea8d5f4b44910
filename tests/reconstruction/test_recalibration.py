"""Norm statistics of a pruned module, against torch's own training mode."""

import copy

import pytest
import torch
from conftest import build_resnet, enliven, random_plan
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmautodfp.graph import find_groups
from mmautodfp.reconstruction import PruneOnly, SyntheticLeastSquares
from mmautodfp.reconstruction.recalibration import Recalibration
from mmautodfp.reconstruction.synthetic import NormStatistics
from mmautodfp.surgery import GroupPlan, PruningPlan, Restore, apply_plan

IMAGES = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def resnet():
    return build_resnet(18)


def recalibration_of(module: nn.Module, groups, batches) -> Recalibration:
    seen = NormStatistics()
    for batch in batches:
        seen.run(module, (batch,))
    return Recalibration(module, groups, lambda: [(batch,) for batch in batches], seen.of_first())


def statistics(module: nn.Module) -> dict[str, tuple]:
    return {
        name: (norm.running_mean, norm.running_var)
        for name, norm in module.named_modules()
        if isinstance(norm, _BatchNorm)
    }


def as_trained_on(module: nn.Module, images: torch.Tensor) -> dict[str, tuple]:
    """What torch's norms take over of one batch in training mode."""
    module = copy.deepcopy(module)
    module.norm_eval = False  # mmdet's ResNet would switch its norms back
    module.train()
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.train()
            norm.momentum = 1.0
    with torch.no_grad():
        module(images)
    return statistics(module)


def test_norms_move_as_far_as_pruning_moves_what_torch_measures_in_training(resnet):
    groups = find_groups(resnet)
    recalibrate = recalibration_of(resnet, groups, [IMAGES])
    before, dense = statistics(resnet), as_trained_on(resnet, IMAGES)
    plan = random_plan(resnet, 1)
    keeps = {group.norm: list(plan.groups[group.name].keep) for group in groups}
    with apply_plan(resnet, plan, PruneOnly()) as restore:
        pruned = as_trained_on(resnet, IMAGES)
        recalibrate(resnet, plan, restore)
        found = statistics(resnet)
        for name, (mean, variance) in found.items():
            keep = keeps.get(name, slice(None))
            expected = before[name][0][keep] + pruned[name][0] - dense[name][0][keep]
            assert torch.allclose(mean, expected, atol=1e-4)
            ratio = (pruned[name][1] / dense[name][1][keep]).clamp(0.25, 4)
            assert torch.allclose(variance, before[name][1][keep] * ratio, rtol=1e-3)
    after = statistics(resnet)
    assert all(after[name][0] is mean and after[name][1] is var for name, (mean, var) in before.items())


def test_the_batches_do_not_matter_where_every_image_is_the_same(resnet):
    image = IMAGES[:1]
    plan = random_plan(resnet, 2)
    found = []
    for sizes in ([8], [2, 4, 2]):
        batches = [image.expand(size, -1, -1, -1) for size in sizes]
        recalibrate = recalibration_of(resnet, find_groups(resnet), batches)
        with apply_plan(resnet, plan, PruneOnly()) as restore:
            recalibrate(resnet, plan, restore)
            found.append(statistics(resnet))
    for name in found[0]:
        for one, other in zip(found[0][name], found[1][name], strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_variances_of_several_batches_are_pooled():
    module, seen = nn.Sequential(nn.BatchNorm2d(2)), NormStatistics()
    batches = [torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(n)) * n for n in (2, 5, 3)]
    for batch in batches:
        seen.run(module, (batch,))
    for count in (1, 2, None):
        samples = torch.cat(batches[:count]).transpose(0, 1).flatten(1)
        mean, variance = seen.of_first(count)['0']
        torch.testing.assert_close(mean.float(), samples.mean(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(variance.float(), samples.var(1, correction=0), atol=0, rtol=1e-4)


def test_a_plan_that_prunes_nothing_moves_nothing(resnet):
    plan = PruningPlan({u.name: GroupPlan(tuple(range(u.num_channels)), u.num_channels) for u in find_groups(resnet)})
    before = {name: [value.clone() for value in pair] for name, pair in statistics(resnet).items()}
    recalibration_of(resnet, find_groups(resnet), [IMAGES])(resnet, plan, Restore())
    for name, pair in statistics(resnet).items():
        assert all(torch.allclose(one, other) for one, other in zip(pair, before[name], strict=True))


def test_episodes_of_least_squares_use_it_and_the_full_pass_does_not(resnet, monkeypatch):
    calls = []
    original = Recalibration.__call__
    monkeypatch.setattr(Recalibration, '__call__', lambda self, *args: calls.append(1) or original(self, *args))
    plan = random_plan(resnet, 3)
    for settings, expected in (({}, 1), (dict(recalibration=0), 0)):
        reconstructor = SyntheticLeastSquares(images=dict(size=32, num_images=8), **settings)
        apply_plan(resnet, plan, reconstructor)()
        assert len(calls) == expected
        calls.clear()
        apply_plan(resnet, plan, reconstructor, final=True)()
        assert not calls


def test_as_many_images_as_asked_for_are_seen(resnet):
    for asked, batches in ((1, 1), (8, 1), (9, 2), (64, 2)):
        reconstructor = SyntheticLeastSquares(images=dict(size=32, num_images=16), recalibration=asked)
        reconstructor.ensure_fitted(resnet)
        assert len(list(reconstructor._recalibration._batches())) == batches


def test_a_module_without_norms_is_left_alone():
    module = enliven(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)))
    before = copy.deepcopy(module.state_dict())
    recalibration_of(module, [], [IMAGES])(module, PruningPlan({}), Restore())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
