"""How alike the channels of a layer are, from its weight and BatchNorm alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .selection import assign_partners, flat_channels, widen

# A channel is dead up to this share of its layer's largest |gamma| or |W|. Weight decay makes both of them shrink
# further and further in a dead channel, so the exact value matters little.
DEAD_RELATIVE = 1e-4
DEAD_ABSOLUTE = 1e-8
# Largest radius of a neighbourhood: channels at right angles (a distance of 1, up to rounding) are no neighbours.
UNRELATED = 0.999


@dataclass(frozen=True, eq=False)
class BatchNormStats:
    """The BatchNorm behind a producer, which maps the channel's output z to ``slope * z + shift``.

    A producer's own bias is a shift of z: subtract it from ``mean``.

    Attributes:
        weight (Tensor): [N], gamma.
        bias (Tensor): [N], beta.
        mean (Tensor): [N], mu, the running mean.
        var (Tensor): [N], the running variance.
        eps (float): What the norm adds to the variance. Defaults to 1e-5.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float = 1e-5

    @classmethod
    def identity(cls, bias: Tensor) -> 'BatchNormStats':
        """The stand-in for a producer without BatchNorm: gamma = sigma = 1, mu = 0, beta = its bias [N] or zeros."""
        bias = bias.detach()
        return cls(torch.ones_like(bias), bias, torch.zeros_like(bias), torch.ones_like(bias), eps=0.0)

    @property
    def sigma(self) -> Tensor:
        """[N], sqrt(var + eps)."""
        return (widen(self.var) + self.eps).sqrt()

    @property
    def slope(self) -> Tensor:
        """[N], gamma / sigma; 0 where sigma is 0."""
        return torch.where(self.sigma > 0, widen(self.weight) / self.sigma, 0)

    @property
    def shift(self) -> Tensor:
        """[N], beta - gamma * mu / sigma: the constant that a dead channel gives to the activation."""
        return widen(self.bias) - self.slope * widen(self.mean)


@torch.no_grad()
def cosine_distance(weight: Tensor) -> Tensor:
    """One minus the cosine similarity of every two channels.

    Args:
        weight (Tensor): [N, C, kH, kW] or [N, C].

    Returns:
        Tensor: [N, N], 0 to 2, zero on the diagonal; an all-zero channel has distance 1 to all others.
    """
    rows = flat_channels(weight)
    norm = rows.norm(dim=1, keepdim=True)
    rows = rows / torch.where(norm > 0, norm, 1)
    return (1 - rows @ rows.T).clamp_(0, 2).fill_diagonal_(0)


@torch.no_grad()
def alive_channels(weight: Tensor, bn: BatchNormStats) -> Tensor:
    """Whether each channel depends on its input at all.

    A channel is dead if its |gamma| or its |W| is at most 1e-4 of the layer's largest, or at most 1e-8, or if
    its sigma is 0. Its output before the activation is the constant :attr:`BatchNormStats.shift`.

    Args:
        weight (Tensor): [N, C, kH, kW] or [N, C].
        bn (BatchNormStats): [N] each.

    Returns:
        Tensor: [N] of bool.

    Raises:
        ValueError: ``bn`` belongs to another number of channels.
    """
    norm, gamma = flat_channels(weight).norm(dim=1), widen(bn.weight).abs()
    for name in ('weight', 'bias', 'mean', 'var'):
        if getattr(bn, name).shape != norm.shape:
            found = tuple(getattr(bn, name).shape)
            raise ValueError(f'a BatchNorm for {len(norm)} channels was expected, but its {name} has shape {found}')
    return _stands_out(norm) & _stands_out(gamma) & (bn.sigma > 0)


def _stands_out(size: Tensor) -> Tensor:
    return size > (DEAD_RELATIVE * size.max()).clamp_min(DEAD_ABSOLUTE)


@torch.no_grad()
def reconstruction_scale(weight: Tensor, bn: BatchNormStats) -> Tensor:
    """The factor of a kept channel's output with which it stands in for a pruned channel (Eq. 12).

    ``s_pr = |W_p| / |W_r| * (sigma_r / gamma_r) * (gamma_p / sigma_p)``, so it is negative where the gammas' signs
    differ. It is 0 where p or r is dead (see :func:`alive_channels`), and always finite.

    Args:
        weight (Tensor): [N, C, kH, kW] or [N, C].
        bn (BatchNormStats): [N] each.

    Returns:
        Tensor: [N, N], [p, r] is s_pr.

    Raises:
        ValueError: ``bn`` belongs to another number of channels.
    """
    alive = alive_channels(weight, bn)
    gain = torch.where(alive, flat_channels(weight).norm(dim=1) * bn.slope, 0)
    return (gain[:, None] / gain).nan_to_num_(nan=0, posinf=0, neginf=0)  # the divisor is 0 if r is dead


@torch.no_grad()
def bias_matrix(weight: Tensor, bn: BatchNormStats) -> Tensor:
    """The constant that is missing where one channel stands in for another (Eq. 18).

    ``b_ij = s_ij * (gamma_j mu_j / sigma_j - beta_j) - gamma_i mu_i / sigma_i + beta_i``, signed.

    Args:
        weight (Tensor): [N, C, kH, kW] or [N, C].
        bn (BatchNormStats): [N] each.

    Returns:
        Tensor: [N, N], [i, j] is b_ij, where j stands in for i.

    Raises:
        ValueError: ``bn`` belongs to another number of channels.
    """
    # The two brackets of Eq. 18 are the two channels' shifts.
    return bn.shift[:, None] - reconstruction_scale(weight, bn) * bn.shift


