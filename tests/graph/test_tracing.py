"""What the tracer finds in small networks, one a topology, against what a reader of their forward would say."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import build_resnet
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from small_nets import Net, conv, follow, made_by, read_by
from torch import nn

from mmautodfp.graph import find_groups, flat_tensors, groups_of, trace_channels
from mmautodfp.graph.forward import random_regions


def test_a_chain_gives_a_group_a_layer_and_its_output_stays():
    survey = follow(
        lambda m, x: m.c(m.b(m.n(m.a(x)).relu())), a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 6), c=conv(6, 4)
    )
    first, second = survey.groups
    assert (first.name, first.norm, first.num_channels, first.block) == ('a', 'n', 8, 1)
    assert (second.name, second.norm, second.num_channels) == ('b', None, 6)
    assert [read_by(group) for group in survey.groups] == [[('b', 0)], [('c', 0)]]
    assert not first.between
    assert survey.left == {'c': 'gives an output of the model'}


def test_a_residual_sum_is_one_group_of_all_that_is_added_up():
    def forward(m, x):
        x = m.a(x)
        x = x + m.c(m.b(x).relu())
        return m.out((x + m.d(x)).relu())

    survey = follow(forward, a=conv(3, 8), b=conv(8, 5), c=conv(5, 8), d=conv(8, 8), out=conv(8, 2))
    stream, inner = survey.groups
    assert made_by(stream) == [('a', 0), ('c', 0), ('d', 0)]
    assert read_by(stream) == [('b', 0), ('d', 0), ('out', 0)]
    assert (stream.num_channels, inner.name, inner.num_channels) == (8, 'b', 5)


@pytest.mark.parametrize('name', ['index_put', 'index_put_'])
def test_what_is_added_at_some_places_goes_with_what_lies_there(name):
    def forward(net, x):
        first = net.a(x)
        return net.c(getattr(first, name)((torch.tensor([1, 1]),), net.b(x), accumulate=True))

    (group,) = follow(forward, a=conv(3, 8), b=conv(3, 8), c=conv(8, 4)).groups
    assert made_by(group) == [('a', 0), ('b', 0)]
    assert read_by(group) == [('c', 0)]


def test_parts_of_a_concatenation_are_groups_with_offsets_in_what_reads_it():
    survey = follow(
        lambda m, x: m.out(m.n(torch.cat([m.a(x), m.b(x).relu()], 1))),
        a=conv(3, 4),
        b=conv(3, 6),
        n=nn.Identity(),
        out=conv(10, 2),
    )
    first, second = survey.groups
    assert (first.name, first.consumers[0].offset, first.consumers[0].num_inputs) == ('a', 0, 4)
    assert (second.name, second.consumers[0].offset, second.consumers[0].num_inputs) == ('b', 4, 6)


def test_each_channel_of_a_flattened_map_is_several_columns_of_a_linear_layer():
    survey = follow(
        lambda m, x: m.out(m.fc(F.adaptive_avg_pool2d(m.a(x), 2).flatten(1)).relu()),
        a=conv(3, 4),
        fc=nn.Linear(16, 6),
        out=nn.Linear(6, 2),
    )
    first, second = survey.groups
    assert (first.name, first.num_channels, read_by(first)) == ('a', 4, [('fc', 0)])
    assert first.consumers[0].num_inputs is None  # all of them, four each
    assert (second.name, second.num_channels, read_by(second)) == ('fc', 6, [('out', 0)])


def test_the_memory_format_does_not_matter():
    layers = dict(a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 6), fc=nn.Linear(6, 5), out=nn.Linear(5, 2))
    forward = lambda m, x: m.out(m.fc(F.adaptive_avg_pool2d(m.b(m.n(m.a(x)).relu()), 1).flatten(1)).relu())
    model = Net(forward, **copy.deepcopy(layers)).to(memory_format=torch.channels_last)
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()}
    survey = follow(forward, **dict(model.named_children()))
    assert survey == follow(forward, **layers)
    assert [group.name for group in survey.groups] == ['a', 'b', 'fc']
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]


def test_the_same_channels_read_several_times_by_one_layer_are_one_group():
    def pyramid(m, x):
        x = m.a(x)
        return m.out(torch.cat([x, *(F.max_pool2d(x, size, 1, size // 2) for size in (3, 5))], 1))

    (group,) = follow(pyramid, a=conv(3, 4), out=conv(12, 2)).groups
    assert (group.name, group.num_channels) == ('a', 4)
    assert [(consumer.offset, consumer.num_inputs) for consumer in group.consumers] == [(0, 4), (4, 4), (8, 4)]


def test_a_depthwise_convolution_is_on_the_way():
    (group,) = follow(
        lambda m, x: m.out(m.n(m.b(m.a(x))).relu()),
        a=conv(3, 6),
        b=conv(6, 6, groups=6),
        n=nn.BatchNorm2d(6),
        out=conv(6, 2),
    ).groups
    assert (group.name, group.num_channels, group.block) == ('a', 6, 1)
    assert group.between == ('b', 'n')
    assert read_by(group) == [('out', 0)]


def test_channels_of_a_grouped_convolution_go_in_blocks():
    (group,) = follow(lambda m, x: m.out(m.b(m.a(x))), a=conv(3, 12), b=conv(12, 12, groups=3), out=conv(12, 2)).groups
    assert (group.num_channels, group.block, group.width, group.between) == (3, 4, 12, ('b',))


def test_channels_of_a_group_norm_go_in_blocks():
    first, second = follow(
        lambda m, x: m.out(m.b(m.n(m.a(x)).relu())), a=conv(3, 12), n=nn.GroupNorm(4, 12), b=conv(12, 5), out=conv(5, 2)
    ).groups
    assert (first.num_channels, first.block, first.norm, first.between) == (4, 3, None, ('n',))
    assert (second.num_channels, second.block) == (5, 1)


def test_channel_attention_goes_with_the_channels_that_it_weighs():
    def forward(m, x):
        x = m.a(x)
        weights = m.up(m.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return m.out(x * weights)

    group, squeezed = follow(forward, a=conv(3, 8), down=conv(8, 2, 1), up=conv(2, 8, 1), out=conv(8, 4)).groups
    assert made_by(group) == [('a', 0), ('up', 0)]
    assert read_by(group) == [('down', 0), ('out', 0)]
    assert (squeezed.name, read_by(squeezed)) == ('down', [('up', 0)])


def test_levels_that_share_a_head_are_one_group_and_two_heads_read_it():
    def forward(m, x):
        fine, coarse = m.fine(x), m.coarse(F.max_pool2d(x, 2))
        towers = [m.tower(level).relu() for level in (fine, coarse)]
        return [head(x) for head in (m.scores, m.boxes) for x in towers]

    survey = follow(forward, fine=conv(3, 8), coarse=conv(3, 8), tower=conv(8, 6), scores=conv(6, 2), boxes=conv(6, 4))
    levels, tower = survey.groups
    assert made_by(levels) == [('fine', 0), ('coarse', 0)]
    assert read_by(levels) == [('tower', 0)]
    assert read_by(tower) == [('scores', 0), ('boxes', 0)]
    assert survey.left == dict.fromkeys(('scores', 'boxes'), 'gives an output of the model')


def test_a_region_extractor_follows_the_levels_that_it_cuts_from():
    def forward(m, x):
        levels = m.fine(x), m.coarse(F.max_pool2d(x, 2))
        regions = torch.tensor([[0.0, 0, 0, 8, 8], [1, 4, 4, 12, 12]])
        return m.out(m.fc(m.extract(levels, regions).flatten(1)))

    extract = SingleRoIExtractor(dict(type='RoIAlign', output_size=2), out_channels=8, featmap_strides=[1, 2])
    levels, inner = follow(
        forward, fine=conv(3, 8), coarse=conv(3, 8), extract=extract, fc=nn.Linear(32, 6), out=nn.Linear(6, 2)
    ).groups
    assert made_by(levels) == [('fine', 0), ('coarse', 0)]
    assert (levels.num_channels, read_by(levels), levels.followers) == (8, [('fc', 0)], ('extract',))
    assert (inner.name, inner.followers) == ('fc', ())


def test_a_transposed_convolution_reads_channels_and_gives_new_ones():
    first, second = follow(
        lambda m, x: m.out(m.n(m.b(m.a(x))).relu()),
        a=conv(3, 8),
        b=nn.ConvTranspose2d(8, 6, 2, 2),
        n=nn.BatchNorm2d(6),
        out=conv(6, 2),
    ).groups
    assert (first.name, first.num_channels, read_by(first)) == ('a', 8, [('b', 0)])
    assert first.consumers[0].norm == 'n'
    assert (second.name, second.num_channels, second.norm) == ('b', 6, 'n')


def test_halves_of_an_output_that_go_apart_are_groups_with_offsets():
    def forward(m, x):
        left, right = m.a(x).chunk(2, 1)
        return m.b(left), m.c(right)

    first, second = follow(forward, a=conv(3, 8), b=conv(4, 2), c=conv(4, 2)).groups
    assert (made_by(first), read_by(first), first.num_channels) == ([('a', 0)], [('b', 0)], 4)
    assert (made_by(second), read_by(second), second.num_channels) == ([('a', 4)], [('c', 0)], 4)


@pytest.mark.parametrize(('also', 'norm'), [(False, 'n'), (True, None)])
def test_a_norm_is_a_consumers_own_only_if_nothing_else_reads_the_consumer(also, norm):
    def forward(m, x):
        x = m.b(m.a(x))
        return (m.n(x), x.mean()) if also else m.n(x)

    (group,) = follow(forward, a=conv(3, 4), b=conv(4, 2), n=nn.BatchNorm2d(2)).groups
    assert [(consumer.name, consumer.norm) for consumer in group.consumers] == [('b', norm)]


def test_a_norm_is_a_consumers_own_only_if_it_reads_nothing_else():
    def forward(m, x):
        x = m.a(x)
        return m.n(m.b(x)), m.n(m.c(x))

    (group,) = follow(forward, a=conv(3, 4), b=conv(4, 2), c=conv(4, 2), n=nn.BatchNorm2d(2)).groups
    assert [(consumer.name, consumer.norm) for consumer in group.consumers] == [('b', None), ('c', None)]


def test_what_is_done_to_the_images_first_does_not_matter():
    """A scaled image is freed while the model runs, and another tensor can get its place in memory."""

    def forward(m, x):
        x = x / 255
        x = m.a(x)
        x = m.b(x)
        x = m.n(x)
        return m.c(x)

    for _ in range(10):
        first, second = follow(forward, a=conv(3, 8), b=conv(8, 8), n=nn.BatchNorm2d(8), c=conv(8, 4)).groups
        assert [(group.name, group.norm) for group in (first, second)] == [('a', None), ('b', 'n')]
        assert first.consumers[0].norm == 'n'


@pytest.mark.parametrize('batch', [1, 2])
def test_random_regions_lie_row_by_row_in_memory_as_roi_align_reads_them(batch):
    regions = random_regions(torch.rand(batch, 3, 64, 64))
    assert regions.is_contiguous()
    assert regions[:, 0].unique().tolist() == list(range(batch))
    assert (regions[:, 3:] > regions[:, 1:3]).all()


def test_the_largest_parts_of_which_no_weight_was_used_are_told():
    attention = nn.MultiheadAttention(8, 2)  # its last layer's weight is used, but the layer is not called
    heads = nn.ModuleDict(dict(used=conv(3, 8), idle=nn.ModuleList([conv(8, 8), nn.BatchNorm2d(8)])))
    idle = nn.Sequential(nn.Embedding(3, 8), nn.Linear(8, 2))

    def forward(m, x):
        x = m.heads.used(x).flatten(2).permute(2, 0, 1)
        return m.attention(x, x, x)[0]

    model = Net(forward, attention=attention, heads=heads, idle=idle, table=nn.Embedding(3, 8)).eval()
    assert trace_channels(model, lambda: model(torch.rand(2, 3, 8, 8))).unrun == ['heads.idle', 'idle']


def test_tracing_leaves_no_hooks_behind_even_if_the_model_fails():
    def fail(m, x):
        m.a(x)
        raise RuntimeError('too small')

    model = Net(fail, a=conv(3, 4)).eval()
    with pytest.raises(RuntimeError, match='too small'):
        trace_channels(model, lambda: model(torch.rand(1, 3, 8, 8)))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


@pytest.mark.parametrize(
    'build',
    [
        lambda: build_resnet(50),
        lambda: build_resnet(18),
        lambda: build_resnet(50, style='caffe'),
        lambda: torchvision.models.resnet18(num_classes=7).eval(),
        lambda: torchvision.models.vgg11_bn(num_classes=7).features.eval(),
    ],
    ids=['resnet50', 'resnet18', 'caffe resnet50', 'torchvision resnet18', 'vgg11'],
)
def test_groups_inside_blocks_are_those_that_the_finders_know(build):
    model = build()
    survey = groups_of(trace_channels(model, lambda: flat_tensors(model(torch.rand(2, 3, 64, 64)))))
    alone = {group.name: group for group in survey.groups if len(group.producers) == 1}
    known = find_groups(model)
    assert known
    for group in known:
        found = alone.pop(group.name)
        assert (found.num_channels, found.norm, found.between) == (group.num_channels, group.norm, group.between)
        assert [(c.name, c.norm, c.offset) for c in found.consumers] == [
            (c.name, c.norm, c.offset) for c in group.consumers
        ]
        assert (found.block, found.offset, found.followers) == (1, 0, ())
    # Beyond blocks there is only what several layers read: the stem.
    assert all(len(group.consumers) > 1 for group in alone.values())
