"""Moments against numpy on all samples at once, least squares against numpy.linalg.lstsq."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmautodfp.kernels import (
    Moments,
    TapCorrelation,
    dead_leaves,
    least_squares_delivery,
    merge_input_channels,
    output_variance,
    rank_by_explanation,
    solve_ridge,
    unexplained_shares,
    white_noise,
)


def correlated(num_samples=600, channels=12, seed=0, dtype=torch.float64):
    """Samples [S, N] of channels that have means and much in common."""
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)
    hidden = randn(num_samples, channels // 2) @ randn(channels // 2, channels)
    return (hidden + 0.3 * randn(num_samples, channels) + 3 * randn(channels)).to(dtype)


def moments_of(*samples, splits=None, weighted=False):
    """Moments of samples x and perhaps y, the last of which are their weights if they are weighted."""
    moments = Moments(*(part.shape[1] for part in samples[: len(samples) - weighted]))
    sizes = splits or [len(samples[0])]
    for batch in zip(*(part.split(sizes) for part in samples), strict=True):
        moments.update(*batch)
    return moments


@pytest.mark.parametrize('splits', [[600], [1, 1, 598], [100] * 6, [599, 1]])
def test_streaming_moments_equal_those_of_all_samples_at_once(splits):
    x, y = correlated(), correlated(channels=6, seed=1)
    moments = moments_of(x, y, splits=splits)
    together = np.cov(torch.cat([x, y], 1).numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-10)
    np.testing.assert_allclose(moments.target_mean, y.mean(0), rtol=1e-10)
    np.testing.assert_allclose(moments.covariance, together[:12, :12], rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(moments.cross_covariance, together[12:, :12], rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(moments.target_variance, together.diagonal()[12:], rtol=1e-6)
    assert moments.count == 600


def test_moments_stay_exact_far_from_zero():
    x = correlated() + 1e6
    moments = moments_of(x, splits=[37] * 16 + [8])
    np.testing.assert_allclose(moments.covariance, np.cov(x.numpy(), rowvar=False, bias=True), rtol=1e-6, atol=1e-8)


def test_single_precision_samples_are_summed_in_double():
    x = correlated(50_000, 8, dtype=torch.float32) + 100
    moments = moments_of(x, splits=[1000] * 50)
    reference = np.cov(x.double().numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.covariance, reference, rtol=1e-5, atol=1e-5 * reference.max())


def test_moments_of_many_rows_are_taken_in_pieces(monkeypatch):
    x = correlated()
    whole = moments_of(x)
    monkeypatch.setattr('mmautodfp.kernels.moments.CHUNK', 12)
    torch.testing.assert_close(moments_of(x).covariance, whole.covariance, rtol=1e-12, atol=1e-12)


def test_a_weight_counts_as_so_many_samples():
    x, y = correlated(), correlated(channels=6, seed=1)
    counts = torch.randint(1, 5, (600,), generator=torch.Generator().manual_seed(0))
    repeated = moments_of(x.repeat_interleave(counts, 0), y.repeat_interleave(counts, 0))
    moments = moments_of(x, y, counts.double(), splits=[250, 350], weighted=True)
    assert moments.count == repeated.count
    for name in ('mean', 'target_mean', 'covariance', 'cross_covariance', 'target_variance'):
        torch.testing.assert_close(getattr(moments, name), getattr(repeated, name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('num_keep', [1, 5, 11])
def test_delivery_equals_numpys_least_squares(num_keep, dtype):
    x = correlated(dtype=dtype)
    keep = torch.randperm(12, generator=torch.Generator().manual_seed(num_keep))[:num_keep].sort().values
    moments = moments_of(x, splits=[200] * 3)
    delivery, constant = least_squares_delivery(moments.mean, moments.covariance, keep)
    design = np.concatenate([x[:, keep].double().numpy(), np.ones((600, 1))], 1)
    solution = np.linalg.lstsq(design, x.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(delivery, solution[:-1].T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(constant, solution[-1], rtol=1e-5, atol=1e-5)


def test_ridge_equals_least_squares_with_additional_rows():
    x, y, prior = correlated(), correlated(channels=4, seed=1), torch.randn(4, 12, dtype=torch.float64)
    moments = moments_of(x, y)
    solved = solve_ridge(moments.covariance, moments.cross_covariance, 0.3, prior)
    weight = (0.3 * x.var(0, correction=0).mean() * len(x)).sqrt()
    design = torch.cat([x - x.mean(0), weight * torch.eye(12, dtype=torch.float64)])
    wanted = torch.cat([y - y.mean(0), weight * prior.T])
    np.testing.assert_allclose(solved.T, np.linalg.lstsq(design.numpy(), wanted.numpy(), rcond=None)[0], atol=1e-8)


def test_a_ridge_without_end_leaves_the_prior():
    moments = moments_of(correlated(), correlated(seed=1))
    prior = torch.randn(12, 12, dtype=torch.float64)
    solved = solve_ridge(moments.covariance, moments.cross_covariance, 1e12, prior)
    torch.testing.assert_close(solved, prior, rtol=0, atol=1e-9)


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_moments_that_are_not_finite_are_refused(value):
    eye, cross = torch.eye(3), torch.ones(2, 3)
    for place in ((0, 0), (1, 2)):
        with pytest.raises(ValueError, match='a covariance of finite numbers was expected, but 1 of its 9 are not'):
            solve_ridge(eye.index_put([torch.tensor(i) for i in place], torch.tensor(value)), cross)
    with pytest.raises(ValueError, match='a cross covariance of finite numbers was expected, but 1 of its 6'):
        solve_ridge(eye, cross.index_put([torch.tensor(0), torch.tensor(0)], torch.tensor(value)))
    with pytest.raises(ValueError, match='ridge is a number of 0 or more'):
        solve_ridge(eye, cross, value)


def test_a_matrix_that_is_no_covariance_is_refused():
    with pytest.raises(ValueError, match='no negative eigenvalue, but the least of the one given is -9'):
        solve_ridge(torch.tensor([[1.0, 10], [10, 1]]), torch.ones(1, 2))


@pytest.mark.parametrize('ridge', [0.0, 1e-2])
def test_all_channels_kept_deliver_themselves(ridge):
    x = correlated()
    moments = moments_of(x)
    delivery, constant = least_squares_delivery(moments.mean, moments.covariance, torch.arange(12), ridge)
    assert torch.equal(delivery, torch.eye(12, dtype=torch.float64))
    assert not constant.any()


def test_a_singular_covariance_still_explains_all_that_can_be():
    x = correlated()
    x = torch.cat([x, x[:, :4] - 2 * x[:, 4:8], x[:, :1]], 1)  # 17 channels of rank 12
    moments = moments_of(x)
    keep = torch.tensor([*range(12), 16])  # 16 repeats 0
    delivery, constant = least_squares_delivery(moments.mean, moments.covariance, keep)
    torch.testing.assert_close(x[:, keep] @ delivery.T + constant, x, rtol=0, atol=1e-4)


def test_fewer_samples_than_channels_give_finite_coefficients():
    x = correlated(num_samples=5)
    moments = moments_of(x)
    delivery, constant = least_squares_delivery(moments.mean, moments.covariance, torch.arange(8))
    assert delivery.isfinite().all()
    torch.testing.assert_close(x[:, :8] @ delivery.T + constant, x, rtol=0, atol=1e-3)


def test_a_dead_channel_is_its_constant_and_explains_nothing():
    x = correlated()
    x[:, 3], x[:, 9] = 0.0, 2.5
    moments = moments_of(x)
    delivery, constant = least_squares_delivery(moments.mean, moments.covariance, torch.tensor([0, 3]), 1e-2)
    assert delivery[9].abs().max() == 0
    assert constant[9] == 2.5
    assert delivery[4:, 1].abs().max() < 1e-12


def test_channels_that_are_all_dead_leave_their_constants():
    x = torch.arange(12.0).repeat(10, 1)
    moments = moments_of(x)
    delivery, constant = least_squares_delivery(moments.mean, moments.covariance, torch.tensor([2, 5]))
    assert delivery.count_nonzero() == 2
    expected = torch.arange(12.0).double().index_fill(0, torch.tensor([2, 5]), 0)
    assert torch.equal(constant, expected)


def test_moving_constants_changes_nothing_for_constant_channels():
    x = correlated()
    x[:, [1, 7]] = torch.tensor([1.5, -2.0], dtype=torch.float64)
    moments = moments_of(x)
    keep = torch.tensor([n for n in range(12) if n not in (1, 7)])
    delivery, constant = least_squares_delivery(moments.mean, moments.covariance, keep)
    weight = torch.randn(5, 12, dtype=torch.float64)
    bias = weight @ constant
    slim = F.linear(x[:, keep], merge_input_channels(weight, delivery), bias)
    torch.testing.assert_close(slim, F.linear(x, weight), rtol=0, atol=1e-10)


def test_ranking_takes_what_explains_most_first():
    x = correlated(channels=8)
    covariance, consumer = moments_of(x).covariance, torch.diag(torch.rand(8, dtype=torch.float64) + 0.1)
    ranking = rank_by_explanation(covariance, consumer).tolist()
    for taken in range(3):
        errors = {}
        for candidate in set(range(8)) - set(ranking[:taken]):
            keep = torch.tensor([*ranking[:taken], candidate])
            explained = covariance[:, keep] @ torch.linalg.solve(covariance[keep][:, keep], covariance[keep])
            errors[candidate] = float(torch.trace(consumer @ (covariance - explained)))
        assert min(errors, key=errors.get) == ranking[taken]
    assert sorted(ranking) == list(range(8))


def ranked_afresh(covariance, consumer):
    """The same order, every gain worked out anew: O(N^4)."""
    rest, taken = covariance.double().clone(), []
    left = torch.ones(len(rest), dtype=torch.bool)
    floor = rest.diagonal().max() * 1e-10
    while (useful := left & (rest.diagonal() > floor)).any():
        gain = ((consumer @ rest) * rest).sum(0) / rest.diagonal()
        best = gain[useful].max()
        pivot = next(n for n in range(len(rest)) if useful[n] and gain[n] >= best - 1e-6 * best)
        taken.append(pivot)
        left[pivot] = False
        rest -= torch.outer(rest[:, pivot], rest[:, pivot]) / rest[pivot, pivot]
    return taken + left.nonzero().flatten().tolist()


@pytest.mark.parametrize('kind', ['plain', 'dead', 'twins', 'multiples', 'few samples'])
@pytest.mark.parametrize('seed', range(4))
def test_ranking_is_that_of_gains_worked_out_afresh(kind, seed):
    x = correlated(10 if kind == 'few samples' else 200, 24, seed)
    weight = torch.randn(7, 24, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == 'dead':
        x[:, 3], x[:, 7] = 0, 2.5
    elif kind in ('twins', 'multiples'):
        factors = torch.tensor([1.0, 1, 1] if kind == 'twins' else [0.5, -2, 3]).double()
        x[:, 12:] = x[:, :12] * factors.repeat(4)
        weight[:, 12:] = weight[:, :12]
    covariance, consumer = moments_of(x).covariance, torch.einsum('ons,oms->nm', weight, weight)
    ranking = rank_by_explanation(covariance, consumer).tolist()
    assert ranking == ranked_afresh(covariance, consumer)
    if kind == 'twins':
        assert all(ranking.index(n) < ranking.index(n + 12) for n in range(12))


def test_ranking_puts_repeated_and_dead_channels_last():
    x = correlated(channels=6)
    x[:, 2], x[:, 5] = 1.0, 2 * x[:, 0]
    ranking = rank_by_explanation(moments_of(x).covariance, torch.eye(6, dtype=torch.float64)).tolist()
    assert ranking[4] in (0, 2)
    assert 2 in ranking[4:]
    assert set(ranking[:4]) & {0, 5}
    assert {0, 5} - set(ranking[:4])


@pytest.mark.parametrize('draw', [dead_leaves, white_noise])
def test_synthetic_images_do_not_depend_on_the_batches_they_are_drawn_in(draw):
    settings = dict(size=(24, 40), mean=[120.0, 110, 100], std=[60.0, 58, 56], seed=3)
    whole = draw(5, **settings)
    assert whole.shape == (5, 3, 24, 40)
    assert torch.equal(whole, torch.cat([draw(2, **settings), draw(3, first=2, **settings)]))
    assert not torch.equal(whole, draw(5, **settings | dict(seed=4)))
    assert len({image.sum().item() for image in whole}) == 5


@pytest.mark.parametrize('draw', [dead_leaves, white_noise])
def test_synthetic_images_are_on_the_scale_that_the_preprocessor_gives(draw):
    mean, std = torch.tensor([123.0, 116, 103]), torch.tensor([58.0, 57, 1])
    images = draw(8, (64, 64), mean, std)
    pixels = images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    assert pixels.min() > -1e-3
    assert pixels.max() < 255 + 1e-3
    assert 100 < pixels.mean() < 155
    assert 30 < pixels.std() < 90


def test_dead_leaves_have_surfaces_and_edges(monkeypatch):
    monkeypatch.setattr('mmautodfp.kernels.images.TEXTURE', 0)
    image = dead_leaves(4, (64, 64), [127.5], [58.0])
    steps = image.diff(dim=-1)
    assert (steps == 0).float().mean() > 0.5
    assert steps.abs().max() > 0.5
    assert len(image[0].unique()) > 5


def test_tap_correlation_is_that_of_shifted_inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 40, 40, generator=generator)
    x = F.avg_pool2d(x, 3, 1)  # neighbours share two thirds of what they are made of
    correlation = TapCorrelation((3, 3))
    for part in x.split(1):
        correlation.update(part)
    matrix = correlation.matrix
    assert torch.equal(matrix, matrix.T)
    assert matrix.diagonal().tolist() == [1.0] * 9
    for (s, t), expected in {(4, 5): 2 / 3, (4, 7): 2 / 3, (4, 8): 4 / 9, (2, 6): 1 / 9, (0, 2): 1 / 3}.items():
        assert matrix[s, t] == pytest.approx(expected, abs=0.05)


def test_output_variance_of_a_pointwise_layer_is_exact():
    x = correlated()
    weight = torch.randn(5, 12, 1, dtype=torch.float64)
    found = output_variance(weight, moments_of(x).covariance, torch.eye(1))
    torch.testing.assert_close(found, (x @ weight[..., 0].T).var(0, correction=0), rtol=1e-4, atol=1e-6)


def test_output_variance_of_a_kernel_is_near_that_of_the_convolution():
    generator = torch.Generator().manual_seed(0)
    x = F.avg_pool2d(torch.randn(8, 4, 34, 34, generator=generator), 3, 1)
    x = torch.einsum('bchw,nc->bnhw', x, torch.randn(6, 4, generator=generator))
    weight = torch.randn(5, 6, 3, 3, generator=generator)
    correlation = TapCorrelation((3, 3))
    correlation.update(x)
    moments = moments_of(x.permute(0, 2, 3, 1).flatten(0, 2))
    found = output_variance(weight.flatten(2), moments.covariance, correlation.matrix)
    torch.testing.assert_close(found.float(), F.conv2d(x, weight).var((0, 2, 3)), rtol=0.15, atol=0)


def test_unexplained_shares_are_what_regressions_leave_over():
    x, weight = correlated(), torch.randn(5, 12, dtype=torch.float64)
    ranking = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    found = unexplained_shares(moments_of(x).covariance, weight.T @ weight, ranking)
    x = (x - x.mean(0)).numpy()
    for count in range(13):
        kept = x[:, ranking[:count].numpy()]
        left = x - kept @ np.linalg.lstsq(kept, x, rcond=None)[0]
        share = ((left @ weight.T.numpy()) ** 2).sum() / ((x @ weight.T.numpy()) ** 2).sum()
        assert found[count].item() == pytest.approx(share, abs=1e-6)


def test_unexplained_shares_of_singular_and_of_silent_channels():
    x = correlated()[:, :6]
    twice = torch.cat([x, x], 1)  # each channel has a twin
    shares = unexplained_shares(moments_of(twice).covariance, torch.eye(12), torch.arange(12))
    assert shares[5] > 1e-3
    assert shares[6:].abs().max() < 1e-6
    silent = torch.zeros(12, 12)
    assert unexplained_shares(silent, torch.eye(12), torch.arange(12)).tolist() == [0.0] * 13  # no channel says a thing
    assert unexplained_shares(moments_of(twice).covariance, silent, torch.arange(12)).tolist() == [0.0] * 13  # unread


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('size', [0.0, 1e-30])
def test_channels_that_no_consumer_reads_are_ranked_last_whatever_the_rounding(seed, size):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(60, 24, generator=generator, dtype=torch.float64)
    weight = torch.randn(12, 24, generator=generator, dtype=torch.float64)
    weight[:, 4:] *= size
    ranking = rank_by_explanation(samples.T @ samples / 60, weight.T @ weight)
    assert sorted(ranking.tolist()) == list(range(24))
    assert set(ranking[:4].tolist()) == {0, 1, 2, 3}
