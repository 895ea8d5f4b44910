"""Delivery matrices against loops written from the equations, and merged networks against dense ones."""

import math

import pytest
import torch
import torch.nn.functional as F
from delivery_loops import delivery_of, largest, loop_delivery, loop_neuron_merging, random_layer

from mmautodfp.kernels import (
    BatchNormStats,
    ChannelSimilarity,
    cosine_distance,
    merge_input_channels,
    neuron_merging_delivery,
)

SHAPES = [(6, 3, 3, 3), (24, 5, 1, 1), (13, 10)]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('lam', [0.0, 0.5, 0.85, 1.0])
@pytest.mark.parametrize('how', ['max', 'minmax'])
@pytest.mark.parametrize('min_cosine', [None, 0.1])
def test_delivery_equals_a_loop(shape, lam, how, min_cosine):
    for seed in range(3):
        weight, bn = random_layer(shape, seed=seed)
        for num_keep in (1, shape[0] // 2, shape[0] - 1):
            keep = largest(weight, num_keep)
            expected = loop_delivery(weight, bn, keep.tolist(), lam, how, min_cosine)
            found = delivery_of(weight, bn, keep, lam, how, min_cosine)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-9)


def test_the_two_normalizations_and_the_least_cosine_make_a_difference():
    weight, bn = random_layer((24, 5, 3, 3))
    keep = largest(weight, 12)
    by_max, by_minmax = (delivery_of(weight, bn, keep, 0.5, how) for how in ('max', 'minmax'))
    assert not torch.equal(by_max, by_minmax)
    assert torch.equal(delivery_of(weight, bn, keep, 0.5), by_minmax)
    assert not torch.equal(delivery_of(weight, bn, keep, 0.5, min_cosine=0.1), by_minmax)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(('lam', 'min_cosine'), [(0.85, 0.1), (0.5, -1.0), (0.0, 0.1), (1.0, 0.1)])
def test_neuron_merging_equals_a_loop(shape, lam, min_cosine):
    for seed in range(3):
        weight, bn = random_layer(shape, seed=seed)
        for num_keep in (1, shape[0] // 2, shape[0]):
            keep = largest(weight, num_keep)
            expected = loop_neuron_merging(weight, bn, keep.tolist(), lam, min_cosine)
            found = neuron_merging_delivery(weight, bn, keep, lam, min_cosine)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-9)


def test_neuron_merging_defaults_are_the_published_settings():
    weight, bn = random_layer((24, 5, 1, 1))
    keep = largest(weight, 12)
    expected = loop_neuron_merging(weight, bn, keep.tolist(), 0.85, 0.1)
    torch.testing.assert_close(neuron_merging_delivery(weight, bn, keep), expected, atol=1e-6, rtol=1e-9)


