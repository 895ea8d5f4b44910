"""Widths of the groups with little error within a limit, found without a search."""

from collections.abc import Iterable, Sequence
from itertools import count

from torch import Tensor

from mmautodfp.costs import Budget, Constraint, allowed_widths

# Number of steps, roughly, by which a group is narrowed from its full to its least width.
STEPS = 32


def allocate_widths(curves: Sequence[Tensor], limit: Constraint, widest: Sequence[int]) -> list[int]:
    """Find widths with little error in all groups together, by greedy steps.

    All groups start at their largest width. At each step one group gets narrower: the one that adds least error for the
    cost that it saves. When the limit is met, groups get wider again, by one allowed width at a time, as long as they
    stay within the limit: always the group that loses most error for the cost that it adds.

    Args:
        curves (Sequence[Tensor]): [N + 1] each, L of them: the group's error with 0 to N kept channels, never rising.
            Errors of different groups are added up.
        limit (Constraint): Bound to the model.
        widest (Sequence[int]): [L], the largest width of each group.

    Returns:
        list[int]: [L], within the limit and not below its ``min_widths``.
    """
    curves = [curve.tolist() for curve in curves]
    ladders = [
        [width for width in allowed_widths(len(curve) - 1, divisor) if least <= width <= most]
        for curve, divisor, least, most in zip(curves, limit.divisors, limit.min_widths, widest, strict=True)
    ]
    widths = list(widest)
    while over := [budget for budget in limit.budgets if budget.cost(widths) > budget.limit]:
        widths = _narrowed(curves, ladders, over, widths)
    while wider := _widened(curves, ladders, limit.budgets, widths):
        widths = wider
    return widths


def allocation_path(
    curves: Sequence[Tensor], limit: Constraint, widest: Sequence[int], shares: Iterable[float]
) -> list[list[int]]:
    """The widths of :func:`allocate_widths` at falling limits, none wider than the ones before.

    Each allocation starts from the last one, so all of them together take little longer than the narrowest alone.

    Args:
        curves (Sequence[Tensor]): [N + 1] each, L of them.
        limit (Constraint): Bound to the model. Where its limits lie does not matter.
        widest (Sequence[int]): [L], the largest width of each group.
        shares (Iterable[float]): The limits, falling, as of :meth:`.Constraint.at`.

    Returns:
        list[list[int]]: [L] for each of the shares.
    """
    path, widths = [], list(widest)
    for share in shares:
        widths = allocate_widths(curves, limit.at(share), widths)
        path.append(widths)
    return path


def _narrowed(
    curves: Sequence[list[float]], ladders: Sequence[list[int]], over: Sequence[Budget], widths: list[int]
) -> list[int]:
    """The widths with one group narrower: the one that adds least error for the cost that it saves of the budgets."""
    costs = [budget.cost(widths) for budget in over]
    best, least = None, float('inf')
    for group, (curve, ladder) in enumerate(zip(curves, ladders, strict=True)):
        place = ladder.index(widths[group])
        for step in count(1):  # one step may not be enough to lower a latency
            lower = _replaced(widths, group, ladder[max(0, place - step * max(1, len(ladder) // STEPS))])
            saved = sum((cost - budget.cost(lower)) / budget.limit for cost, budget in zip(costs, over, strict=True))
            if saved > 0 or lower[group] == ladder[0]:
                break
        if saved > 0 and (price := (curve[lower[group]] - curve[widths[group]]) / saved) < least:
            best, least = lower, price
    # If no group alone lowers the costs, as a latency may need several, all groups get narrower.
    return best or [ladder[max(0, ladder.index(width) - 1)] for ladder, width in zip(ladders, widths, strict=True)]


def _widened(
    curves: Sequence[list[float]], ladders: Sequence[list[int]], budgets: Sequence[Budget], widths: list[int]
) -> list[int] | None:
    """The widths with one group wider: the one that loses most error for the cost that it adds; None if none fits."""
    costs = [budget.cost(widths) for budget in budgets]
    best, most = None, 0.0
    for group, (curve, ladder) in enumerate(zip(curves, ladders, strict=True)):
        now = widths[group]
        higher = next((rung for rung in ladder if rung > now and curve[rung] < curve[now]), None)
        if higher is None:
            continue
        upper = _replaced(widths, group, higher)
        uppers = [budget.cost(upper) for budget in budgets]
        if any(cost > budget.limit for cost, budget in zip(uppers, budgets, strict=True)):
            continue
        spent = sum((a - b) / budget.limit for a, b, budget in zip(uppers, costs, budgets, strict=True))
        if (gain := (curve[now] - curve[higher]) / max(spent, 1e-12)) > most:
            best, most = upper, gain
    return best


def _replaced(widths: Sequence[int], group: int, width: int) -> list[int]:
    return [*widths[:group], width, *widths[group + 1 :]]
