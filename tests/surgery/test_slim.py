import pytest
import torch
import torchvision
from conftest import build_resnet, enliven, masked_dense, random_plan
from torch import nn

from mmautodfp.graph import Consumer, find_groups
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, SimilarityReconstructor
from mmautodfp.surgery import GroupPlan, PruningPlan, Restore, Slim, apply_plan, shift_outputs
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import MODELS


def outputs(module: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        result = module(images)
    return list(result) if isinstance(result, tuple | list) else [result]


@pytest.mark.parametrize('reconstructor', [PruneOnly, SimilarityReconstructor, NeuronMerging])
@pytest.mark.parametrize(
    'build',
    [
        lambda: build_resnet(18),
        lambda: build_resnet(50),
        lambda: enliven(torchvision.models.resnet18(num_classes=7)),
    ],
    ids=['resnet18', 'resnet50', 'torchvision resnet18'],
)
@pytest.mark.parametrize('seed', [1, 2])
def test_slim_model_equals_masked_dense_model_and_restores_bit_for_bit(build, reconstructor, seed):
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    dense_outputs = outputs(model, images)
    plan = random_plan(model, seed)
    expected = outputs(masked_dense(model, plan, reconstructor()), images)

    restore = apply_plan(model, plan, reconstructor())
    for group in find_groups(model):
        assert model.get_submodule(group.name).out_channels == plan.widths[group.name]
    for slim, masked in zip(outputs(model, images), expected, strict=True):
        assert torch.allclose(slim, masked, rtol=1e-5, atol=1e-5 * masked.abs().max().item())

    restore()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, images), dense_outputs, strict=True))


def test_restore_brings_back_the_very_tensors_and_sizes():
    model = build_resnet(18)
    parameters = dict(model.named_parameters())
    frozen = model.layer1[0].conv1.weight
    frozen.requires_grad_(False)
    with apply_plan(model, random_plan(model), SimilarityReconstructor()):
        assert not model.layer1[0].conv1.weight.requires_grad
        assert model.layer1[0].conv2.weight.requires_grad
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert model.layer1[0].conv1.out_channels == model.layer1[0].bn1.num_features == 16


def test_a_bias_that_appears_is_as_frozen_as_the_weight_of_its_layer():
    for frozen in (True, False):
        layers = [nn.Sequential(nn.Conv2d(3, 4, 1, bias=False)).requires_grad_(not frozen) for _ in range(2)]
        shift_outputs(layers[0], Consumer('0'), torch.ones(4), Restore())
        Slim(layers[1], {'0': dict(bias=True)})
        assert [parameter.requires_grad for layer in layers for parameter in layer.parameters()] == 4 * [not frozen]


def test_state_dict_keys_and_modules_stay():
    model = build_resnet(50)
    keys, modules = list(model.state_dict()), list(model.modules())
    apply_plan(model, random_plan(model), SimilarityReconstructor())
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))


def test_a_dense_plan_changes_nothing():
    model = build_resnet(50)
    images = torch.randn(1, 3, 32, 32)
    expected = outputs(model, images)
    groups = {u.name: GroupPlan(tuple(range(u.num_channels)), u.num_channels) for u in find_groups(model)}
    apply_plan(model, PruningPlan(groups), SimilarityReconstructor())
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, images), expected, strict=True))


@pytest.mark.parametrize('dead', ['gamma', 'weight'])
def test_dead_channels_are_pruned_without_a_trace_where_no_padding_hides_them(dead):
    # conv2 -> conv3 is a 1x1 convolution: the constant can be moved exactly.
    model = build_resnet(50)
    block = model.layer1[0]
    if dead == 'gamma':
        block.bn2.weight.data[:5] = 0
    else:
        block.conv2.weight.data[:5] = 0
    images = torch.randn(1, 3, 32, 32)
    expected = outputs(model, images)
    plan = PruningPlan({'layer1.0.conv2': GroupPlan(tuple(range(5, 16)), 16)})
    with apply_plan(model, plan, PruneOnly()):
        assert not torch.allclose(outputs(model, images)[0], expected[0], atol=1e-4)
    apply_plan(model, plan, SimilarityReconstructor())
    for a, b in zip(outputs(model, images), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_duplicated_channels_are_pruned_without_a_trace():
    model = build_resnet(50)
    block = model.layer1[0]
    for group in ('1', '2'):
        conv, norm = getattr(block, f'conv{group}'), getattr(block, f'bn{group}')
        conv.weight.data[8:] = 2 * conv.weight.data[:8]  # twins, twice as strong
        norm.running_mean[8:] = 2 * norm.running_mean[:8]
        norm.running_var[8:] = norm.running_var[:8]
        norm.weight.data[8:] = norm.weight.data[:8]
        norm.bias.data[8:] = 2 * norm.bias.data[:8]
    images = torch.randn(1, 3, 32, 32)
    expected = outputs(model, images)
    groups = {f'layer1.0.conv{i}': GroupPlan(tuple(range(8, 16)), 16, lam=1.0) for i in (1, 2)}
    apply_plan(model, PruningPlan(groups), SimilarityReconstructor())
    for a, b in zip(outputs(model, images), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize(
    ('groups', 'message'),
    [
        ({'layer9.0.conv1': GroupPlan((0,), 16)}, "prunes 'layer9.0.conv1', but the ResNet has 32 groups"),
        ({'layer1.0.conv1': GroupPlan((0,), 64)}, 'made for 64 channels in layer1.0.conv1, this ResNet has 16'),
    ],
)
def test_a_plan_for_another_network_is_refused_and_nothing_is_touched(groups, message):
    model = build_resnet(50)
    parameters = list(model.parameters())
    with pytest.raises(AutoDFPError, match=message):
        apply_plan(model, PruningPlan(groups), PruneOnly())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_a_failing_reconstruction_leaves_the_model_dense():
    class Failing(PruneOnly):
        def reconstruct(self, group, keep, lam):
            if group.name == 'layer2.0.conv1':
                raise RuntimeError('no more memory')
            return super().reconstruct(group, keep, lam)

    model = build_resnet(50)
    parameters = list(model.parameters())
    with pytest.raises(RuntimeError, match='no more memory'):
        apply_plan(model, random_plan(model, 3), Failing())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.layer1[0].conv1.out_channels == 16


def test_slim_builds_the_shapes_that_the_plan_leaves():
    model = build_resnet(50)
    plan = random_plan(model)
    apply_plan(model, plan, SimilarityReconstructor())
    module = dict(type='mmdet.ResNet', depth=50, base_channels=16, init_cfg=dict(type='Pretrained', checkpoint='x'))
    slim = MODELS.build(dict(type='mmautodfp.Slim', module=module, widths=plan.widths))
    assert type(slim) is type(model)
    assert slim.init_cfg is None
    slim.load_state_dict(model.state_dict())  # strict
    slim.eval()
    images = torch.randn(1, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(outputs(slim, images), outputs(model, images), strict=True))


@pytest.mark.parametrize(
    ('widths', 'message'),
    [
        ({'layer1.0.conv1': 0}, 'keep 0 channels of layer1.0.conv1, which has 16'),
        ({'layer1.0.conv1': 17}, 'keep 17 channels of layer1.0.conv1, which has 16'),
        ({'conv1': 3}, "prunes 'conv1', but the ResNet has 32 groups"),
    ],
)
def test_slim_refuses_widths_that_cannot_be(widths, message):
    module = dict(type='mmdet.ResNet', depth=50, base_channels=16)
    with pytest.raises(AutoDFPError, match=message):
        MODELS.get('mmautodfp.Slim')(module, widths=widths)
