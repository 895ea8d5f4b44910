"""Moving the work of pruned channels to kept ones, inside the weights of the next layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .selection import assign_partners, flat_channels, widen
from .similarity import BatchNormStats, alive_channels, cosine_distance


@torch.no_grad()
def neuron_merging_delivery(
    weight: Tensor,
    bn: BatchNormStats,
    keep: Tensor | Sequence[int],
    lam: float = 0.85,
    min_cosine: float | None = 0.1,
) -> Tensor:
    """The delivery matrix of Neuron Merging, in the form that its authors released.

    It differs from :meth:`.ChannelSimilarity.delivery` in three ways. The scale is
    ``s_pr = |W_p| / |W_r| * (gamma_r / gamma_p) * (v_p / v_r)`` with v the running variance. The left-over constant is
    ``|gamma_r / v_r * (n (mu_p - v_p beta_p / gamma_p) - mu_r) + beta_r| / s_pr`` with ``n = |W_p| / |W_r|``, min-max
    normalised; it is negative, in favour of the merge, where s_pr is. No channel is merged if its partner's cosine
    similarity is below ``min_cosine``.

    For layers without BatchNorm the authors compare rows of the weight with the bias appended, by direction alone:
    ``neuron_merging_delivery(torch.cat([weight, bias[:, None]], 1), BatchNormStats.identity(0 * bias), keep, lam=1)``.

    Where the released code divides by zero (a dead channel, a variance of zero, candidates that do not differ), this
    function does as :meth:`.ChannelSimilarity.delivery`: no partner, a zero row, a constant of zero.

    Args:
        weight (Tensor): [N, C, kH, kW] or [N, C], the producer's.
        bn (BatchNormStats): [N] each, of the producer's norm.
        keep (Tensor | Sequence[int]): [K], distinct kept channels; column k belongs to ``keep[k]``.
        lam (float): Weight of the direction against the left-over constant, 0 to 1. Defaults to 0.85.
        min_cosine (float | None): Least cosine similarity of a merge; None for any. Defaults to 0.1.

    Returns:
        Tensor: [N, K].

    Raises:
        ValueError: As of :meth:`.ChannelSimilarity.delivery`, or ``bn`` belongs to another number of channels.
    """
    alive = alive_channels(weight, bn) & (bn.var > 1e-12)
    norm = torch.where(alive, flat_channels(weight).norm(dim=1), 1)
    slope = torch.where(alive, widen(bn.weight) / widen(bn.var), 1)
    mean, bias = widen(bn.mean), widen(bn.bias)
    # Rows are pruned channels, columns kept ones.
    ratio = norm[:, None] / norm
    scale = ratio * slope / slope[:, None]
    constant = (slope * (ratio * (mean - bias / slope)[:, None] - mean) + bias).abs() / scale
    return assign_partners(cosine_distance(weight), scale, constant, alive, keep, lam, 'minmax', min_cosine)


@torch.no_grad()
def merge_input_channels(next_weight: Tensor, delivery: Tensor) -> Tensor:
    """Rewrite a consumer's weight so that it reads the kept channels only.

    Args:
        next_weight (Tensor): [M, N, ...] of a convolution, or [M, N * cols] of a linear layer behind a flattened map,
            where each channel owns ``cols`` consecutive columns.
        delivery (Tensor): [N, K], how every channel is expressed by the kept ones.

    Returns:
        Tensor: [M, K, ...] or [M, K * cols], in the dtype and on the device of ``next_weight``.

    Raises:
        ValueError: The number of inputs of ``next_weight`` does not fit N channels.
    """
    num_channels, num_kept = delivery.shape
    found = next_weight.shape[1] if next_weight.ndim > 1 else 0
    fits = found % num_channels == 0 if next_weight.ndim == 2 else found == num_channels
    if not fits or not found:
        shape = tuple(next_weight.shape)
        raise ValueError(f'the next layer should read {num_channels} channels, but its weight has shape {shape}')
    wide = widen(next_weight)
    columns = wide.reshape(len(wide), num_channels, -1)
    merged = torch.einsum('mnx,nk->mkx', columns, delivery.to(columns))
    return merged.reshape(len(wide), found // num_channels * num_kept, *wide.shape[2:]).to(next_weight.dtype)
