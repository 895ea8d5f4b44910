"""Least squares on synthetic images: moments, surgery, images and settings, on small networks."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import enliven
from least_squares_data import IMAGES, assert_same, frozen_resnet, snapshot, uniform  # noqa: F401, a fixture
from mmengine.model import ImgDataPreprocessor
from torch import nn

from mmautodfp.api import prune
from mmautodfp.graph import ChannelGroup, Consumer, find_groups
from mmautodfp.reconstruction import PruneOnly, Refinement, SyntheticImages, SyntheticLeastSquares, batch_statistics
from mmautodfp.surgery import GroupPlan, PruningPlan, apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.zoo import CifarResNet


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
    known = reconstructor._consumers['layer1.0.conv1']['layer1.0.conv2']
    np.testing.assert_allclose(known.mean, samples.mean(0), atol=1e-5)
    np.testing.assert_allclose(known.covariance, np.cov(samples, rowvar=False, bias=True), atol=1e-4)


@pytest.mark.parametrize('final', [False, True])
def test_channels_that_others_explain_can_go_without_a_loss(final):
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
        IMAGES, ridge=1e-9, ranking='l2', refinement=dict(ridge=1e-9, groups_per_pass=1)
    )
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = module(images)
        with apply_plan(module, uniform(module, 0.5), reconstructor, final):
            assert module.layer1[0].conv2.in_channels == 4
            torch.testing.assert_close(module(images), dense, rtol=1e-3, atol=1e-3)


class TwoReaders(nn.Module):
    """The second one reads the channels behind a norm of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.a(x)
        return self.b(x), self.c(self.norm(x))


