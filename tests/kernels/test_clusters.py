"""DBSCAN over cosine distances, beside a slow silhouette."""

import math

import pytest
import torch

from mmautodfp.kernels import cluster_channels, cosine_distance


def bundles(*sizes, spread=0.05, seed=0):
    """Channels scattered narrowly around one axis a bundle, in 16 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(16, dtype=torch.float64)[: len(sizes)].repeat_interleave(torch.tensor(sizes), 0)
    return centres + spread * torch.randn(*centres.shape, generator=generator, dtype=torch.float64)


def loop_silhouette(distance, labels):
    """Mean of (b - a) / max(a, b), from the definition; noise (-1) left out."""
    members = {label: [i for i, other in enumerate(labels) if other == label] for label in set(labels) - {-1}}
    scores = []
    for label, own in members.items():
        for i in own:
            if len(own) == 1:
                scores.append(0.0)
                continue
            a = sum(float(distance[i, j]) for j in own if j != i) / (len(own) - 1)
            others = [rows for other, rows in members.items() if other != label]
            b = min(sum(float(distance[i, j]) for j in rows) / len(rows) for rows in others)
            scores.append((b - a) / max(a, b))
    return sum(scores) / len(scores)


def test_bundles_become_clusters_and_the_rest_noise():
    weight = torch.cat([bundles(7, 6, 5), -torch.eye(16, dtype=torch.float64)[12:14]])
    clusters = cluster_channels(weight, eps=0.3)
    assert clusters.labels.tolist() == [0] * 7 + [1] * 6 + [2] * 5 + [-1] * 2
    assert clusters.num_clusters == 3
    assert clusters.noise_ratio == pytest.approx(2 / 20)
    expected = loop_silhouette(cosine_distance(weight), clusters.labels.tolist())
    assert clusters.silhouette == pytest.approx(expected, abs=1e-9)
    assert 0.8 < clusters.silhouette < 1


@pytest.mark.parametrize('spread', [1e-4, 0.05, 0.2])
def test_without_eps_bundles_of_any_spread_become_clusters(spread):
    """Channels of trained networks are so far apart that no single eps suits all layers."""
    weight = torch.cat([bundles(7, 6, 7, spread=spread), -torch.eye(16, dtype=torch.float64)[10:13]])
    clusters = cluster_channels(weight)
    assert clusters.num_clusters == 3
    assert clusters.labels[20:].tolist() == [-1] * 3
    for cluster, members in enumerate(clusters.labels[:20].split([7, 6, 7])):
        assert set(members.tolist()) <= {cluster, -1}


def test_without_eps_the_most_clusters_are_found_that_a_decile_of_the_distances_gives():
    weight = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
    distance = cosine_distance(weight)
    fifth = distance.sort(1).values[:, 4].sort().values
    found = cluster_channels(weight)
    counts = {}
    for decile in range(1, 10):
        place = decile / 10 * 39
        low, high = fifth[math.floor(place)].item(), fifth[math.ceil(place)].item()
        clusters = cluster_channels(weight, eps=low + (place % 1) * (high - low))
        counts[decile] = (clusters.num_clusters, -clusters.noise_ratio)
    assert (found.num_clusters, -found.noise_ratio) == max(counts.values())
    assert found.num_clusters >= 2


def test_clusters_do_not_depend_on_the_lengths_of_channels():
    weight = bundles(6, 6)
    lengths = torch.linspace(0.01, 50, 12, dtype=torch.float64)[:, None]
    one, other = cluster_channels(weight), cluster_channels(weight * lengths)
    assert torch.equal(one.labels, other.labels)
    assert one.silhouette == pytest.approx(other.silhouette)


def test_min_samples_and_eps_decide_what_is_noise():
    weight = bundles(6, 4)
    assert cluster_channels(weight, eps=0.5).num_clusters == 1
    assert cluster_channels(weight, eps=0.5).noise_ratio == pytest.approx(0.4)
    assert cluster_channels(weight, eps=0.5, min_samples=4).num_clusters == 2
    assert cluster_channels(weight, eps=1e-6).noise_ratio == 1
    assert cluster_channels(weight, eps=2.0).num_clusters == 1


@pytest.mark.parametrize(
    ('weight', 'settings', 'num_clusters', 'noise_ratio'),
    [
        pytest.param(bundles(8), {}, 1, 0, id='one cluster'),
        pytest.param(torch.eye(6), {}, 0, 1, id='nothing but noise'),
        pytest.param(torch.eye(6), dict(min_samples=1), 6, 0, id='every channel a cluster'),
        pytest.param(torch.ones(1, 3, 3, 3), {}, 0, 1, id='one channel'),
        pytest.param(torch.zeros(6, 4), {}, 0, 1, id='all zero'),
    ],
)
def test_silhouette_is_zero_where_it_is_not_defined(weight, settings, num_clusters, noise_ratio):
    clusters = cluster_channels(weight, **settings)
    assert (clusters.num_clusters, clusters.noise_ratio, clusters.silhouette) == (num_clusters, noise_ratio, 0)
