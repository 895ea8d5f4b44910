"""The error that pruning single groups causes in a model's outputs, by which error curves of groups are scaled."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, Rerun
from mmautodfp.surgery import PruningPlan, Restore, prune_group

from .foreground import Foreground, foreground_of

if TYPE_CHECKING:
    from .base import Reconstructor

Outputs = list[list[Tensor]]  # for one batch, as of `outputs_by_kind`
# Shares of a group's channels that are kept when its error is measured, falling.
MEASURED = (0.75, 0.5, 0.25)
# Range of the slope, on logarithmic scales, outside of the measured widths; and how far it is extrapolated.
STEEPNESS = (0.5, 3.0)
FAR = 100.0


@torch.no_grad()
def output_errors(
    model: nn.Module,
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    rankings: Sequence[Tensor],
    reconstructor: 'Reconstructor',
    runs: Sequence[Callable[[], Outputs]],
) -> list[dict[int, float]]:
    """Prune one group at a time to a few widths, and measure the error in the model's outputs.

    Args:
        model (nn.Module): Dense, in eval mode.
        module (nn.Module): The part that is pruned, or the model itself.
        groups (Sequence[ChannelGroup]): Groups of the module, L of them.
        rankings (Sequence[Tensor]): [N] each, the groups' channels, those to keep first.
        reconstructor (Reconstructor): Fitted to the module.
        runs (Sequence[Callable]): Each runs the model on one batch and returns its outputs.

    Returns:
        list[dict[int, float]]: [L], each measured width to the share of the outputs' variance that is missed
        (:func:`shares_missed`). Of several kinds of outputs the largest share is taken: a detection is wrong if either
        its class or its box is.
    """
    plans = [
        (group, PruningPlan.of([group.name], [ranking], [width]).groups[group.name])
        for group, ranking in zip(groups, rankings, strict=True)
        for width in _measured_widths(group)
    ]
    found: dict[tuple[str, int], list[list[Tensor]]] = defaultdict(list)
    for run in runs:  # outermost, as a rerun holds all feature maps
        rerun = Rerun(model, run)
        foreground = foreground_of(model, rerun.outputs)
        for group, plan in plans:
            with Restore() as restore:
                prune_group(module, group, plan, reconstructor, restore)
                sums = _sums_of_kinds(rerun.again(restore.layers), rerun.outputs, foreground, missed)
            found[group.name, plan.width].append(sums)
        del rerun  # before the next one takes as much memory
    return [{width: max(_shares(found[group.name, width])) for width in _measured_widths(group)} for group in groups]


def _measured_widths(group: ChannelGroup) -> list[int]:
    widths = {max(1, round(share * group.num_channels)) for share in MEASURED}
    return sorted(widths - {group.num_channels}, reverse=True)


def shares_missed(
    found: Iterable[Outputs],
    dense: Iterable[Outputs],
    foregrounds: Iterable[Foreground | None] = repeat(None),
    compare: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
) -> list[float]:
    """The error of a model's outputs, as a share of the variance of the dense outputs.

    Args:
        found (Iterable[Outputs]): Outputs of the model, batch by batch.
        dense (Iterable[Outputs]): Outputs of the dense model for the same batches.
        foregrounds (Iterable[Foreground | None]): The foreground of each batch; positions in it count more. Defaults to
            no foreground.
        compare (Callable | None): From an output, the dense output and the weights of their positions (or None), to a
            tensor [2]: the error, and what it is a share of. Defaults to None: :func:`missed`.

    Returns:
        list[float]: A share for each kind of outputs, such as classes or boxes, without those that have no variance; a
        single 0 if none has.
    """
    batches = zip(found, dense, foregrounds, strict=False)
    return _shares(_sums_of_kinds(*batch, compare or missed) for batch in batches)


def mean_missed(found: Outputs, dense: Outputs, foreground: Foreground | None) -> Tensor:
    """The mean of :func:`shares_missed` over the kinds of outputs, for a single batch and with a gradient."""
    sums = _sums_of_kinds(found, dense, foreground, missed)
    return torch.stack([part / whole for part, whole in sums if whole > 0] or [torch.zeros(())]).mean()


def _sums_of_kinds(found: Outputs, dense: Outputs, foreground: Foreground | None, compare: Callable) -> list[Tensor]:
    """For each kind of outputs, the tensor [2] of ``compare``, summed over the levels."""
    return [
        sum(compare(a, b.to(a), foreground and foreground.weights(b)) for a, b in zip(*pair, strict=True))
        for pair in zip(found, dense, strict=True)
    ]


def _shares(batches: Iterable[list[Tensor]]) -> list[float]:
    """The shares of all batches together, from what :func:`_sums_of_kinds` gave for each."""
    sums = (sum(kind) for kind in zip(*batches, strict=True))
    return [float(part / whole) for part, whole in sums if whole > 0] or [0.0]


def missed(found: Tensor, dense: Tensor, weights: Tensor | None = None) -> Tensor:
    """[2]: squared error of one output, and squared deviation of its dense channels from their means, both summed."""
    found, dense = (with_channels(x).movedim(1, -1).flatten(0, -2).double() for x in (found, dense))
    weights = dense.new_ones(len(dense)) if weights is None else weights.to(dense)
    mean = weights @ dense / weights.sum()
    return torch.stack([weights @ (x * x).sum(1) for x in (found - dense, dense - mean)])


def with_channels(x: Tensor) -> Tensor:
    """An output as [B, C, ...]; one number for each image, or one for all, is taken as one channel."""
    return x if x.ndim > 1 else x.reshape(-1, 1)


def scaled_curve(curve: Tensor, errors: dict[int, float]) -> Tensor:
    """A group's error curve, rescaled to agree with errors that were measured at a few widths.

    Between measured widths, the logarithm of the error is interpolated linearly in the logarithm of the curve; outside
    of them it is extrapolated.

    Args:
        curve (Tensor): [N + 1], error with 0 to N kept channels, never rising, on the group's own scale.
        errors (dict[int, float]): Each measured width to the error on the wanted scale.

    Returns:
        Tensor: [N + 1], never rising; 0 where the curve is 0, and everywhere if no measured error is above 0.
    """
    known = sorted((float(curve[width]), error) for width, error in errors.items())
    knots: list[tuple[float, float]] = []
    for own, error in known:  # points where not both rise are left out
        if own > 0 and error > 0 and (not knots or (own > knots[-1][0] * 1.01 and error > knots[-1][1])):
            knots.append((own, error))
    if not knots:
        return curve * 0
    x, y = (np.log(values) for values in zip(*knots, strict=True))
    slopes = [float(slope) for slope in np.diff(y) / np.diff(x)] or [1.0]
    first, last = (min(max(slope, STEEPNESS[0]), STEEPNESS[1]) for slope in (slopes[0], slopes[-1]))
    x = np.concatenate([[x[0] - FAR], x, [x[-1] + FAR]])
    y = np.concatenate([[y[0] - FAR * first], y, [y[-1] + FAR * last]])
    scaled = np.exp(np.interp(np.log(curve.clamp_min(1e-300).numpy()), x, y))
    return torch.where(curve > 0, torch.from_numpy(scaled), 0.0)
