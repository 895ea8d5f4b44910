"""Chains, depthwise-separable blocks, inverted residuals and residual blocks of classifiers."""

import copy

import pytest
import torch
import torchvision
from conftest import enliven, masked_dense, random_plan
from mmengine.analysis import FlopAnalyzer
from torch import nn

from mmautodfp.costs import measure_positions, model_costs
from mmautodfp.graph import GROUP_FINDERS, ChannelGroup, Consumer, GroupFinder, find_groups, survey_groups
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, SimilarityReconstructor
from mmautodfp.surgery import GroupPlan, PruningPlan, apply_plan
from mmautodfp.zoo import VGG, CifarResNet, MobileNetV1, MobileNetV2, TorchvisionNet

NARROW = (8, 12, 16, 24, 24)
V1_BLOCKS = tuple((width // 8, stride) for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)))
V2_STAGES = ((1, 8, 1, 1), (6, 8, 2, 1), (6, 12, 3, 2), (4, 16, 2, 2))


def narrow_resnet(**settings) -> nn.Module:
    """torchvision's with fewer channels and blocks; full ones are only counted."""
    narrow = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 2, 1, 1], 7, width_per_group=8)
    full = TorchvisionNet('resnet18', **settings)
    narrow.conv1, narrow.maxpool = full.conv1, full.maxpool
    return narrow


NETWORKS = {
    'vgg16': (lambda: VGG(16, channels=NARROW), 32),
    'vgg19': (lambda: VGG(19, channels=NARROW), 32),
    'vgg with four columns a channel': (
        lambda: VGG(in_channels=1, image_size=8, channels=(8, 12), stages=(1, 2)),
        8,
    ),
    'resnet56': (lambda: CifarResNet(56), 32),
    'cifar resnet50': (lambda: narrow_resnet(small_images=True), 16),
    'mobilenet v1': (lambda: MobileNetV1(stem=8, blocks=V1_BLOCKS), 32),
    'imagenet mobilenet v1': (lambda: MobileNetV1(num_classes=11, stem_stride=2, stem=8, blocks=V1_BLOCKS), 64),
    'mobilenet v2': (lambda: MobileNetV2(stem=8, last=40, stages=V2_STAGES), 32),
    'resnet18': (lambda: TorchvisionNet('resnet18'), 32),
    'resnet50': (lambda: narrow_resnet(), 32),
    'torchvision mobilenet v2': (lambda: torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=9), 64),
}


def images(model: nn.Module, size: int, count: int = 2) -> torch.Tensor:
    channels = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d)).in_channels
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    model = enliven(make()).double()
    return model, images(model, size)


