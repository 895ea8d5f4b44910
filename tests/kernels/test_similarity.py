"""How alike channels are: every matrix against loops written from its equation."""

import math

import pytest
import torch
import torch.nn.functional as F
from delivery_loops import random_layer

from mmautodfp.kernels import BatchNormStats, ChannelSimilarity, bias_matrix, cosine_distance
from mmautodfp.kernels.similarity import alive_channels, reconstruction_scale

SHAPES = [(1, 4, 3, 3), (6, 3, 3, 3), (17, 5, 1, 1), (9, 12)]


def pairwise_loop(weight, function):
    """function(i, j) for every pair of channels, as [N, N]."""
    n = len(weight)
    return torch.tensor([[function(i, j) for j in range(n)] for i in range(n)], dtype=torch.float64)


def length(row):
    return math.sqrt(sum(value**2 for value in row.flatten().tolist()))


def loop_scale(weight, bn, p, r):
    """Eq. 12, word by word."""
    sigma = [math.sqrt(v + bn.eps) for v in bn.var.tolist()]
    return length(weight[p]) / length(weight[r]) * float(sigma[r] / bn.weight[r]) * float(bn.weight[p] / sigma[p])


def loop_bias(weight, bn, i, j):
    """Eq. 18, word by word."""
    sigma = [math.sqrt(v + bn.eps) for v in bn.var.tolist()]
    other = float(bn.weight[j] * bn.mean[j] / sigma[j] - bn.bias[j])
    return loop_scale(weight, bn, i, j) * other - float(bn.weight[i] * bn.mean[i] / sigma[i]) + float(bn.bias[i])


def kill(weight, bn, zero_weight=(), zero_gamma=()):
    weight[list(zero_weight)] = 0
    bn.weight[list(zero_gamma)] = 0