@pytest.mark.parametrize('final', [False, True])
def test_each_of_several_consumers_is_given_what_explains_the_channels_as_it_reads_them(final):
    torch.manual_seed(0)
    module = enliven(TwoReaders())
    module.a.weight.data[4:], module.a.bias.data[4:] = 2 * module.a.weight.data[:4], 2 * module.a.bias.data[:4]
    mean, variance = module.norm.running_mean, module.norm.running_var
    mean[4:], variance[4:] = 2 * mean[:4], 4 * variance[:4]
    group = ChannelGroup('a', 8, None, (Consumer('b'), Consumer('c')), between=('norm',))
    reconstructor = SyntheticLeastSquares(IMAGES, ridge=1e-9, refinement=dict(ridge=1e-9, patch_ridge=1e-9))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        dense = module(images)
        with apply_plan(module, PruningPlan({'a': GroupPlan((0, 1, 2, 3), 8)}), reconstructor, final, groups=[group]):
            for found, expected in zip(module(images), dense, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_constant_channels_move_exactly():
    module = enliven(CifarResNet(depth=8))
    for block in (*module.layer1, *module.layer2, *module.layer3):
        block.bn1.weight.data[3:] = 0
        block.conv2.padding = (0, 0)  # at a border, zeros take a constant's place
        block.conv2.kernel_size, block.conv2.weight.data = (1, 1), block.conv2.weight.data[:, :, :1, :1]
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    plan = PruningPlan({u.name: GroupPlan((0, 1, 2), u.num_channels) for u in find_groups(module)})
    with torch.no_grad():
        dense = module(images)
        with apply_plan(module, plan, SyntheticLeastSquares(IMAGES)):
            torch.testing.assert_close(module(images), dense, rtol=1e-4, atol=1e-4)


def test_each_step_brings_the_module_nearer_to_the_dense_one():
    torch.manual_seed(0)
    module = enliven(CifarResNet(depth=14))
    reconstructor = SyntheticLeastSquares(IMAGES | dict(num_images=32))
    reconstructor.ensure_fitted(module)
    (images,) = SyntheticImages(num_images=16, size=32, batch_size=16, seed=9).batches()
    with torch.no_grad(), batch_statistics(module):
        dense = module(images)
    plan = uniform(module, 0.5, reconstructor)
    errors = []
    for method, final in ((PruneOnly(), False), (reconstructor, False), (reconstructor, True)):
        with apply_plan(module, plan, method, final), torch.no_grad(), batch_statistics(module):
            errors.append(float((module(images) - dense).pow(2).sum() / (dense - dense.mean(0)).pow(2).sum()))
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize('final', [False, True])
@pytest.mark.parametrize(
    'kind', [partial(nn.Conv2d, kernel_size=1), partial(nn.ConvTranspose2d, kernel_size=2, stride=2)]
)
def test_the_mean_of_what_reads_pruned_channels_stays(kind, final):
    torch.manual_seed(0)
    module = enliven(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), kind(8, 4)))
    groups = [ChannelGroup('0', 8, '1', (Consumer('3'),))]
    plan = PruningPlan({'0': GroupPlan((0, 2, 3), 8)})
    settings = IMAGES | dict(batch_size=12)
    (images,), outputs = SyntheticImages(**settings).batches(), []
    for reconstructor in (None, SyntheticLeastSquares(settings)):
        if reconstructor:
            apply_plan(module, plan, reconstructor, final, groups=groups)
        with torch.no_grad(), batch_statistics(module):
            outputs.append(module(images))
    torch.testing.assert_close(*(x.mean((0, 2, 3)) for x in outputs), rtol=0, atol=1e-3 * float(outputs[0].std()))


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
    (known,) = reconstructor._consumers['0'].values()
    np.testing.assert_allclose(known.mean, samples.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(known.covariance, np.cov(samples, rowvar=False, bias=True), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('final', [False, True])
def test_linear_layers_on_many_axes_lose_nothing_if_others_explain_the_pruned(final):
    module = on_rows()
    module[0].weight.data[6:], module[0].bias.data[6:] = module[0].weight.data[:6] * 2, module[0].bias.data[:6] * 2
    plan = PruningPlan({'0': GroupPlan(tuple(range(6)), 12)})
    images = torch.randn(2, 3, 32, 32)
    reconstructor = SyntheticLeastSquares(IMAGES, ridge=1e-9, refinement=dict(ridge=1e-9, patch_ridge=1e-9))
    with torch.no_grad():
        dense = module(images)
        with apply_plan(module, plan, reconstructor, final):
            torch.testing.assert_close(module(images), dense, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('kind', [list, lambda values: torch.tensor(values).view(-1, 1, 1)])
def test_images_are_scaled_as_the_models_preprocessor_does(kind):
    model = nn.Module()
    model.data_preprocessor = nn.Module()
    model.data_preprocessor.mean, model.data_preprocessor.std = kind([100.0, 110.0, 120.0]), kind([1.0, 1.0, 1.0])
    (plain,) = SyntheticImages(num_images=2, size=16).batches()
    (scaled,) = SyntheticImages(num_images=2, size=16).normalized_as(model).batches()
    mean = torch.tensor([100.0, 110, 120]).view(-1, 1, 1)
    torch.testing.assert_close(scaled + mean, plain * 58 + 127.5, rtol=0, atol=1e-3)


def test_images_have_a_mean_and_a_deviation_for_each_channel():
    with pytest.raises(AutoDFPError, match=r'mean=\[0.*\] and std=\[1.*\]; give both a value for each channel'):
        SyntheticImages(mean=[0, 0, 0], std=[1, 1])


def test_images_are_pixels_where_a_preprocessor_does_not_normalise_unless_a_scale_is_told():
    model = nn.Module()
    model.data_preprocessor = ImgDataPreprocessor(pad_size_divisor=32)
    told = dict(mean=(123.0,) * 3, std=(57.0,) * 3)
    plain, pixels, scaled = (
        next(images.batches())
        for images in (
            SyntheticImages(num_images=2, size=16),
            SyntheticImages(num_images=2, size=16).normalized_as(model),
            SyntheticImages(num_images=2, size=16, **told).normalized_as(model),
        )
    )
    torch.testing.assert_close(pixels, plain * 58 + 127.5, rtol=0, atol=1e-3)
    torch.testing.assert_close(scaled * 57 + 123, pixels, rtol=0, atol=1e-3)


@pytest.mark.parametrize(('num_images', 'sizes'), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (2, [2])])
def test_no_batch_has_a_single_image(num_images, sizes):
    batches = SyntheticImages(num_images=num_images, size=8, batch_size=4).batches()
    assert [len(batch) for batch in batches] == sizes


def test_a_group_that_images_do_not_reach_is_told():
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
    # What a model takes is tried with two images.
    module.layer3[0].register_forward_pre_hook(lambda _, args: 1 / (len(args[0]) == 2) and None)
    with pytest.raises(ZeroDivisionError):
        SyntheticLeastSquares(IMAGES).ensure_fitted(module)
    assert [part.training for part in module.modules()] == modes


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(1, 8, 1), nn.Conv2d(16, 2, 1)

    def forward(self, image, depth):
        return self.last(torch.cat([self.first(image), self.second(depth)], 1).relu())


def test_a_model_that_is_not_called_with_images_alone_is_refused():
    model = TwoInputs().eval()
    example = (torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8))
    with pytest.raises(AutoDFPError, match=r"does not take them .*'depth'.*SimilarityReconstructor.*which needs none"):
        prune(model, target='', example_input=example, constraint=0.6)
    similar = prune(model, None, 0.6, '', example, reconstructor=dict(type='SimilarityReconstructor'))
    assert model.first.out_channels + model.second.out_channels == model.last.in_channels < 16
    similar.restore()


def test_a_model_that_cannot_be_copied_gets_no_full_pass():
    module = enliven(CifarResNet(depth=8))
    module.lock = threading.Lock()
    with pytest.raises(AutoDFPError, match=r'CifarResNet, which cannot be copied \(cannot pickle .*refinement=False'):
        SyntheticLeastSquares(IMAGES).ensure_fitted(module)
    SyntheticLeastSquares(IMAGES, refinement=False).ensure_fitted(module)


class Autocast(CifarResNet):
    def forward(self, x):
        with torch.autocast('cpu', torch.bfloat16):
            return super().forward(x)


def test_layers_under_autocast_are_told():
    module = enliven(Autocast(depth=8))
    with pytest.raises(
        AutoDFPError, match=r'conv2 of the Autocast reads torch.bfloat16 where its weight is torch.float32'
    ):
        SyntheticLeastSquares(IMAGES).ensure_fitted(module)


def test_a_forward_that_somebody_gave_a_norm_stays():
    module = enliven(CifarResNet(depth=8))
    forward = module.bn1.forward
    module.bn1.forward = own = lambda x: forward(x)
    with batch_statistics(module):
        assert module.bn1.forward is not own
    assert module.bn1.forward is own
    assert 'forward' not in vars(module.layer1[0].bn1)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(rigde=1), "unexpected keyword argument 'rigde'; known are images, ridge"),
        (dict(images=dict(num=8)), 'asked for num, which it does not know; it knows num_images, size'),
        (dict(images=8), 'asked for images=8; it must be a dict'),
        (dict(refinement=dict(rigde=1)), 'asked for rigde, which it does not know; it knows ridge, patches'),
        (dict(refinement='all'), "asked for refinement='all'; it must be a dict, True or False"),
    ],
)
def test_unknown_settings_are_told_with_the_known_ones(settings, message):
    with pytest.raises(AutoDFPError, match=message):
        SyntheticLeastSquares(**settings)


def test_null_stands_for_the_defaults():
    assert SyntheticLeastSquares(images=None, refinement=None).refinement == Refinement()


def test_searches_that_are_kept_can_be_resumed():
    assert SyntheticLeastSquares().identity.startswith('SyntheticLeastSquares(error_power=1.0, images=')


@pytest.mark.parametrize(
    'settings',
    [
        dict(ridge=-1),
        dict(ridge=float('nan')),
        dict(ridge='much'),
        dict(ridge=None),
        dict(images=dict(size=None)),
        dict(images=dict(size=(32, 32, 3))),
        dict(refinement=dict(ridge=None)),
        dict(refinement=dict(shortcut=None)),
        dict(ranking='l1'),
        dict(images=dict(kind='cats')),
        dict(images=dict(batch_size=1)),
        dict(refinement=dict(shortcut=2)),
        dict(refinement=dict(groups_per_pass=0)),
    ],
)
def test_settings_out_of_range_are_told(settings):
    with pytest.raises(AutoDFPError):
        SyntheticLeastSquares(**settings)
