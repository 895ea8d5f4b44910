"""The nine numbers that the agent sees of a layer (Eq. 17)."""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields

import torch
from torch import Tensor

from mmautodfp.kernels import BatchNormStats, bias_matrix, cluster_channels
from mmautodfp.utils.settings import Count, Positive, settings

# Numbers of a state that are shares, or lie between -1 and 1.
WITHIN_ONE = ('bias_small', 'noise_ratio', 'silhouette')


@settings('clustering')
class Clustering:
    """DBSCAN's settings for what the agent sees of a layer.

    Attributes:
        eps (float | None): Largest cosine distance between neighbours. Defaults to None, from each layer's data (see
            :func:`mmautodfp.kernels.cluster_channels`): with the paper's 0.5, 0.3 or 1, the channels of most layers are
            all noise, or all one cluster.
        min_samples (int): Neighbours that make a channel the core of a cluster. Defaults to 5.
    """

    eps: Positive | None = None
    min_samples: Count = 5


@dataclass(frozen=True)
class LayerState:
    """Eq. 17 as measured on the dense layer, unscaled.

    Attributes:
        index (int): l, position of the layer among the prunable ones, from 0.
        kind (int): 0 for a convolution, 1 for a fully-connected layer.
        in_channels (int): N_{l-1}.
        num_channels (int): N_l.
        bias_mean (float): B_mean, mean of the matrix B of Eq. 18.
        bias_small (float): P_{B<t}, share of B's elements with a magnitude below t.
        num_clusters (int): C_num.
        noise_ratio (float): C_noise.
        silhouette (float): C_score, in [-1, 1].
    """

    index: int
    kind: int
    in_channels: int
    num_channels: int
    bias_mean: float
    bias_small: float
    num_clusters: int
    noise_ratio: float
    silhouette: float


def layer_state(index: int, weight: Tensor, bn: BatchNormStats, clustering: Clustering, threshold: float) -> LayerState:
    """Describe one layer.

    Args:
        index (int): Its position among the prunable layers.
        weight (Tensor): [N, C, kH, kW] or [N, C], dense.
        bn (BatchNormStats): Of its norm, [N] each.
        clustering (Clustering): Of its channels.
        threshold (float): t, which the paper leaves open, in the unit of pre-activations (which are normalised to a
            deviation of gamma).
    """
    clusters = cluster_channels(weight, **asdict(clustering))
    bias = bias_matrix(weight, bn)
    return LayerState(
        index=index,
        kind=int(weight.ndim == 2),
        in_channels=weight.shape[1],
        num_channels=weight.shape[0],
        bias_mean=bias.mean().item(),
        bias_small=(bias.abs() < threshold).double().mean().item(),
        num_clusters=clusters.num_clusters,
        noise_ratio=clusters.noise_ratio,
        silhouette=clusters.silhouette,
    )


def scale_states(states: Sequence[LayerState]) -> Tensor:
    """Bring the states of all layers to about [0, 1], as networks like their inputs.

    Args:
        states (Sequence[LayerState]): Of all L layers.

    Returns:
        Tensor: [L, 9]. Each number is divided by its largest magnitude over the layers, except the shares and the
        silhouette, which are of that size already.
    """
    table = torch.tensor([[float(value) for value in astuple(state)] for state in states], dtype=torch.float64)
    largest = table.abs().amax(0)
    largest[[field.name in WITHIN_ONE for field in fields(LayerState)]] = 1
    return (table / largest.clamp_min(1e-12)).float()
