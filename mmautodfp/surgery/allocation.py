"""How wide each group should be so that the least is lost within a limit: a plan without a search."""

from collections.abc import Iterable, Sequence
from itertools import count

from torch import Tensor

from mmautodfp.costs import Budget, Constraint, allowed_widths

# A group gives up its channels in about so many steps, before what is left of the limit is spent channel by channel.
STEPS = 32


def allocate_widths(curves: Sequence[Tensor], limit: Constraint, widest: Sequence[int]) -> list[int]:
    """Widths with little error in all groups together, as far as greedy steps find them.

    All groups start as wide as they may be. Time and again the one gives up a step that adds the least error for the
    cost it saves, until the limit is met. What the steps saved too much is spent again, on the channels that take away
    most error for what they cost.

    Args:
        curves (Sequence[Tensor]): [N + 1] each, L of them: the group's error where 0 to N channels stay, never rising.
            Errors of different groups are added up.
        limit (Constraint): Bound to the model.
        widest (Sequence[int]): [L], the most that each group keeps.

    Returns:
        list[int]: [L], within the limit and not below its least widths.
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
    """Widths that :func:`allocate_widths` finds at one limit after another, none wider than the ones before.

    Each is found from the last one on, so all of them together take little longer than the narrowest alone.

    Args:
        curves (Sequence[Tensor]): [N + 1] each, L of them.
        limit (Constraint): Bound to the model. Where it lies is not looked at.
        widest (Sequence[int]): [L], the most that each group keeps.
        shares (Iterable[float]): Where the limits lie, falling, as of :meth:`.Constraint.at`.

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
    """The widths with one group narrower, whose loss is the least for what it saves of the budgets."""
    costs = [budget.cost(widths) for budget in over]
    best, least = None, float('inf')
    for group, (curve, ladder) in enumerate(zip(curves, ladders, strict=True)):
        place = ladder.index(widths[group])
        for step in count(1):  # a latency may only fall after several
            lower = _replaced(widths, group, ladder[max(0, place - step * max(1, len(ladder) // STEPS))])
            saved = sum((cost - budget.cost(lower)) / budget.limit for cost, budget in zip(costs, over, strict=True))
            if saved > 0 or lower[group] == ladder[0]:
                break
        if saved > 0 and (price := (curve[lower[group]] - curve[widths[group]]) / saved) < least:
            best, least = lower, price
    # A latency may also fall only if several groups are narrower.
    return best or [ladder[max(0, ladder.index(width) - 1)] for ladder, width in zip(ladders, widths, strict=True)]


def _widened(
    curves: Sequence[list[float]], ladders: Sequence[list[int]], budgets: Sequence[Budget], widths: list[int]
) -> list[int] | None:
    """The widths with one group wider, which gains most for what it costs; None if nothing within the budgets does."""
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
