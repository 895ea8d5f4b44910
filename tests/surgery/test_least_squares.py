"""Least squares on synthetic images: moments, surgery and the full pass, on small networks."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import build_resnet, enliven, random_plan
from torch import nn

from mmautodfp import AutoDFPError
from mmautodfp.classification import CifarResNet
from mmautodfp.surgery import (
    PruneOnly,
    PruningPlan,
    Refinement,
    SyntheticImages,
    SyntheticLeastSquares,
    UnitPlan,
    apply_plan,
    batch_statistics,
    find_units,
)
from mmautodfp.surgery.paths import Paths, Seen, watch_layers
from mmautodfp.surgery.refine import patches_of

IMAGES = dict(num_images=12, size=32, batch_size=4)


def uniform(module, share, reconstructor=None):
    plans = {}
    for unit in find_units(module):
        order = reconstructor.ranking(unit) if reconstructor else None
        order = torch.arange(unit.num_channels) if order is None else order
        keep = order[: max(1, int(unit.num_channels * share))].sort().values.tolist()
        plans[unit.name] = UnitPlan(tuple(keep), unit.num_channels)
    return PruningPlan(plans)


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(module, before):
    state = module.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.fixture
def resnet():
    return build_resnet(depth=50, frozen_stages=1, norm_eval=True)


def test_fitting_leaves_the_module_as_it_was(resnet):
    resnet.train()
    modes = {name: layer.training for name, layer in resnet.named_modules()}
    before = snapshot(resnet)
    SyntheticLeastSquares(IMAGES).ensure_fitted(resnet)
    assert_same(resnet, before)
    assert {name: layer.training for name, layer in resnet.named_modules()} == modes
    for layer in resnet.modules():
        assert 'forward' not in vars(layer)
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


def test_moments_are_those_of_batch_statistics_in_every_norm():
    block = enliven(CifarResNet(depth=8))
    block.layer1[0].bn1.requires_grad_(False)  # frozen
    images = SyntheticImages(num_images=6, size=16, batch_size=6)
    reconstructor = SyntheticLeastSquares(dict(num_images=6, size=16, batch_size=6))
    reconstructor.ensure_fitted(block)
    (x,) = images.batches()
    norm = lambda layer, z: F.batch_norm(z, None, None, layer.weight, layer.bias, True, eps=layer.eps)
    first = block.layer1[0]
    with torch.no_grad():
        x = norm(block.bn1, block.conv1(x)).relu()
        x = norm(first.bn1, first.conv1(x)).relu()
    samples = x.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    known = reconstructor._units['layer1.0.conv1']
    np.testing.assert_allclose(known.mean, samples.mean(0), atol=1e-5)
    np.testing.assert_allclose(known.covariance, np.cov(samples, rowvar=False, bias=True), atol=1e-4)


@pytest.mark.parametrize('finish', [False, True])
def test_channels_that_others_explain_can_go_without_a_loss(finish):
    """Each of the last channels is a multiple of one of the first: the pruned network gives the same."""
    module = enliven(CifarResNet(depth=8, channels=(8, 8, 8)))
    for block in (*module.layer1, *module.layer2, *module.layer3):
        conv, norm = block.conv1, block.bn1
        factor = torch.tensor([0.5, 2.0, 1.5, 1.0])
        conv.weight.data[4:] = conv.weight.data[:4]
        for name in ('running_mean', 'running_var'):
            getattr(norm, name)[4:] = getattr(norm, name)[:4]
        norm.weight.data[4:], norm.bias.data[4:] = norm.weight.data[:4] * factor, norm.bias.data[:4] * factor
    reconstructor = SyntheticLeastSquares(
        IMAGES, ridge=1e-9, ranking='l2', refinement=dict(ridge=1e-9, units_per_pass=1)
    )
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = module(images)
        with apply_plan(module, uniform(module, 0.5), reconstructor, finish):
            assert module.layer1[0].conv2.in_channels == 4
            torch.testing.assert_close(module(images), dense, rtol=1e-3, atol=1e-3)


def test_constant_channels_move_exactly():
    module = enliven(CifarResNet(depth=8))
    for block in (*module.layer1, *module.layer2, *module.layer3):
        block.bn1.weight.data[3:] = 0
        block.conv2.padding = (0, 0)  # at a border, zeros take a constant's place
        block.conv2.kernel_size, block.conv2.weight.data = (1, 1), block.conv2.weight.data[:, :, :1, :1]
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    plan = PruningPlan({u.name: UnitPlan((0, 1, 2), u.num_channels) for u in find_units(module)})
    with torch.no_grad():
        dense = module(images)
        with apply_plan(module, plan, SyntheticLeastSquares(IMAGES)):
            torch.testing.assert_close(module(images), dense, rtol=1e-4, atol=1e-4)


def test_each_step_brings_the_module_nearer_to_the_dense_one():
    module = enliven(CifarResNet(depth=14))
    reconstructor = SyntheticLeastSquares(IMAGES | dict(num_images=32))
    reconstructor.ensure_fitted(module)
    (images,) = SyntheticImages(num_images=16, size=32, batch_size=16, seed=9).batches()
    with torch.no_grad(), batch_statistics(module):
        dense = module(images)
    plan = uniform(module, 0.5, reconstructor)
    errors = []
    for method, finish in ((PruneOnly(), False), (reconstructor, False), (reconstructor, True)):
        with apply_plan(module, plan, method, finish), torch.no_grad(), batch_statistics(module):
            errors.append(float((module(images) - dense).pow(2).sum() / (dense - dense.mean(0)).pow(2).sum()))
    assert errors[0] > errors[1] > errors[2]


def test_a_finished_plan_is_the_same_each_time_and_can_be_taken_back(resnet):
    before = snapshot(resnet)
    reconstructor = SyntheticLeastSquares(IMAGES, refinement=dict(units_per_pass=16))
    states = []
    for _ in range(2):
        restore = apply_plan(resnet, random_plan(resnet), reconstructor, finish=True)
        states.append(snapshot(resnet))
        restore.swap()
        assert_same(resnet, before)
        restore.swap()
        assert_same(resnet, states[-1])
        restore()
        assert_same(resnet, before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_finishing_a_plan_that_keeps_all_changes_nothing(resnet):
    before = snapshot(resnet)
    apply_plan(resnet, uniform(resnet, 1.0), SyntheticLeastSquares(IMAGES), finish=True)
    assert_same(resnet, before)


def test_a_unit_behind_the_pruned_ones_takes_part_in_the_full_pass(resnet):
    first, *_, last = find_units(resnet)
    plan = PruningPlan({first.name: UnitPlan(tuple(range(4)), first.num_channels)})
    before = snapshot(resnet)
    with apply_plan(resnet, plan, SyntheticLeastSquares(IMAGES, refinement=dict(units_per_pass=32)), finish=True):
        assert not torch.equal(
            resnet.get_submodule(last.consumers[0].name).weight, before[f'{last.consumers[0].name}.weight']
        )
    assert_same(resnet, before)


@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(6, 5, 3, padding=1, bias=False),
        nn.Conv2d(6, 5, (3, 1), stride=2, padding=(1, 0), dilation=2, bias=False),
        nn.Conv2d(6, 5, 1, bias=False),
        nn.Conv2d(6, 5, 1, stride=2, bias=False),
        nn.Conv2d(6, 5, 3, padding='same', bias=False),
        nn.Conv2d(6, 5, (4, 2), padding='same', dilation=(1, 2), bias=False),
        nn.Conv2d(6, 5, 3, padding='valid', bias=False),
        nn.Conv2d(6, 5, 3, padding=(2, 1), padding_mode='reflect', bias=False),
        nn.Conv2d(6, 5, 3, padding=1, stride=2, padding_mode='circular', bias=False),
        nn.Conv2d(6, 5, 3, padding='same', padding_mode='replicate', bias=False),
        nn.Conv2d(6, 5, 1, padding='same', bias=False),
        nn.Linear(6, 5, bias=False),
    ],
)
def test_patches_times_weight_are_the_layers_outputs(layer):
    x = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 9, 8)
    with torch.no_grad():
        output = layer(x)
        found = patches_of(layer, x) @ layer.weight.flatten(1).T
    expected = output if output.ndim == 2 else output.permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def on_rows():
    """Linear layers that read the rows of an image, [B, 3, 32, N]."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5)).eval()