def test_neuron_merging_without_a_norm_goes_by_direction_with_the_bias_appended():
    weight, _ = random_layer((12, 6))
    bias = torch.randn(12, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = torch.cat([weight, bias], 1)
    keep = largest(rows, 7)
    found = neuron_merging_delivery(rows, BatchNormStats.identity(torch.zeros(12, dtype=torch.float64)), keep, lam=1)
    for p in set(range(12)) - set(keep.tolist()):
        cosines = [float(F.cosine_similarity(rows[p], rows[r], dim=0)) for r in keep]
        expected = torch.zeros(7, dtype=torch.float64)
        best = cosines.index(max(cosines))
        if cosines[best] >= 0.1:
            expected[best] = rows[p].norm() / rows[keep[best]].norm()
        torch.testing.assert_close(found[p], expected)


def test_neuron_merging_stays_finite_around_dead_channels():
    weight, bn = random_layer((8, 4))
    weight[0], bn.weight[1], bn.var[2] = 0, 0, 0
    delivery = neuron_merging_delivery(weight, bn, [1, 2, 3, 4], min_cosine=None)
    assert delivery.isfinite().all()
    assert (delivery[0] == 0).all()
    assert (delivery[5:, :2] == 0).all()
    assert (delivery[5:] != 0).any(1).all()


@pytest.mark.parametrize('make', [delivery_of, neuron_merging_delivery])
def test_single_precision_agrees_with_double(make):
    weight, bn = random_layer((24, 5, 3, 3))
    single = BatchNormStats(*(t.float() for t in (bn.weight, bn.bias, bn.mean, bn.var)), bn.eps)
    keep = largest(weight, 10)
    found = make(weight.float(), single, keep, 0.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), make(weight, bn, keep, 0.5), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('make', [delivery_of, neuron_merging_delivery])
def test_kept_rows_are_one_hot_and_pruned_rows_name_one_channel(make):
    weight, bn = random_layer((24, 5, 3, 3))
    keep = torch.tensor([1, 4, 9, 20])
    delivery = make(weight, bn, keep, 0.5, min_cosine=None)
    assert torch.equal(delivery[keep], torch.eye(4, dtype=torch.float64))
    assert ((delivery != 0).sum(1) == 1).all()


@pytest.mark.parametrize('make', [delivery_of, neuron_merging_delivery])
def test_keeping_all_is_the_identity(make):
    weight, bn = random_layer((7, 5, 3, 3))
    assert torch.equal(make(weight, bn, list(range(7)), 0.5), torch.eye(7, dtype=torch.float64))


@pytest.mark.parametrize('make', [delivery_of, neuron_merging_delivery])
def test_a_layer_of_one_channel_keeps_it(make):
    weight, bn = random_layer((1, 5, 3, 3))
    assert torch.equal(make(weight, bn, [0], 0.5), torch.ones(1, 1, dtype=torch.float64))


@pytest.mark.parametrize('how', ['max', 'minmax'])
def test_a_single_kept_channel_takes_all(how):
    weight, bn = random_layer((9, 5, 3, 3))
    delivery = delivery_of(weight, bn, [3], 0.5, how)
    expected = ChannelSimilarity.from_weight(weight, bn).scale[:, [3]]
    torch.testing.assert_close(delivery, expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('how', ['max', 'minmax'])
@pytest.mark.parametrize('lam', [0.0, 0.5, 1.0])
def test_dead_channels_neither_stand_in_nor_are_stood_in_for(dtype, how, lam):
    weight, bn = random_layer((10, 3, 3, 3), dtype)
    dead, keep = [1, 2, 6, 7], [0, 1, 2, 3, 4]
    weight[[1, 6]] = 0
    bn.weight[[2, 7]] = 0
    delivery = delivery_of(weight, bn, keep, lam, how)
    assert delivery.isfinite().all()
    expected = loop_delivery(weight.double(), bn, keep, lam, how, dead=dead)
    torch.testing.assert_close(delivery.double(), expected, atol=1e-6 if dtype == torch.float64 else 1e-3, rtol=1e-4)


@pytest.mark.parametrize('how', ['max', 'minmax'])
def test_a_dead_kept_channel_changes_nothing_for_the_others(how):
    for seed in range(20):
        weight, bn = random_layer((16, 4, 3, 3), seed=seed)
        bn.weight[0] = 0
        without = delivery_of(weight, bn, [1, 2, 3, 4, 5], 0.5, how)[6:]
        assert torch.equal(delivery_of(weight, bn, [0, 1, 2, 3, 4, 5], 0.5, how)[6:, 1:], without)


@pytest.mark.parametrize('field', ['weight', 'gamma'])
@pytest.mark.parametrize('how', ['max', 'minmax'])
def test_a_dead_layer_hands_nothing_on(field, how):
    weight, bn = random_layer((6, 3, 3, 3))
    (weight if field == 'weight' else bn.weight).zero_()
    expected = torch.eye(6, dtype=torch.float64)[:, [0, 5]]
    assert torch.equal(delivery_of(weight, bn, [0, 5], 0.5, how), expected)
    assert torch.equal(neuron_merging_delivery(weight, bn, [0, 5]), expected)


def test_pruned_channels_stay_unmerged_if_only_dead_ones_are_kept():
    weight, bn = random_layer((6, 3, 3, 3))
    bn.weight[[2, 3]] = 0
    assert torch.equal(delivery_of(weight, bn, [2, 3], 0.5), torch.eye(6, dtype=torch.float64)[:, [2, 3]])


def test_no_merge_below_the_least_cosine():
    weight = torch.tensor([[10.0, 0, 0], [0, 10, 0], [1, 0.05, 0], [0.3, 0.3, 3]], dtype=torch.float64)
    bn = BatchNormStats.identity(torch.zeros(4, dtype=torch.float64))
    delivery = delivery_of(weight, bn, [0, 1], 1.0, min_cosine=0.1)
    assert delivery[2, 0] > 0
    assert (delivery[3] == 0).all()
    assert (delivery_of(weight, bn, [0, 1], 1.0, min_cosine=0.05)[3] != 0).any()


def test_equal_candidates_go_to_the_lower_index():
    weight = torch.tensor([[2.0, 0], [2, 0], [2, 0], [1, 0]])
    delivery = delivery_of(weight, BatchNormStats.identity(torch.zeros(4)), [0, 1, 2], 0.5)
    assert delivery[3].tolist() == [0.5, 0, 0]


@pytest.mark.parametrize('how', ['max', 'minmax'])
@pytest.mark.parametrize('lam', [0.0, 0.4, 1.0])
def test_delivery_follows_a_permutation_of_the_channels(how, lam):
    weight, bn = random_layer((12, 4, 3, 3))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    moved = BatchNormStats(*(t[order] for t in (bn.weight, bn.bias, bn.mean, bn.var)), bn.eps)
    keep = torch.tensor([0, 3, 7, 8, 11])
    places = torch.tensor([order.tolist().index(channel) for channel in keep.tolist()])
    found = delivery_of(weight[order], moved, places, lam, how)
    torch.testing.assert_close(found, delivery_of(weight, bn, keep, lam, how)[order])


def test_columns_follow_the_order_of_keep():
    weight, bn = random_layer((8, 6))
    ascending, shuffled = delivery_of(weight, bn, [1, 4, 6], 0.5), delivery_of(weight, bn, [6, 1, 4], 0.5)
    assert torch.equal(shuffled, ascending[:, [2, 0, 1]])


@pytest.mark.parametrize('make', [delivery_of, neuron_merging_delivery])
@pytest.mark.parametrize(
    ('keep', 'message'),
    [
        ([], 'at least one channel of 6'),
        (torch.tensor(2), r'has shape \(\)'),
        ([0, 6], 'keep names channel 6, but the layer has channels 0 to 5'),
        ([0, -1], 'keep names channel -1'),
        ([2, 3, 2], 'keep names channel 2 more than once'),
        ([0.0, 1.0], 'holds torch.float32'),
        ([True] * 6, 'holds torch.bool'),
    ],
)
def test_a_wrong_keep_is_refused(make, keep, message):
    weight, bn = random_layer((6, 4))
    with pytest.raises(ValueError, match=message):
        make(weight, bn, keep, 0.5)


@pytest.mark.parametrize('make', [delivery_of, neuron_merging_delivery])
@pytest.mark.parametrize('lam', [-0.1, 1.1, math.nan])
def test_a_lambda_outside_zero_to_one_is_refused(make, lam):
    weight, bn = random_layer((6, 4))
    with pytest.raises(ValueError, match=f'0 to 1, but {lam} was given'):
        make(weight, bn, [0], lam)


def test_an_unknown_normalization_is_refused():
    weight, bn = random_layer((6, 4))
    with pytest.raises(ValueError, match="one of max, minmax, but 'l1' was given"):
        delivery_of(weight, bn, [0], 0.5, 'l1')


def twin_layer(num_kept, seed=0):
    """A layer whose second half are positive scalings of its first, with norms that make them multiples of it."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *size: torch.rand(*size, generator=generator, dtype=torch.float64)
    kept = torch.randn(num_kept, 3, 3, 3, generator=generator, dtype=torch.float64)
    kept = kept / kept.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    origin, factor = torch.randperm(num_kept, generator=generator), 0.1 + 0.8 * rand(num_kept)
    gamma, mean, var = 0.3 + rand(2 * num_kept), rand(2 * num_kept) - 0.5, 0.1 + rand(2 * num_kept)
    slope = gamma / (var + 1e-5).sqrt()
    beta = rand(num_kept) - 0.5
    shift = beta - slope[:num_kept] * mean[:num_kept]
    multiple = factor * slope[num_kept:] / slope[origin]
    twin_beta = multiple * shift[origin] + slope[num_kept:] * mean[num_kept:]
    weight = torch.cat([kept, kept[origin] * factor.view(-1, 1, 1, 1)])
    return weight, BatchNormStats(gamma, torch.cat([beta, twin_beta]), mean, var)


def forward(images, weight, bn, select):
    z = F.conv2d(images, weight[select], padding=1)
    parts = (tensor[select] for tensor in (bn.mean, bn.var, bn.weight, bn.bias))
    return F.batch_norm(z, *parts, eps=bn.eps).relu()


@pytest.mark.parametrize('how', ['max', 'minmax'])
@pytest.mark.parametrize('lam', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('linear', [False, True])
def test_pruning_multiples_of_kept_channels_changes_no_output(linear, lam, how):
    weight, bn = twin_layer(8)
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    consumer = torch.randn(5, 16 * 36 if linear else 16, dtype=torch.float64)
    read = (lambda x, w: x.flatten(1) @ w.T) if linear else (lambda x, w: F.conv2d(x, w))
    consumer = consumer if linear else consumer.view(5, 16, 1, 1).repeat(1, 1, 3, 3)
    keep = largest(weight, 8)
    assert keep.tolist() == list(range(8))
    merged = merge_input_channels(consumer, delivery_of(weight, bn, keep, lam, how))
    dense = read(forward(images, weight, bn, slice(None)), consumer)
    torch.testing.assert_close(read(forward(images, weight, bn, keep), merged), dense, atol=1e-6, rtol=0)
    assert (read(forward(images, weight, bn, keep), consumer[:, : merged.shape[1]]) - dense).abs().max() > 0.1


def test_neuron_merging_is_exact_for_multiples_with_the_same_norm():
    weight, _ = twin_layer(6)
    bn = BatchNormStats.identity(torch.zeros(12, dtype=torch.float64))
    consumer = torch.randn(5, 12, 3, 3, dtype=torch.float64)
    images = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    keep = largest(weight, 6)
    merged = merge_input_channels(consumer, neuron_merging_delivery(weight, bn, keep))
    dense = F.conv2d(forward(images, weight, bn, slice(None)), consumer)
    torch.testing.assert_close(F.conv2d(forward(images, weight, bn, keep), merged), dense, atol=1e-6, rtol=0)


def test_the_partner_is_the_nearest_direction_at_lambda_one():
    weight, bn = random_layer((20, 4, 3, 3))
    keep = largest(weight, 9)
    pruned = [channel for channel in range(20) if channel not in keep.tolist()]
    nearest = cosine_distance(weight)[pruned][:, keep].argmin(1)
    assert torch.equal(delivery_of(weight, bn, keep, 1.0)[pruned].abs().argmax(1), nearest)
