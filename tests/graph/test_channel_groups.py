import pytest
import torch
import torchvision
from conftest import build_resnet, enliven
from torch import nn

from mmautodfp.graph import find_groups, group_statistics, survey_groups


def test_resnet50_has_two_groups_a_bottleneck_in_forward_order():
    model = build_resnet(50)
    names = [group.name for group in find_groups(model)]
    blocks = [f'layer{stage}.{block}' for stage, count in enumerate((3, 4, 6, 3), 1) for block in range(count)]
    assert names == [f'{block}.conv{i}' for block in blocks for i in (1, 2)]

    called = []
    for group in find_groups(model):
        model.get_submodule(group.name).register_forward_hook(lambda *_, name=group.name: called.append(name))
    model(torch.rand(1, 3, 32, 32))
    assert called == names


def test_groups_name_their_norm_and_consumer():
    group = find_groups(build_resnet(50))[1]
    assert (group.name, group.norm, group.num_channels) == ('layer1.0.conv2', 'layer1.0.bn2', 16)
    assert [(consumer.name, consumer.norm) for consumer in group.consumers] == [('layer1.0.conv3', 'layer1.0.bn3')]


@pytest.mark.parametrize(('depth', 'count'), [(18, 8), (34, 16), (101, 66)])
def test_other_depths(depth, count):
    assert len(find_groups(build_resnet(depth))) == count


def test_torchvision_resnets_are_known_too():
    assert len(find_groups(torchvision.models.resnet18())) == 8
    assert len(find_groups(torchvision.models.resnet50())) == 32


def test_caffe_style_and_a_bare_block_are_known():
    assert len(find_groups(build_resnet(50, style='caffe'))) == 32
    block = build_resnet(50).layer1[0]
    assert [group.name for group in find_groups(block)] == ['conv1', 'conv2']


def test_every_layer_that_stays_has_a_reason():
    model = build_resnet(50)
    survey = survey_groups(model)
    convs = {name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    assert convs == {group.name for group in survey.groups} | set(survey.left)
    assert survey.left['layer1.0.conv3'] == survey.left['layer1.0.downsample.0'] == 'feeds a residual sum'
    assert 'not inside a block' in survey.left['conv1']
    assert survey.describe_left()[-1].startswith('20 x feeds a residual sum: layer1.0.conv3')


def test_grouped_convolutions_are_left_alone_with_the_reason():
    survey = survey_groups(build_resnet(50, type='mmdet.ResNeXt', groups=4, base_width=4))
    assert not survey.groups
    assert survey.left['layer2.0.conv1'] == 'grouped convolution at conv2'


def test_deformable_and_weight_standardised_convolutions_are_left_alone():
    dcn = build_resnet(50, dcn=dict(type='DCN', deform_groups=1), stage_with_dcn=(False, False, False, True))
    assert len(find_groups(dcn)) == 26
    assert 'found DeformConv2dPack' in survey_groups(dcn).left['layer4.0.conv1']
    standardised = survey_groups(build_resnet(50, conv_cfg=dict(type='ConvAWS')))
    assert not standardised.groups
    assert 'found ConvAWS2d' in standardised.left['layer1.0.conv1']


def test_group_norm_is_left_alone_with_the_reason():
    survey = survey_groups(build_resnet(50, norm_cfg=dict(type='GN', num_groups=4)))
    assert not survey.groups
    assert 'GroupNorm without running statistics' in survey.left['layer1.0.conv1']


def test_plugins_between_two_convolutions_are_left_alone():
    plugin = dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv2', stages=(False, True, False, False))
    survey = survey_groups(build_resnet(50, plugins=[plugin]))
    assert survey.left['layer2.0.conv2'] == 'plugin between conv2 and conv3'
    assert len(survey.groups) == 28


def test_statistics_take_a_bias_into_the_mean():
    block = enliven(torchvision.models.resnet18()).layer1[0]
    block.conv1 = nn.Conv2d(64, 64, 3, padding=1, bias=True)
    group = find_groups(block)[0]
    weight, bn = group_statistics(block, group)
    assert torch.equal(weight, block.conv1.weight)
    assert torch.allclose(bn.mean, block.bn1.running_mean - block.conv1.bias)
    assert torch.equal(bn.var, block.bn1.running_var)
    assert not weight.requires_grad
