"""Regression of pruned channels on kept ones, from their moments alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .selection import checked_keep

# Channels whose gains differ by less than this share explain equally much: rounding must not decide between them.
TIE = 1e-6
# Number of channels that are ranked before a covariance is updated by what they explain.
LAZY = 64
# Shares of the mean variance to add to the diagonal, tried in turn until a covariance is positive definite.
JITTERS = (0.0, *(10.0**power for power in range(-12, 1)))


@torch.no_grad()
def solve_ridge(covariance: Tensor, cross: Tensor, ridge: float = 0.0, prior: Tensor | None = None) -> Tensor:
    """Coefficients A [T, D] of the regression of y on x.

    They minimise the variance of ``y - A x`` plus ``ridge * v * |A - prior|^2``, v being the mean variance of x.

    Args:
        covariance (Tensor): [D, D], of x. May be singular.
        cross (Tensor): [T, D], of y with x.
        ridge (float): Strength. Defaults to 0.
        prior (Tensor | None): [T, D], towards which the ridge draws A. Defaults to None: zero.

    Returns:
        Tensor: [T, D], float64; the prior if x does not vary.

    Raises:
        ValueError: ``covariance`` or ``cross`` holds nan or inf, ``ridge`` is negative or not finite, or ``covariance``
            has negative eigenvalues beyond rounding.
    """
    covariance, cross = covariance.double(), cross.double()
    for name, moments in (('covariance', covariance), ('cross covariance', cross)):
        if not moments.isfinite().all():
            wrong = int((~moments.isfinite()).sum())
            raise ValueError(f'a {name} of finite numbers was expected, but {wrong} of its {moments.numel()} are not')
    if not 0 <= ridge < torch.inf:
        raise ValueError(f'ridge is a number of 0 or more, but {ridge} was given')
    start = torch.zeros_like(cross) if prior is None else prior.double()
    if covariance.diagonal().mean() <= 0:  # x does not vary
        return start
    factor = positive_factor(covariance, ridge)
    return start + torch.cholesky_solve((cross - start @ covariance).T, factor).T


def positive_factor(covariance: Tensor, ridge: float) -> Tensor:
    """Cholesky factor [D, D] of a covariance plus ``ridge`` times its mean variance, which must be above 0.

    If rounding has made a singular covariance indefinite, the least of ``JITTERS`` that repairs it is added.

    Raises:
        ValueError: The covariance has negative eigenvalues beyond rounding.
    """
    scale = covariance.diagonal().mean()
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    for jitter in JITTERS:
        factor, failed = torch.linalg.cholesky_ex(covariance + (ridge + jitter) * scale * eye)
        if not failed and factor.diagonal().amin() > 1e-8 * scale.sqrt():
            return factor
    least = torch.linalg.eigvalsh(covariance).amin().item()
    raise ValueError(f'a covariance has no negative eigenvalue, but the least of the one given is {least:.3g}')


@torch.no_grad()
def least_squares_delivery(
    mean: Tensor, covariance: Tensor, keep: Tensor | Sequence[int], ridge: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Express every channel by the kept ones and a constant, by regression.

    Args:
        mean (Tensor): [N], of the channels as the consumers read them.
        covariance (Tensor): [N, N].
        keep (Tensor | Sequence[int]): [K], distinct kept channels; column k belongs to ``keep[k]``.
        ridge (float): Share of the kept channels' mean variance that is added to each variance. Defaults to 0.

    Returns:
        tuple[Tensor, Tensor]: The delivery matrix [N, K], rows of kept channels one-hot; and the constants [N], 0 for
        kept channels: channel p is predicted as ``delivery[p] @ x[keep] + constant[p]``. Both are float64.

    Raises:
        ValueError: ``keep`` is empty, names a channel twice or one that does not exist; or as of :func:`solve_ridge`.
    """
    mean, covariance = mean.double(), covariance.double()
    keep = checked_keep(keep, len(mean), mean.device)
    pruned = torch.ones(len(mean), dtype=torch.bool, device=mean.device).index_fill(0, keep, False)
    delivery = mean.new_zeros(len(mean), len(keep))
    delivery[pruned] = solve_ridge(covariance[keep][:, keep], covariance[pruned][:, keep], ridge)
    delivery[keep] = torch.eye(len(keep), dtype=torch.float64, device=mean.device)
    constant = mean - delivery @ mean[keep]
    constant[keep] = 0
    return delivery, constant


@torch.no_grad()
def rank_by_explanation(covariance: Tensor, gram: Tensor, block: int = 1) -> Tensor:
    """Order the channels so that each explains as much as possible of what the ones before it do not.

    This is a pivoted Cholesky factorisation: the next channel is the one with which ``tr(gram @ R)`` becomes least, R
    being the covariance that the channels so far do not explain. Channels that add nothing come last, by their index.
    Of channels that explain equally much, such as twins, the one with the lower index comes first. Takes O(N^3).

    Args:
        covariance (Tensor): [N, N], of the channels as the consumers read them.
        gram (Tensor): [N, N], how much errors in two channels matter together: ``sum_os W[o, n, s] W[o, m, s]``
            of the consumer's weight.
        block (int): Number of neighbouring channels that are ranked together, a divisor of N. Defaults to 1.

    Returns:
        Tensor: [N], channel indices; with blocks [N / block], indices of blocks.
    """
    if block > 1:
        return _rank_blocks(covariance.double().clone(), gram.double(), block)
    rest, gram = covariance.double().clone(), gram.double()
    floor = rest.diagonal().amax().clamp_min(0) * 1e-10
    taken: list[int] = []
    left = torch.ones(len(rest), dtype=torch.bool, device=rest.device)
    while more := _most_explaining(rest, gram, left, floor):
        taken += more
    return torch.tensor(taken + left.nonzero().squeeze(1).tolist(), device=covariance.device)


