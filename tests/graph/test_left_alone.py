"""Which channels the tracer leaves alone and the reason that it tells, beside what looks alike and is followed."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from small_nets import Net, conv, follow, read_by
from torch import nn

from mmautodfp.graph import groups_of, trace_channels
from mmautodfp.utils import AutoDFPError


def test_what_is_no_channel_may_be_read_beside_channels():
    (group,) = follow(lambda m, x: m.out(torch.cat([x, m.a(x)], 1)), a=conv(3, 4), out=conv(7, 2)).groups
    assert (group.name, group.consumers[0].offset, group.consumers[0].num_inputs) == ('a', 3, 4)
    survey = follow(
        lambda m, x: m.out(m.n(torch.cat([x, m.a(x)], 1))), a=conv(3, 4), n=nn.BatchNorm2d(7), out=conv(7, 2)
    )
    assert survey.left['a'] == 'shares n with other channels'


def test_parts_of_a_concatenation_that_share_a_norm_stay():
    survey = follow(
        lambda m, x: m.out(m.n(torch.cat([m.a(x), m.b(x)], 1))),
        a=conv(3, 4),
        b=conv(3, 6),
        n=nn.BatchNorm2d(10),
        out=conv(10, 2),
    )
    assert not survey.groups
    assert survey.left['a'] == survey.left['b'] == 'shares n with other channels'


def test_halves_of_which_a_norm_takes_both_stay_with_the_reason():
    def forward(m, x):
        left, right = m.n(m.a(x)).chunk(2, 1)
        return m.b(left), m.c(right)

    survey = follow(forward, a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(4, 2), c=conv(4, 2))
    assert not survey.groups
    assert survey.left['a'] == 'shares n with other channels'


def test_a_reshape_that_mixes_channels_and_places_leaves_them():
    survey = follow(lambda m, x: m.b(m.a(x).reshape(2, 16, 8, 8)), a=conv(3, 4), b=conv(16, 2))
    assert not survey.groups  # each map becomes four, one behind the other
    assert survey.left['a'] == 'feeds b several channels for each, as pixel_unshuffle makes'
    survey = follow(lambda m, x: m.b(m.a(x).reshape(2, 2, 32, 16)), a=conv(3, 4), b=conv(2, 2))
    assert not survey.groups
    assert survey.left['a'] == 'feeds b, which does not read channel by channel'


def test_levels_whose_places_tell_the_channel_stay_before_a_region_extractor():
    def forward(m, x):
        x = m.a(x)
        level = torch.cat([x[:, :4], x[:, 4:]], 3)
        regions = torch.tensor([[0.0, 0, 0, 8, 8], [1, 4, 4, 12, 12]])
        return m.out(m.fc(m.extract([level], regions).flatten(1)))

    extract = SingleRoIExtractor(dict(type='RoIAlign', output_size=2), out_channels=4, featmap_strides=[1])
    survey = follow(forward, a=conv(3, 8), extract=extract, fc=nn.Linear(16, 6), out=nn.Linear(6, 2))
    assert [group.name for group in survey.groups] == ['fc']
    assert survey.left['a'] == 'feeds a RoIAlign, which does not read channel by channel'


def test_channels_that_meet_a_tensor_of_fixed_size_stay():
    model = Net(lambda m, x: m.b(m.a(x) * m.scale), a=conv(3, 4), b=conv(4, 2)).eval()
    model.scale = nn.Parameter(torch.rand(1, 4, 1, 1))
    survey = groups_of(trace_channels(model, lambda: model(torch.rand(2, 3, 16, 16))))
    assert not survey.groups
    assert survey.left['a'] == 'meets a tensor of fixed size in mul'


def test_a_number_or_a_map_of_one_channel_is_no_tensor_of_fixed_size():
    def forward(m, x):
        return m.b(m.a(x) * m.scale * x.mean(1, keepdim=True) + 1)

    model = Net(forward, a=conv(3, 4), b=conv(4, 2)).eval()
    model.scale = nn.Parameter(torch.rand(1))
    assert [group.name for group in groups_of(trace_channels(model, lambda: model(torch.rand(2, 3, 8, 8)))).groups] == [
        'a'
    ]


def test_channels_that_mix_with_one_another_stay():
    survey = follow(lambda m, x: m.b(m.a(x).softmax(1)), a=conv(3, 4), b=conv(4, 2))
    assert survey.left['a'] == 'feeds _softmax, which mixes its channels'
    survey = follow(lambda m, x: m.b(x * m.a(x).mean(1, keepdim=True)), a=conv(3, 4), b=conv(3, 2))
    assert survey.left['a'] == 'feeds mean, which mixes its channels'
    for order in (1, 2, 3.0):  # it stands where other reductions have their axis
        norm = partial(torch.norm, p=order, dim=1, keepdim=True)
        survey = follow(lambda m, x, norm=norm: m.b(m.a(x) / norm(m.a(x))), a=conv(3, 4), b=conv(4, 2))
        assert survey.left['a'] == 'feeds linalg_vector_norm, which mixes its channels'
    survey = follow(
        lambda m, x: m.b(m.a(x)) * (m.c(x).flatten(2) @ m.c(x).flatten(2).mT).mean(),
        a=conv(3, 4),
        b=conv(4, 2),
        c=conv(3, 4),
    )
    assert [group.name for group in survey.groups] == ['a']
    assert survey.left['c'] == 'feeds bmm, through which its channels cannot be followed'


def test_places_that_channels_choose_are_no_channels():
    def forward(m, x):
        x = m.a(x).flatten(2).mT[0]  # a row for each place
        return m.b(x[m.c(x)[:, 0] > least])

    least = -9  # all places
    (group,) = follow(forward, a=conv(3, 4), b=nn.Linear(4, 2), c=nn.Linear(4, 1)).groups
    assert (group.name, read_by(group)) == ('a', [('c', 0), ('b', 0)])
    least = 9  # none: nobody knows what would read them
    survey = follow(forward, a=conv(3, 4), b=nn.Linear(4, 2), c=nn.Linear(4, 1))
    assert not survey.groups
    assert survey.left['a'].startswith('is picked at places')


@pytest.mark.parametrize(
    'along',
    [
        nn.PReLU(),
        nn.PReLU(4),
        nn.Hardswish(),
        lambda x: x.cummax(2).values,
        lambda x: x.softmax(3),
        lambda x: x / x.norm(1, 2, keepdim=True),
        lambda x: F.normalize(x, dim=3),
        lambda x: x + x.square().sum((2, 3), keepdim=True).sqrt(),
        lambda x: x + 0 * x[:0].sum(),  # of no image
    ],
)
def test_what_treats_each_channel_alike_is_followed(along):
    survey = follow(lambda m, x: m.b(along(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    if getattr(along, 'num_parameters', 1) == 1:
        assert [group.name for group in survey.groups] == ['a']
    else:  # a slope for each channel
        assert survey.left['a'].startswith('meets a tensor of fixed size')


def test_outputs_stay_also_where_a_layer_reads_them_too():
    def forward(m, x):
        x = m.a(x)
        return x, m.c(m.b(x))

    survey = follow(forward, a=conv(3, 4), b=conv(4, 6), c=conv(6, 2))
    assert [group.name for group in survey.groups] == ['b']
    assert survey.left == dict.fromkeys(('a', 'c'), 'gives an output of the model')


def test_what_no_layer_reads_stays():
    survey = follow(lambda m, x: (m.a(x), m.b(x))[1], a=conv(3, 4), b=conv(3, 2))
    assert survey.left['a'] == 'feeds no layer that could make up for its channels'


def test_a_layer_that_is_called_by_keyword_is_told():
    with pytest.raises(AutoDFPError, match=r'a Conv2d is called with its input by name \(input=x\)'):
        follow(lambda m, x: m.b(input=m.a(x).relu()), a=conv(3, 8), b=conv(8, 4))