@dataclass(frozen=True, eq=False)
class ChannelClusters:
    """Clusters of channels whose weights have similar directions.

    Attributes:
        labels (Tensor): [N], cluster of each channel from 0 on, -1 for noise.
        num_clusters (int): Number of clusters; noise does not count.
        noise_ratio (float): Share of the channels that belong to no cluster, 0 to 1.
        silhouette (float): Mean silhouette of the clustered channels, -1 to 1; 0 if it is not defined.
    """

    labels: Tensor
    num_clusters: int
    noise_ratio: float
    silhouette: float


def cluster_channels(weight: Tensor, eps: float | None = None, min_samples: int = 5) -> ChannelClusters:
    """Group the channels with DBSCAN on their cosine distances.

    The silhouette leaves out noise, which is no cluster and has a figure of its own, ``noise_ratio``. It is 0 where
    scikit-learn defines none: with fewer than two clusters, or if every channel is a cluster of its own.

    Args:
        weight (Tensor): [N, C, kH, kW] or [N, C].
        eps (float | None): Largest cosine distance between neighbours. Defaults to None: of the deciles of the
            channels' distances to their ``min_samples``-th neighbour, the one that gives most clusters; if several do,
            the largest. It is below 1: channels at right angles are no neighbours.
        min_samples (int): Neighbours, itself included, that make a channel the core of a cluster. Defaults to 5.

    Returns:
        ChannelClusters: The labels on the weight's device, and three summaries.
    """
    # Imported here, as it takes a second and only a search and its report need it.
    from sklearn.cluster import DBSCAN
    from sklearn.metrics import silhouette_score

    distance = cosine_distance(weight).cpu().double().numpy()
    radii = [eps]
    if eps is None:
        reach = np.sort(distance, 1)[:, min(min_samples, len(distance)) - 1]  # each channel is its own first neighbour
        radii = np.quantile(reach, np.arange(1, 10) / 10).clip(1e-9, UNRELATED)
    fits = [DBSCAN(eps=radius, min_samples=min_samples, metric='precomputed').fit(distance).labels_ for radius in radii]
    labels = max(reversed(fits), key=max)  # labels count up from 0, so the largest tells how many there are
    inside = labels >= 0
    num_clusters, silhouette = int(labels.max()) + 1, 0.0
    if 2 <= num_clusters < inside.sum():
        silhouette = float(silhouette_score(distance[inside][:, inside], labels[inside], metric='precomputed'))
    labels = torch.from_numpy(labels).to(weight.device)
    return ChannelClusters(labels, num_clusters, 1 - float(inside.mean()), silhouette)


@dataclass(frozen=True, eq=False)
class ChannelSimilarity:
    """All that a search needs of one layer, computed once from its dense weights.

    Attributes:
        distance (Tensor): [N, N], :func:`cosine_distance`.
        scale (Tensor): [N, N], :func:`reconstruction_scale`.
        bias (Tensor): [N, N], :func:`bias_matrix`.
        alive (Tensor): [N] of bool, :func:`alive_channels`.
    """

    distance: Tensor
    scale: Tensor
    bias: Tensor
    alive: Tensor

    @classmethod
    def from_weight(cls, weight: Tensor, bn: BatchNormStats) -> 'ChannelSimilarity':
        """Compare the channels of ``weight`` ([N, C, kH, kW] or [N, C]) under ``bn`` ([N] each).

        Raises:
            ValueError: ``bn`` belongs to another number of channels.
        """
        return cls(
            distance=cosine_distance(weight),
            scale=reconstruction_scale(weight, bn),
            bias=bias_matrix(weight, bn),
            alive=alive_channels(weight, bn),
        )

    @cached_property
    def magnitude(self) -> Tensor:
        """[N, N], |b_ij|."""
        return self.bias.abs()

    def delivery(
        self,
        keep: Tensor | Sequence[int],
        lam: float,
        normalization: str = 'minmax',
        min_cosine: float | None = None,
    ) -> Tensor:
        """How every channel is expressed by the kept ones (Eqs. 12 and 16).

        The row of a kept channel is one-hot. The row of a pruned channel p holds s_pr at the kept channel r with the
        least ``lam * cosine_distance(p, r) + (1 - lam) * |b_pr|``, where |b_pr| is normalised over p's candidates. A
        dead kept channel is no candidate. The row is zero if p is dead (its constant output can move into a bias, see
        :attr:`BatchNormStats.shift`) or if there is no candidate.

        Args:
            keep (Tensor | Sequence[int]): [K], distinct kept channels; column k belongs to ``keep[k]``.
            lam (float): Weight of the direction against the left-over constant, 0 to 1.
            normalization (str): 'max' divides |b| by its largest value, 'minmax' subtracts its least value first.
                Defaults to 'minmax'.
            min_cosine (float | None): Leave p's row zero if the chosen r's cosine similarity is below it. Defaults to
                None.

        Returns:
            Tensor: [N, K].

        Raises:
            ValueError: ``keep`` is empty, names a channel twice or one that does not exist; ``lam`` is outside 0 to 1;
                ``normalization`` is unknown.
        """
        return assign_partners(
            self.distance, self.scale, self.magnitude, self.alive, keep, lam, normalization, min_cosine
        )