def _most_explaining(rest: Tensor, gram: Tensor, left: Tensor, floor: Tensor) -> list[int]:
    """Choose up to ``LAZY`` next channels, clear them in ``left``, and take what they explain out of ``rest``.

    With R [N, N] the covariance that is not explained so far, each chosen channel turns R into R - c c^T. R itself is
    updated at the end only, which saves reading and writing N^2 entries for each channel. The choice needs no more than
    its diagonal and that of R M R, M being ``gram``, which are updated every time.
    """
    read = rest @ gram
    explained, variance = (read * rest).sum(1), rest.diagonal().clone()
    columns, reads = rest.new_zeros(2, LAZY, len(rest))  # c, and R M c with R as it was at the start
    products = rest.new_zeros(LAZY, LAZY)  # c^T M c
    taken: list[int] = []
    for now in range(LAZY):
        useful = left & (variance > floor)
        if not useful.any():
            break
        # Channel j reduces tr(M R) by r_j^T M r_j / R_jj. For channels that no consumer reads, that is a rounding error
        # of either sign.
        gain = (explained / variance.clamp_min(1e-300)).clamp_min(0).masked_fill(~useful, -torch.inf)
        pivot = int((gain >= gain.max() * (1 - TIE)).nonzero()[0])
        taken.append(pivot)
        left[pivot] = False
        before, at_pivot, scale = columns[:now], columns[:now, pivot], variance[pivot].sqrt()
        column = columns[now] = (rest[pivot] - at_pivot @ before) / scale
        reads[now] = read @ column
        products[now, :now] = products[:now, now] = (reads[:now, pivot] - products[:now, :now] @ at_pivot) / scale
        products[now, now] = explained[pivot] / scale**2
        moved = reads[now] - products[now, :now] @ before
        explained = explained - 2 * column * moved + column**2 * products[now, now]
        variance = variance - column**2
    rest -= columns.T @ columns
    return taken


def _rank_blocks(rest: Tensor, gram: Tensor, block: int) -> Tensor:
    """As :func:`rank_by_explanation`, with the inverse of a block's covariance in place of 1 / R_jj."""
    count = len(rest) // block
    floor = rest.diagonal().amax().clamp_min(0) * 1e-10
    taken: list[int] = []
    left = torch.ones(count, dtype=torch.bool, device=rest.device)
    for _ in range(count):
        columns = rest.unflatten(1, (count, block)).movedim(1, 0)  # [count, N, block]
        own = torch.stack([rest[i * block : (i + 1) * block, i * block : (i + 1) * block] for i in range(count)])
        inverse = torch.linalg.pinv(own, rtol=1e-9, hermitian=True)
        gain = ((gram @ columns).transpose(1, 2) @ columns @ inverse).diagonal(dim1=1, dim2=2).sum(1)
        useful = left & (own.diagonal(dim1=1, dim2=2).amax(1) > floor)
        if not useful.any():
            break
        gain = gain.clamp_min(0).masked_fill(~useful, -torch.inf)
        pivot = int((gain >= gain.max() * (1 - TIE)).nonzero()[0])
        taken.append(pivot)
        left[pivot] = False
        rest = rest - columns[pivot] @ inverse[pivot] @ columns[pivot].T
    return torch.tensor(taken + left.nonzero().squeeze(1).tolist(), device=rest.device)


@torch.no_grad()
def unexplained_shares(covariance: Tensor, gram: Tensor, ranking: Tensor) -> Tensor:
    """The share of what the consumers read that is lost, for each number of kept channels.

    Args:
        covariance (Tensor): [N, N], of the channels as the consumers read them.
        gram (Tensor): [N, N], as of :func:`rank_by_explanation`.
        ranking (Tensor): [N], the order in which channels stay.

    Returns:
        Tensor: [N + 1], float64; entry K is ``tr(gram @ R)`` as a share of ``tr(gram @ covariance)``, R being
        the covariance that the first K channels do not explain. It falls from 1 to 0; all zeros if nothing is read.
    """
    covariance, gram = (matrix.double()[ranking][:, ranking] for matrix in (covariance, gram))
    scale = covariance.diagonal().mean()
    if scale <= 0:
        return covariance.new_zeros(len(ranking) + 1)
    # Column k of the factor is what channel k adds to those before it.
    factor = positive_factor(covariance, 0.0)
    explained = torch.cat([scale.new_zeros(1), ((gram @ factor) * factor).sum(0).cumsum(0)])
    total = explained[-1]
    return (1 - explained / total).clamp(0, 1) if total > 0 else torch.zeros_like(explained)


@torch.no_grad()
def bounded_gain(wanted: Tensor, found: Tensor) -> Tensor:
    """Factors [M] in [0.5, 2] that bring outputs of variance ``found`` [M] to ``wanted`` [M]; 1 where either is 0."""
    alive = (wanted > 0) & (found > 0)
    ratio = torch.where(alive, wanted, 1) / torch.where(alive, found, 1)
    return ratio.sqrt().clamp(0.5, 2)