@pytest.mark.parametrize('shape', SHAPES)
def test_cosine_distance_equals_a_loop(shape):
    weight, _ = random_layer(shape)

    def one(i, j):
        return 1 - float((weight[i] * weight[j]).sum()) / length(weight[i]) / length(weight[j])

    torch.testing.assert_close(cosine_distance(weight), pairwise_loop(weight, one), atol=1e-12, rtol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_cosine_distance_is_never_negative_and_exactly_zero_on_the_diagonal(dtype):
    weight, _ = random_layer((64, 3, 3, 3), dtype)
    weight[32:] = weight[:32] * torch.linspace(0.1, 9, 32, dtype=dtype).view(-1, 1, 1, 1)
    distance = cosine_distance(weight)
    assert distance.dtype == dtype
    assert distance.min() >= 0
    assert (distance.diagonal() == 0).all()
    assert distance[:32, 32:].diagonal().max() < 1e-6


def test_opposite_channels_are_two_apart():
    weight = torch.tensor([[1.0, 2.0], [-3.0, -6.0]])
    torch.testing.assert_close(cosine_distance(weight), torch.tensor([[0.0, 2.0], [2.0, 0.0]]))


def test_an_all_zero_channel_is_one_away_from_all_others():
    weight, _ = random_layer((5, 3, 3, 3))
    weight[[1, 4]] = 0
    expected = torch.ones(5, dtype=torch.float64)
    distance = cosine_distance(weight)
    for zero in (1, 4):
        expected_row = expected.index_fill(0, torch.tensor([zero]), 0)
        assert torch.equal(distance[zero], expected_row)
        assert torch.equal(distance[:, zero], expected_row)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(('kernel', 'loop'), [(reconstruction_scale, loop_scale), (bias_matrix, loop_bias)])
def test_scale_and_bias_equal_a_loop(kernel, loop, shape):
    weight, bn = random_layer(shape)
    expected = pairwise_loop(weight, lambda i, j: loop(weight, bn, i, j))
    torch.testing.assert_close(kernel(weight, bn), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('kernel', [reconstruction_scale, bias_matrix])
def test_single_precision_agrees_with_double(kernel):
    weight, bn = random_layer((12, 4, 3, 3))
    single = kernel(weight.float(), BatchNormStats(*(t.float() for t in (bn.weight, bn.bias, bn.mean, bn.var)), bn.eps))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), kernel(weight, bn), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    weight, bn = random_layer((8, 64, 3, 3), dtype)
    weight = weight * 30  # squares and their sums leave the range of float16
    wide = BatchNormStats(*(t.float() for t in (bn.weight, bn.bias, bn.mean, bn.var)), bn.eps)
    assert torch.equal(cosine_distance(weight), cosine_distance(weight.float()))
    assert torch.equal(bias_matrix(weight, bn), bias_matrix(weight.float(), wide))
    assert bias_matrix(weight, bn).dtype == torch.float32


def test_bias_is_what_a_parallel_channel_leaves_over_on_every_input():
    weight, bn = random_layer((6, 8), seed=1)
    weight[1] = 0.4 * weight[0]
    z = torch.randn(50, 8, dtype=torch.float64) @ weight.T
    normed = F.batch_norm(z, bn.mean, bn.var, bn.weight, bn.bias, eps=bn.eps)
    left_over = normed[:, 1] - reconstruction_scale(weight, bn)[1, 0] * normed[:, 0]
    torch.testing.assert_close(left_over, bias_matrix(weight, bn)[1, 0].expand(50))


def test_scale_is_reciprocal_and_the_diagonals_are_one_and_zero():
    weight, bn = random_layer((10, 3, 3, 3))
    scale = reconstruction_scale(weight, bn)
    torch.testing.assert_close(scale * scale.T, torch.ones_like(scale))
    assert (scale.diagonal() == 1).all()
    torch.testing.assert_close(bias_matrix(weight, bn).diagonal(), torch.zeros(10, dtype=torch.float64))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_dead_channels_have_no_scale_and_leave_their_constant_over(dtype):
    weight, bn = random_layer((6, 3, 3, 3), dtype)
    kill(weight, bn, zero_weight=[1], zero_gamma=[4])
    scale, bias, dead = reconstruction_scale(weight, bn), bias_matrix(weight, bn), [1, 4]
    assert alive_channels(weight, bn).tolist() == [True, False, True, True, False, True]
    assert (scale[dead] == 0).all()
    assert (scale[:, dead] == 0).all()
    assert torch.equal(bias[dead], bn.shift[dead][:, None].expand(2, 6))
    assert torch.equal(bias[:, dead], bn.shift[:, None].expand(6, 2))
    alive = [0, 2, 3, 5]
    assert (scale[alive][:, alive] != 0).all()


@pytest.mark.parametrize('factor', [1e-5, 1e-30, 0.0])
@pytest.mark.parametrize('field', ['weight', 'gamma'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_channel_far_smaller_than_the_others_is_dead(dtype, field, factor):
    weight, bn = random_layer((8, 4), dtype)
    (weight if field == 'weight' else bn.weight)[3] *= factor
    assert alive_channels(weight, bn).logical_not().nonzero().flatten().tolist() == [3]
    assert reconstruction_scale(weight, bn).isfinite().all()
    assert bias_matrix(weight, bn).isfinite().all()


def test_a_layer_of_small_channels_is_not_dead():
    weight, bn = random_layer((8, 4))
    assert alive_channels(weight * 1e-5, bn).all()
    assert not alive_channels(weight * 1e-12, bn).any()


def test_a_norm_without_any_deviation_gives_finite_matrices():
    weight, bn = random_layer((4, 5))
    bn = BatchNormStats(bn.weight, bn.bias, bn.mean, torch.tensor([0.0, 1, 1, 0], dtype=torch.float64), eps=0.0)
    assert alive_channels(weight, bn).tolist() == [False, True, True, False]
    assert reconstruction_scale(weight, bn).isfinite().all()
    assert bias_matrix(weight, bn).isfinite().all()


def test_slope_and_shift_are_the_norm():
    _, bn = random_layer((7, 4))
    z = torch.randn(20, 7, dtype=torch.float64)
    expected = F.batch_norm(z, bn.mean, bn.var, bn.weight, bn.bias, eps=bn.eps)
    torch.testing.assert_close(bn.slope * z + bn.shift, expected)
    torch.testing.assert_close(bn.sigma**2, bn.var + bn.eps)


def test_a_channel_with_a_zero_kernel_puts_out_its_shift():
    weight, bn = random_layer((5, 3, 3, 3))
    kill(weight, bn, zero_weight=[2])
    z = F.conv2d(torch.randn(2, 3, 6, 6, dtype=torch.float64), weight)
    output = F.batch_norm(z, bn.mean, bn.var, bn.weight, bn.bias, eps=bn.eps)
    torch.testing.assert_close(output[:, 2], bn.shift[2].expand(2, 4, 4))


def test_identity_stats_leave_norms_and_biases_only():
    weight, _ = random_layer((6, 4))
    bias = torch.randn(6, dtype=torch.float64)
    bn = BatchNormStats.identity(bias)
    norm = weight.norm(dim=1)
    assert torch.equal(bn.sigma, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(reconstruction_scale(weight, bn), norm[:, None] / norm)
    torch.testing.assert_close(bias_matrix(weight, bn), bias[:, None] - norm[:, None] / norm * bias)


def test_identity_stats_take_their_type_from_the_bias_and_no_gradient():
    bn = BatchNormStats.identity(torch.randn(3, dtype=torch.float64, requires_grad=True))
    assert bn.var.dtype == torch.float64
    assert not bn.bias.requires_grad


@pytest.mark.parametrize('kernel', [alive_channels, reconstruction_scale, bias_matrix, ChannelSimilarity.from_weight])
def test_a_norm_of_another_layer_is_refused(kernel):
    weight, bn = random_layer((6, 4))
    with pytest.raises(ValueError, match=r'5 channels was expected, but its weight has shape \(6,\)'):
        kernel(weight[:5], bn)


@pytest.mark.parametrize('shape', [(4,), (0, 3, 3, 3), (3, 0)])
def test_what_is_no_weight_is_refused(shape):
    with pytest.raises(ValueError, match='not empty'):
        cosine_distance(torch.zeros(shape))


def test_no_result_carries_a_gradient():
    weight, bn = random_layer((6, 4))
    weight.requires_grad_()
    bn.weight.requires_grad_()
    bn.bias.requires_grad_()
    similarity = ChannelSimilarity.from_weight(weight, bn)
    for name in ('distance', 'scale', 'bias', 'alive'):
        assert not getattr(similarity, name).requires_grad, name
    assert not similarity.delivery([0, 1], 0.5).requires_grad


@pytest.mark.parametrize('kernel', [cosine_distance, reconstruction_scale, bias_matrix])
def test_matrices_follow_a_permutation_of_the_channels(kernel):
    weight, bn = random_layer((9, 3, 3, 3))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    moved = BatchNormStats(*(t[order] for t in (bn.weight, bn.bias, bn.mean, bn.var)), bn.eps)
    norms = [(), ()] if kernel is cosine_distance else [(bn,), (moved,)]
    expected = kernel(weight, *norms[0])[order][:, order]
    torch.testing.assert_close(kernel(weight[order], *norms[1]), expected)


def test_similarity_of_a_layer_holds_the_kernels_results():
    weight, bn = random_layer((10, 3, 3, 3))
    kill(weight, bn, zero_gamma=[7])
    similarity = ChannelSimilarity.from_weight(weight, bn)
    assert torch.equal(similarity.distance, cosine_distance(weight))
    assert torch.equal(similarity.scale, reconstruction_scale(weight, bn))
    assert torch.equal(similarity.bias, bias_matrix(weight, bn))
    assert torch.equal(similarity.alive, alive_channels(weight, bn))
