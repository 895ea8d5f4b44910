"""What the pruning of single groups does to all that a model says, so that unlike groups can be compared."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup
from mmautodfp.surgery import PruningPlan, Restore, prune_unit

if TYPE_CHECKING:
    from .base import Reconstructor

# Shares of a group's channels at which it is measured, falling.
MEASURED = (0.75, 0.5, 0.25)
# How steeply an error may rise beyond what was measured, on logarithmic scales; and how far that goes.
STEEPNESS = (0.5, 3.0)
FAR = 100.0


@torch.no_grad()
def output_errors(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    rankings: Sequence[Tensor],
    reconstructor: 'Reconstructor',
    say: Callable[[], list[list[Tensor]]],
) -> list[dict[int, float]]:
    """Prune one group at a time to a few widths, and measure how far what the model says moves.

    Args:
        module (nn.Module): Dense, in eval mode.
        groups (Sequence[ChannelGroup]): Of the module, L of them.
        rankings (Sequence[Tensor]): [N] each, the groups' channels in the order in which they stay.
        reconstructor (Reconstructor): Fitted to the module.
        say (Callable): What the model that the module is a part of says of fixed images, by kind.

    Returns:
        list[dict[int, float]]: [L], by width the share of the outputs' variance that is missed (:func:`mean_share`).
    """
    dense = say()
    found = []
    for group, ranking in zip(groups, rankings, strict=True):
        errors = {}
        for share in MEASURED:
            width = max(1, round(share * group.num_channels))
            if width == group.num_channels or width in errors:
                continue
            plan = PruningPlan.of([group.name], [ranking], [width]).units[group.name]
            with Restore() as restore:
                prune_unit(module, group, plan, reconstructor, restore)
                errors[width] = mean_share(compare_kinds(missed, say(), dense))
        found.append(errors)
    return found


def mean_share(sums: Sequence[Sequence[Tensor]]) -> float:
    """Mean over kinds, and within each over its levels, of what is missed as a share of what there is ([2] each)."""
    shares = [[part / whole.clamp_min(1e-12) for part, whole in levels if whole > 0] for levels in sums]
    means = [float(sum(levels)) / len(levels) for levels in shares if levels]
    return sum(means) / max(1, len(means))


def compare_kinds(
    compare: Callable[[Tensor, Tensor], Tensor], found: Sequence[Sequence[Tensor]], dense: Sequence[Sequence[Tensor]]
) -> list[list[Tensor]]:
    """Compare outputs by kind and level."""
    return [
        [compare(one, known.to(one)) for one, known in zip(*pair, strict=True)]
        for pair in zip(found, dense, strict=True)
    ]


def missed(found: Tensor, dense: Tensor) -> Tensor:
    """[2]: squared error, and what there is to miss, of one output [B, C, ...]; channels vary about their means."""
    error = (found - dense).double().pow(2).sum()
    rest = tuple(axis for axis in range(dense.ndim) if axis != 1)
    return torch.stack([error, (dense - dense.mean(rest, keepdim=True)).double().pow(2).sum()])


def scaled_curve(curve: Tensor, errors: dict[int, float]) -> Tensor:
    """A group's error curve, brought through what was measured at a few widths.

    Between two of them, and beyond, the logarithm of the error is taken to follow that of the curve.

    Args:
        curve (Tensor): [N + 1], error where 0 to N channels stay, in a unit of its own, never rising.
        errors (dict[int, float]): By width, errors in the unit that is wanted.

    Returns:
        Tensor: [N + 1], never rising, 0 where the curve is.
    """
    known = sorted((float(curve[width]), error) for width, error in errors.items())
    knots: list[tuple[float, float]] = []
    for own, error in known:  # both must rise
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