@pytest.mark.parametrize('name', NETWORKS)
def test_slim_equals_masked_dense_counts_are_exact_and_restore_is_bit_for_bit(name):
    model, batch = build(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    groups = find_groups(model)
    positions = measure_positions(model, lambda: model(batch[:1]))
    costs = model_costs(model, model, groups, positions)
    for seed, reconstructor in enumerate((PruneOnly(), SimilarityReconstructor())):
        plan = random_plan(model, seed)
        with torch.no_grad():
            expected = masked_dense(model, plan, reconstructor)(batch)
            with apply_plan(model, plan, reconstructor):
                assert torch.allclose(model(batch), expected, rtol=1e-6, atol=1e-8 * expected.abs().max().item())
                widths = [plan.widths[group.name] for group in groups]
                assert costs.params['module'](widths) == sum(p.numel() for p in model.parameters())
                counted = FlopAnalyzer(model, batch[:1]).by_operator()
                assert costs.flops['module'](widths) == counted['conv'] + counted['linear']
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize('name', ['vgg16', 'mobilenet v1', 'mobilenet v2', 'resnet56'])
def test_groups_come_in_forward_order_and_every_other_layer_has_a_reason(name):
    model, batch = build(name)
    survey = survey_groups(model)
    called = []
    for group in survey.groups:
        model.get_submodule(group.name).register_forward_hook(lambda *_, name=group.name: called.append(name))
    model(batch)
    assert called == [group.name for group in survey.groups]
    layers = {path for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    between = {path for group in survey.groups for path in group.between if path in layers}
    assert layers == {group.name for group in survey.groups} | between | set(survey.left)
    assert not between & set(survey.left)


def test_each_network_has_the_groups_that_its_blocks_say():
    expected = dict(vgg16=13, vgg19=16, resnet56=27)
    assert {name: len(find_groups(NETWORKS[name][0]())) for name in expected} == expected
    for depth, count in ((34, 16), (50, 32), (101, 66)):
        with torch.device('meta'):  # as wide and deep as it is, without its weights
            assert len(find_groups(TorchvisionNet(f'resnet{depth}', small_images=depth == 50))) == count


def test_a_depthwise_layer_and_its_norm_lie_between_two_pointwise_ones():
    groups = {group.name: group for group in find_groups(MobileNetV1(stem=8, blocks=V1_BLOCKS))}
    assert groups['conv1'].between == ('layers.0.conv1', 'layers.0.bn1')
    assert groups['layers.0.conv2'].consumers == (Consumer('layers.1.conv2', 'layers.1.bn2'),)
    assert groups['layers.5.conv2'].consumers == (Consumer('linear', None),)


def test_channels_that_stay_constant_are_moved_through_a_depthwise_layer():
    model, _ = build('mobilenet v2')
    block = model.layers[1]
    block.bn1.weight.data[:20] = 0  # constant from here on, as no rim is padded below
    block.conv2.padding = (0, 0)
    block.shortcut = False
    batch = torch.randn(2, block.conv1.in_channels, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        expected = block(batch)
        plan = PruningPlan({'conv1': GroupPlan(tuple(range(20, 48)), 48)})
        with apply_plan(block, plan, PruneOnly()):
            assert not torch.allclose(block(batch), expected, atol=1e-3)
        apply_plan(block, plan, SimilarityReconstructor())
        assert torch.allclose(block(batch), expected, atol=1e-8 * expected.abs().max().item())


class BasicBlock(nn.Module):
    def __init__(self, **activation):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        ((self.name, layer),) = activation.items()
        self.add_module(self.name, layer)

    def forward(self, x):
        return self.bn2(self.conv2(getattr(self, self.name)(self.bn1(self.conv1(x)))))


@pytest.mark.parametrize('name', ['relu', 'act', 'nonlinearity'])
def test_channels_that_stay_constant_are_moved_through_a_blocks_own_activation(name):
    block = enliven(BasicBlock(**{name: nn.LeakyReLU(0.3)})).double()
    block.bn1.weight.data[0], block.bn1.bias.data[0] = 0, -2
    batch = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        expected = block(batch)
        apply_plan(block, PruningPlan({'conv1': GroupPlan(tuple(range(1, 8)), 8)}), SimilarityReconstructor())
        torch.testing.assert_close(block(batch), expected)


def test_channels_whose_depthwise_kernels_are_alike_too_are_pruned_without_a_trace():
    model, batch = build('mobilenet v1')
    block = model.layers[0]
    for conv, norm, factor in ((model.conv1, model.bn1, 2.0), (block.conv1, block.bn1, 6.0)):
        # Twins of the first four: twice as strong, then three times more, so that six times as much comes out.
        conv.weight.data[4:] = (2 if conv is model.conv1 else 3) * conv.weight.data[:4]
        for tensor in (norm.running_mean, norm.bias.data):
            tensor[4:] = factor * tensor[:4]
        for tensor in (norm.running_var, norm.weight.data):
            tensor[4:] = tensor[:4]
    plan = PruningPlan({'conv1': GroupPlan(tuple(range(4)), 8, lam=1.0)})
    with torch.no_grad():
        expected = model(batch)
        apply_plan(model, plan, SimilarityReconstructor())
        assert torch.allclose(model(batch), expected, rtol=1e-6, atol=1e-8 * expected.abs().max().item())


class Attention(nn.Module):
    """What no finder knows: its channels depend on one another."""

    def __init__(self, channels: int):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        return x * self.inner(x).softmax(1)


def chain(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), *middle,
        nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def test_a_network_is_pruned_around_a_block_that_is_not_known():
    model = enliven(chain(Attention(12))).double()
    survey = survey_groups(model)
    assert [group.name for group in survey.groups] == ['0', '5', '7']
    assert survey.left['3'] == 'feeds 4, a Attention through which no finder can follow its channels'
    assert survey.left['4.inner.0'] == survey.left['4.inner.2'] == 'not inside a block that a finder knows'
    batch, plan = images(model, 16), random_plan(model, 2)
    with torch.no_grad():
        expected = masked_dense(model, plan, NeuronMerging())(batch)
        apply_plan(model, plan, NeuronMerging())
        assert torch.allclose(model(batch), expected, atol=1e-10)
    assert model[4].inner[0].in_channels == 12


@pytest.mark.parametrize(
    ('middle', 'reason'),
    [
        ((nn.GroupNorm(3, 12),), 'feeds 4, a GroupNorm through which'),
        ((nn.PReLU(12),), 'feeds 4, a PReLU through which'),
        ((nn.BatchNorm2d(12, track_running_stats=False),), 'BatchNorm2d without running statistics'),
        ((nn.Conv2d(12, 12, 3, groups=3),), 'grouped convolution at 4'),
        ((nn.Softmax(1),), 'feeds 4, a Softmax through which'),
        ((nn.Flatten(2), nn.Unflatten(2, (12, 12))), 'feeds 4, a Flatten through which'),
    ],
)
def test_a_layer_that_mixes_channels_ends_the_chain(middle, reason):
    survey = survey_groups(chain(*middle))
    assert survey.left['3'].startswith(reason)
    assert '0' in [group.name for group in survey.groups]
    assert len(survey.groups) == 3


def test_a_layer_that_is_used_twice_is_left_alone():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    survey = survey_groups(nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.ReLU(), shared, nn.ReLU(), nn.Conv2d(8, 4, 1)))
    assert not survey.groups
    assert survey.left['1'] == 'is used more than once'


def shared_by_two_blocks() -> nn.Module:
    model = CifarResNet(8)
    model.layer1.append(copy.deepcopy(model.layer1[0]))
    model.layer1[1].conv1 = model.layer1[0].conv1
    return model


def a_block_that_runs_twice() -> nn.Module:
    model = CifarResNet(8)
    model.layer1.append(model.layer1[0])
    return model


def norm_of_two_layers() -> nn.Module:
    model = CifarResNet(8)
    model.layer1.append(copy.deepcopy(model.layer1[0]))
    model.layer1[1].bn1 = model.layer1[0].bn1
    return model


def weight_of_two_layers() -> nn.Module:
    model = CifarResNet(8)
    model.layer1.append(copy.deepcopy(model.layer1[0]))
    model.layer1[1].conv2.weight = model.layer1[0].conv2.weight
    return model


@pytest.mark.parametrize(
    ('build', 'reason'),
    [
        (shared_by_two_blocks, 'is used more than once'),
        (a_block_that_runs_twice, 'is used more than once'),
        (norm_of_two_layers, 'layer1.0.bn1 is used more than once'),
        (weight_of_two_layers, 'layer1.0.conv2 is used more than once'),
    ],
)
def test_what_two_blocks_share_is_left_alone_and_the_rest_is_pruned(build, reason):
    model = enliven(build()).double()
    survey = survey_groups(model)
    assert [group.name for group in survey.groups] == ['layer2.0.conv1', 'layer3.0.conv1']
    assert survey.left['layer1.0.conv1'] == reason
    batch, plan = images(model, 16), random_plan(model)
    with torch.no_grad():
        expected = masked_dense(model, plan, SimilarityReconstructor())(batch)
        apply_plan(model, plan, SimilarityReconstructor())
        assert torch.allclose(model(batch), expected, atol=1e-10)


def test_a_depthwise_layer_that_is_used_twice_keeps_its_channels():
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    survey = survey_groups(nn.Sequential(nn.Conv2d(3, 8, 3), depthwise, nn.ReLU(), depthwise, nn.Conv2d(8, 4, 1)))
    assert not survey.groups
    assert survey.left['0'] == '1 is used more than once'
    assert survey.left['1'] == survey.left['3'] == 'follows 0, which stays'


def test_a_sequential_inside_an_unknown_module_is_not_trusted():
    class Tapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

        def forward(self, x):
            return [x := layer(x) for layer in self.features]

    assert not find_groups(Tapped())
    assert survey_groups(Tapped()).left['features.0'] == 'not inside a block that a finder knows'


def test_a_linear_layer_that_does_not_read_channels_is_no_consumer():
    survey = survey_groups(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(14, 5)))
    assert not survey.groups
    assert survey.left['0'] == 'feeds 2, which does not read channels'


def test_a_new_kind_of_block_takes_one_class_with_one_method():
    class GatedBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.leave = nn.Conv2d(12, 20, 1), nn.Conv2d(20, 12, 1)

        def forward(self, x):
            return x + self.leave(torch.relu(self.enter(x)))

    class GatedBlockFinder(GroupFinder):
        kinds = ('GatedBlock',)

        def find(self, block, name):
            yield ChannelGroup(f'{name}.enter', block.enter.out_channels, None, (Consumer(f'{name}.leave'),))

    model = enliven(chain(GatedBlock())).double()
    assert '4.enter' not in [group.name for group in find_groups(model)]
    GROUP_FINDERS.insert(0, GatedBlockFinder())
    try:
        survey = survey_groups(model)
        assert [group.name for group in survey.groups] == ['0', '4.enter', '5', '7']
        assert survey.left['4.leave'] == 'has no place in a GatedBlock that its finder knows'
        batch, plan = images(model, 16), random_plan(model, 5)
        with torch.no_grad():
            expected = masked_dense(model, plan, PruneOnly())(batch)
            apply_plan(model, plan)
            assert torch.allclose(model(batch), expected, atol=1e-10)
    finally:
        GROUP_FINDERS.pop(0)
