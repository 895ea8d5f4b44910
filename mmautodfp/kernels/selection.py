"""Which channels are kept, and which kept channel stands in for each pruned one."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

NORMALIZATIONS = ('max', 'minmax')


@torch.no_grad()
def rank_channels(weight: Tensor) -> Tensor:
    """Order the channels by falling l2 norm; equal norms stay in order of their index.

    Args:
        weight (Tensor): [N, C, kH, kW] or [N, C].

    Returns:
        Tensor: [N], channel indices, the largest norm first.
    """
    return flat_channels(weight).norm(dim=1).argsort(descending=True, stable=True)


def flat_channels(weight: Tensor) -> Tensor:
    """A weight [N, C, ...] as one row per channel, [N, D], in single precision or better."""
    if weight.ndim < 2 or weight.numel() == 0:
        raise ValueError(
            f'a weight is [N, C, kH, kW] or [N, C] and not empty, but this has shape {tuple(weight.shape)}'
        )
    return widen(weight).flatten(1)


def widen(tensor: Tensor) -> Tensor:
    """Convert half precision to float32, as neither sums of squares nor matrix products on the CPU work in it."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def assign_partners(
    distance: Tensor,
    scale: Tensor,
    penalty: Tensor,
    alive: Tensor,
    keep: Tensor | Sequence[int],
    lam: float,
    normalization: str,
    min_cosine: float | None,
) -> Tensor:
    """Give each pruned channel the kept partner with the least ``lam * distance + (1 - lam) * penalty`` (Eq. 16).

    Args:
        distance (Tensor): [N, N], cosine distances.
        scale (Tensor): [N, N]; [p, r] is the entry of the delivery matrix if r stands in for p.
        penalty (Tensor): [N, N]; [p, r] is normalised over all candidates r of the pruned channel p.
        alive (Tensor): [N] of bool; a dead channel is no candidate and gets no partner.
        keep (Tensor | Sequence[int]): [K], kept channels.
        lam (float): Weight of the distance, 0 to 1.
        normalization (str): 'max' or 'minmax'.
        min_cosine (float | None): There is no partner if the chosen one's cosine similarity is below it; None for any.

    Returns:
        Tensor: [N, K], the delivery matrix; column k belongs to ``keep[k]``.

    Raises:
        ValueError: ``keep``, ``lam`` or ``normalization`` is out of its range.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f'lambda weighs two terms and lies in 0 to 1, but {lam} was given')
    if normalization not in NORMALIZATIONS:
        raise ValueError(f'normalization is one of {", ".join(NORMALIZATIONS)}, but {normalization!r} was given')
    keep = checked_keep(keep, len(distance), distance.device)
    pruned = torch.ones_like(alive).index_fill(0, keep, False).nonzero().squeeze(1)
    delivery = distance.new_zeros(len(distance), len(keep))
    delivery[keep, torch.arange(len(keep), device=keep.device)] = 1
    pairs = (pruned[:, None], keep)
    distance, candidates = distance[pairs], alive[keep].expand(len(pruned), -1)
    score = lam * distance + (1 - lam) * _normalized(penalty[pairs], candidates, normalization)
    # Of equal scores argmin takes the first, which is the lower index if keep is ascending.
    partner = score.masked_fill(~candidates, torch.inf).argmin(1, keepdim=True)
    merged = candidates.gather(1, partner).squeeze(1) & alive[pruned]
    if min_cosine is not None:
        merged &= 1 - distance.gather(1, partner).squeeze(1) >= min_cosine
    pruned, partner = pruned[merged], partner.squeeze(1)[merged]
    delivery[pruned, partner] = scale[pruned, keep[partner]]
    return delivery


def checked_keep(keep: Tensor | Sequence[int], num_channels: int, device: torch.device) -> Tensor:
    """``keep`` as indices [K] on ``device``; raises a ValueError that says what is wrong with it."""
    keep = torch.as_tensor(keep, device=device)
    if keep.ndim != 1 or len(keep) == 0:
        raise ValueError(f'keep lists at least one channel of {num_channels}, but has shape {tuple(keep.shape)}')
    if keep.dtype == torch.bool or keep.is_floating_point():
        raise ValueError(f'keep lists channel indices, but holds {keep.dtype}')
    keep, ordered = keep.long(), keep.sort().values.tolist()
    if ordered[0] < 0 or ordered[-1] >= num_channels:
        wrong = ordered[0] if ordered[0] < 0 else ordered[-1]
        raise ValueError(f'keep names channel {wrong}, but the layer has channels 0 to {num_channels - 1}')
    twice = [index for index, following in pairwise(ordered) if index == following]
    if twice:
        raise ValueError(f'keep names channel {twice[0]} more than once')
    return keep


def _normalized(penalty: Tensor, candidates: Tensor, normalization: str) -> Tensor:
    """The penalty [P, K], scaled row by row over the candidates to at most 1; a row without spread becomes 0."""
    low = penalty.masked_fill(~candidates, torch.inf).amin(1, keepdim=True) if normalization == 'minmax' else 0
    span = penalty.masked_fill(~candidates, -torch.inf).amax(1, keepdim=True) - low
    spread = (span > 0) & candidates  # a row without candidates has a span of -inf
    return torch.where(spread, (penalty - low) / torch.where(span > 0, span, 1), 0)
