"""Distillation on images that come from nowhere: what it brings nearer, and what it leaves as it was."""

import copy

import pytest
import torch
from conftest import enliven
from least_squares_data import IMAGES, assert_same, frozen_resnet, snapshot, uniform  # noqa: F401, a fixture
from torch import nn

from mmautodfp.api import PruningTask, search
from mmautodfp.frontier import choose, frontier
from mmautodfp.reconstruction import SyntheticImages, SyntheticLeastSquares
from mmautodfp.reconstruction.distillation import Distillation, distill
from mmautodfp.reconstruction.sensitivity import mean_missed, shares_missed
from mmautodfp.surgery import Restore, Slim, apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.zoo import CifarResNet


def distilling(distillation=True, **settings):
    return SyntheticLeastSquares(IMAGES, distillation=distillation, **settings)


@torch.no_grad()
def new_images(seed, count=32):
    return next(
        iter(SyntheticImages(num_images=count, size=32, batch_size=count, seed=seed).batches(torch.device('cpu')))
    )


@torch.no_grad()
def trained_on_images():
    """A small network whose norms hold the statistics of drawn images, as if those were what it was trained on."""
    torch.manual_seed(0)
    module = enliven(CifarResNet(depth=8))
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for _ in range(3):  # each pass moves what later norms are given
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        module.train()(new_images(3, 64))
    return module.eval()


def test_a_distilled_model_says_more_of_what_the_dense_one_says_on_images_that_it_never_saw():
    module, images = trained_on_images(), new_images(7)
    errors = []
    with torch.no_grad():
        dense = module(images)
    for distillation in (False, dict(steps=100, batch_size=8)):
        with apply_plan(module, uniform(module, 0.4), distilling(distillation), final=True), torch.no_grad():
            errors.append(shares_missed([[[module(images)]]], [[[dense]]])[0])
    full_pass, distilled = errors
    assert distilled < 0.75 * full_pass


def test_distillation_is_the_same_each_time_and_can_be_taken_back(resnet):
    before = snapshot(resnet)
    states = []
    for _ in range(2):
        with apply_plan(resnet, uniform(resnet, 0.5), distilling(dict(steps=3)), final=True):
            states.append(snapshot(resnet))
        assert_same(resnet, before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_where_nothing_is_missing_distillation_changes_nothing(resnet):
    before = snapshot(resnet)
    apply_plan(resnet, uniform(resnet, 1.0), distilling(dict(steps=3)), final=True)
    assert_same(resnet, before)


def test_a_distilled_model_keeps_its_statistics_and_what_is_frozen_and_reloads():
    module = enliven(CifarResNet(depth=8)).eval()
    empty = copy.deepcopy(module)
    module.conv1.weight.requires_grad_(False)
    frozen = [name for name, weight in module.named_parameters() if not weight.requires_grad]
    statistics = []
    for distillation in (False, dict(steps=3)):
        reconstructor = distilling(distillation)
        restore = apply_plan(module, uniform(module, 0.5), reconstructor, final=True)
        statistics.append(snapshot(module))
        if distillation:
            assert [name for name, weight in module.named_parameters() if not weight.requires_grad] == frozen
            slim = Slim(empty, restore.changes(module))
            slim.load_state_dict(module.state_dict())
            x = torch.randn(2, 3, 32, 32)
            assert torch.equal(slim(x), module(x))
        restore()
    without, distilled = statistics
    assert all(torch.equal(without[name], distilled[name]) for name in without if 'running' in name)
    assert not torch.equal(without['conv1.weight'], distilled['conv1.weight'])


def test_of_a_part_nothing_else_is_touched():
    stem, part = nn.Conv2d(3, 3, 3, padding=1), enliven(CifarResNet(depth=8))
    model = nn.Sequential(stem, part).eval()
    before, reconstructor = snapshot(stem), distilling(dict(steps=3))
    reconstructor.ensure_fitted(part, model)
    apply_plan(part, uniform(part, 0.5), reconstructor, final=True)
    assert_same(stem, before)
    assert [name for name, weight in model.named_parameters() if weight.grad is not None] == []


def test_layers_that_share_a_weight_go_on_sharing_it():
    def build():
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        return nn.Sequential(first, nn.ReLU(), second)

    torch.manual_seed(0)
    dense, module = build(), build()
    slim = copy.deepcopy(module)
    batches = ((torch.randn(8, 4),) for _ in range(20))
    before = module[0].weight
    distill(module, dense, slim, batches, Distillation(steps=20, learning_rate=0.05), Restore())
    assert module[0].weight is module[2].weight
    assert not torch.equal(module[0].weight, before)
    assert torch.equal(module[0].weight, slim[0].weight)


def test_the_error_is_the_mean_over_the_kinds_of_answers_and_has_their_gradient():
    torch.manual_seed(0)
    dense = [[torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)], [torch.randn(2, 5)], [torch.ones(2, 1)]]
    found = [[level + 0.1 * torch.randn_like(level) for level in kind] for kind in dense]
    leaf = found[1][0].requires_grad_()
    error = mean_missed(found, dense, None)
    shares = shares_missed([found], [dense])
    assert error.item() == pytest.approx(sum(shares) / 2)  # of what is the same everywhere nothing can be missed
    error.backward()
    spread = (dense[1][0] - dense[1][0].mean(0)).square().sum()
    expected = 2 * (leaf - dense[1][0]).detach() / spread / 2
    assert torch.allclose(leaf.grad, expected, atol=1e-6)