def test_channels_of_linear_layers_are_on_the_last_axis():
    module = on_rows()
    reconstructor = SyntheticLeastSquares(IMAGES)
    reconstructor.ensure_fitted(module)
    with torch.no_grad():
        samples = module[:2](torch.cat(list(SyntheticImages(**IMAGES).batches()))).flatten(0, 2).double().numpy()
    known = reconstructor._units['0']
    np.testing.assert_allclose(known.mean, samples.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(known.covariance, np.cov(samples, rowvar=False, bias=True), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('finish', [False, True])
def test_linear_layers_on_many_axes_lose_nothing_if_others_explain_the_pruned(finish):
    module = on_rows()
    module[0].weight.data[6:], module[0].bias.data[6:] = module[0].weight.data[:6] * 2, module[0].bias.data[:6] * 2
    plan = PruningPlan({'0': UnitPlan(tuple(range(6)), 12)})
    images = torch.randn(2, 3, 32, 32)
    reconstructor = SyntheticLeastSquares(IMAGES, ridge=1e-9, refinement=dict(ridge=1e-9, patch_ridge=1e-9))
    with torch.no_grad():
        dense = module(images)
        with apply_plan(module, plan, reconstructor, finish):
            torch.testing.assert_close(module(images), dense, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('padding', [dict(padding='same'), dict(padding=1, padding_mode='reflect')])
def test_the_full_pass_minds_how_a_consumer_pads(padding):
    """Doubled channels cost nothing, at the border either."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3, **padding)).eval()
    module[0].weight.data[4:], module[0].bias.data[4:] = module[0].weight.data[:4] * 2, module[0].bias.data[:4] * 2
    images = torch.cat(list(SyntheticImages(**IMAGES).batches()))
    plan = PruningPlan({'0': UnitPlan((0, 1, 2, 3), 8)})
    reconstructor = SyntheticLeastSquares(IMAGES, refinement=dict(patch_ridge=1e-9))
    with torch.no_grad():
        dense = module(images)
        with apply_plan(module, plan, reconstructor, finish=True):
            torch.testing.assert_close(module(images), dense, rtol=1e-3, atol=1e-3)


def test_what_a_residual_block_adds_is_found_whatever_the_block():
    for module, path, norm in (
        (build_resnet(), 'layer1.1.conv3', 'layer1.1.bn3'),
        (build_resnet(), 'layer2.0.conv3', 'layer2.0.bn3'),
        (enliven(CifarResNet(depth=14)), 'layer1.1.conv2', 'layer1.1.bn2'),
    ):
        block = module.get_submodule(path.rpartition('.')[0])
        inputs = []
        handle = block.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0].clone()))
        images = torch.randn(2, 3, 32, 32)
        seen = watch_layers(module, (images,), [(path, norm)])[path]
        handle.remove()
        assert isinstance(seen, Seen)
        x = inputs[0].relu()  # what the CIFAR networks begin a block with; behind mmdet's blocks it changes nothing
        with torch.no_grad():
            expected = x if block.downsample is None else block.downsample(x)
        torch.testing.assert_close(seen.shortcut, expected)


def test_a_layer_in_no_residual_block_has_no_shortcut():
    seen = watch_layers(build_resnet(), (torch.randn(2, 3, 32, 32),), [('layer1.0.conv2', 'layer1.0.bn2')])
    assert seen['layer1.0.conv2'].shortcut is None


def test_images_are_scaled_as_the_models_preprocessor_does():
    model = nn.Module()
    model.data_preprocessor = nn.Module()
    model.data_preprocessor.register_buffer('mean', torch.tensor([100.0, 110, 120]).view(-1, 1, 1))
    model.data_preprocessor.register_buffer('std', torch.tensor([1.0, 1, 1]).view(-1, 1, 1))
    (plain,) = SyntheticImages(num_images=2, size=16).batches()
    (scaled,) = SyntheticImages(num_images=2, size=16).normalized_as(model).batches()
    mean = torch.tensor([100.0, 110, 120]).view(-1, 1, 1)
    torch.testing.assert_close(scaled + mean, plain * 58 + 127.5, rtol=0, atol=1e-3)


@pytest.mark.parametrize(('num_images', 'sizes'), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (2, [2])])
def test_no_batch_has_a_single_image(num_images, sizes):
    batches = SyntheticImages(num_images=num_images, size=8, batch_size=4).batches()
    assert [len(batch) for batch in batches] == sizes


def test_a_unit_that_images_do_not_reach_is_told():
    class Bypassed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.net = nn.Conv2d(3, 8, 3), CifarResNet(depth=8)

        def forward(self, x):
            return self.stem(x)

    with pytest.raises(AutoDFPError, match='do not reach'):
        SyntheticLeastSquares(IMAGES).ensure_fitted(Bypassed().eval())


def test_weights_that_are_not_finite_are_told():
    module = enliven(CifarResNet(depth=8))
    module.layer2[0].conv1.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(AutoDFPError, match=r'layer2.0.conv2 of the CifarResNet .* is not finite'):
        SyntheticLeastSquares(IMAGES).ensure_fitted(module)


def test_training_modes_come_back_if_fitting_fails():
    module = enliven(CifarResNet(depth=8))
    module.train()
    module.layer1.eval()
    modes = [part.training for part in module.modules()]
    module.layer3[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SyntheticLeastSquares(IMAGES).ensure_fitted(module)
    assert [part.training for part in module.modules()] == modes


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(images=dict(num=8)), "images was asked for .*'num'; known are num_images, size, batch_size"),
        (dict(images=8), 'images takes a dict of settings, got 8; known are num_images'),
        (dict(refinement=dict(rigde=1)), "refinement was asked for .*'rigde'; known are ridge, patches"),
        (dict(refinement='all'), "refinement takes a dict of settings, got 'all'"),
    ],
)
def test_unknown_settings_are_told_with_the_known_ones(settings, message):
    with pytest.raises(AutoDFPError, match=message):
        SyntheticLeastSquares(**settings)


def test_null_stands_for_the_defaults():
    assert SyntheticLeastSquares(images=None, refinement=None).refinement == Refinement()


@pytest.mark.parametrize(
    'settings',
    [
        dict(ridge=-1),
        dict(ridge=None),
        dict(images=dict(size=None)),
        dict(images=dict(size=(32, 32, 3))),
        dict(refinement=dict(ridge=None)),
        dict(refinement=dict(shortcut=None)),
        dict(ranking='l1'),
        dict(images=dict(kind='cats')),
        dict(images=dict(batch_size=1)),
        dict(refinement=dict(shortcut=2)),
        dict(refinement=dict(units_per_pass=0)),
    ],
)
def test_settings_out_of_range_are_told(settings):
    with pytest.raises(AutoDFPError):
        SyntheticLeastSquares(**settings)


def test_a_refinement_can_be_left_out(resnet):
    reconstructor = SyntheticLeastSquares(IMAGES, refinement=False)
    plan = uniform(resnet, 0.5)
    with apply_plan(resnet, plan, reconstructor):
        episode = snapshot(resnet)
    with apply_plan(resnet, plan, reconstructor, finish=True):
        assert_same(resnet, episode)
    assert reconstructor.refinement is None
    assert Refinement() == SyntheticLeastSquares().refinement
    assert copy.deepcopy(reconstructor._units).keys() == {unit.name for unit in find_units(resnet)}


@pytest.mark.parametrize('build', [lambda: build_resnet(), lambda: enliven(CifarResNet(depth=14))])
def test_carrying_on_from_block_to_block_gives_what_starting_at_the_images_gives(build):
    module = build()
    states = []
    for cache_gb in (2.0, 0.0):
        reconstructor = SyntheticLeastSquares(IMAGES, refinement=dict(cache_gb=cache_gb))
        with apply_plan(module, random_plan(module), reconstructor, finish=True):
            states.append(snapshot(module))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=1e-4)


def test_paths_know_which_block_follows_which():
    resnet = build_resnet()
    paths = Paths(resnet, copy.deepcopy(resnet), lambda: iter([(torch.randn(2, 3, 32, 32),)]), 1.0)
    list(paths.watch('layer1.0', [('layer1.0.conv2', 'layer1.0.bn2')], True))
    assert (paths._follows['layer1.1'], paths._follows['layer2.0']) == ('layer1.0', 'layer1.2')
    assert 'layer2.0.downsample' in paths._follows
    calls = []
    resnet.conv1.register_forward_pre_hook(lambda *_: calls.append('from the images'))
    for block in ('layer1.1', 'layer1.2', 'layer2.0'):
        ((dense, pruned),) = paths.watch(block, [(f'{block}.conv2', f'{block}.bn2')], True)
        assert torch.equal(dense[f'{block}.conv2'].output, pruned[f'{block}.conv2'].output)
    assert calls == []
    list(paths.watch('layer3.0', [('layer3.0.conv2', 'layer3.0.bn2')], True))  # layer2.1 and others lie between
    assert calls == ['from the images']