def test_the_rate_of_a_tensor_goes_by_its_size():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with torch.no_grad():
        dense[1].weight.mul_(100)
    module = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in module:
            layer.weight[:, 0] = 0
    slim, before = copy.deepcopy(module), snapshot(module)
    images = torch.randn(32, 6)
    distill(module, dense, slim, iter([(images,)] * 4), Distillation(steps=4, learning_rate=0.01), Restore())
    moved = []
    for name in ('0.weight', '1.weight'):
        size = before[name].square().mean().sqrt()
        moved.append(float((module.get_parameter(name) - before[name]).detach().abs().amax() / size))
    assert moved[0] == pytest.approx(moved[1], rel=0.05)
    assert 0.01 < moved[0] < 0.04  # four steps, each of 0.01 at most


@pytest.mark.parametrize('steps', [2, 9, 10, 11])
def test_a_few_steps_will_do(steps):
    torch.manual_seed(0)
    dense, module = nn.Linear(4, 4), nn.Linear(4, 4)
    before = module.weight
    batches = ((torch.randn(8, 4),) for _ in range(steps))
    distill(module, dense, copy.deepcopy(module), batches, Distillation(steps), Restore())
    assert module.weight.isfinite().all()
    assert not torch.equal(module.weight, before)


def test_what_cannot_be_distilled_ends_in_a_sentence():
    with pytest.raises(AutoDFPError, match='refinement=False, but it starts where the full pass ends'):
        distilling(refinement=False)
    with pytest.raises(AutoDFPError, match='distillation'):
        distilling(dict(steps=0))

    class Ranks(nn.Linear):
        def forward(self, x):
            return super().forward(x).argsort(1)

    module = Ranks(4, 4)
    twins = (module, copy.deepcopy(module), copy.deepcopy(module))
    with pytest.raises(AutoDFPError, match='the Ranks was to be distilled, but what it says has no gradient'):
        distill(*twins, iter([(torch.randn(4, 4),)]), Distillation(steps=2), Restore())
    half = nn.Linear(4, 4).to(torch.bfloat16)
    with pytest.raises(AutoDFPError, match=r'takes float32, but it has weights of torch.bfloat16; call float\(\)'):
        distill(half, half, copy.deepcopy(half), iter(()), Distillation(steps=2), Restore())
    module = nn.Linear(4, 4)
    batches = ((torch.randn(4, 4),) for _ in range(5))
    slim = nn.Linear(4, 4)
    before = snapshot(module)
    with pytest.raises(AutoDFPError, match='weights are not finite after it; lower reconstructor'):
        distill(module, copy.deepcopy(module), slim, batches, Distillation(steps=5, learning_rate=1e38), Restore())
    assert_same(module, before)


def test_nothing_is_distilled_before_a_search_or_a_frontier_has_ended():
    plans, rewards, states, images = [], [], [], new_images(7, 4)
    brightness, contrast = (lambda model: float(model(images).mean())), (lambda model: float(model(images).std()))
    for distillation in (False, dict(steps=3, batch_size=2)):
        task = PruningTask.build(trained_on_images(), '', None, 0.5, distilling(distillation))
        found = search(task, brightness, 3, judge=contrast, finalists=3)
        points = frontier(task, contrast, brightness, num_points=3)
        plans.append([found.plan, choose(points, dict(max_params='90%')).found_for(task).plan, points.identity])
        rewards.append([one.metric for one in found.finalists] + [point.held_out for point in points.points])
        with task.apply(found.plan, final=True):
            states.append(snapshot(task.model))
    assert plans[0] == plans[1]
    assert len(rewards[0]) == 6
    assert rewards[0] == rewards[1]
    assert any(not torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert 'distillation' not in SyntheticLeastSquares(IMAGES).identity  # as in searches of earlier versions
