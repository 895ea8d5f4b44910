"""How wide each unit should be so that the least is lost within a limit: a plan without a search."""

from collections.abc import Sequence

from torch import Tensor

from .budget import Budget, Limit, allowed_widths

# A unit gives up its channels in about so many steps, before what is left of the limit is spent channel by channel.
STEPS = 32


def allocate_widths(curves: Sequence[Tensor], limit: Limit, widest: Sequence[int]) -> list[int]:
    """Widths with little error in all units together, as far as greedy steps find them.

    All units start as wide as they may be. Time and again the one gives up a step that adds the least error for the
    cost it saves, until the limit is met. What the last step saved too much is spent again, on the channels that take
    away most error for what they cost.

    Args:
        curves (Sequence[Tensor]): [N + 1] each, L of them: the unit's error where 0 to N channels stay, never rising.
            Errors of different units are added up.
        limit (Limit): Bound to the model.
        widest (Sequence[int]): [L], the most that each unit keeps.

    Returns:
        list[int]: [L], within the limit and not below its least widths.
    """
    curves = [curve.tolist() for curve in curves]
    ladders = [
        [width for width in allowed_widths(len(curve) - 1, limit.channel_divisor) if least <= width <= most]
        for curve, least, most in zip(curves, limit.min_widths, widest, strict=True)
    ]
    widths = list(widest)
    while over := [budget for budget in limit.budgets if budget.cost(widths) > budget.limit]:
        steps = {unit: _lower(ladder, width) for unit, (ladder, width) in enumerate(zip(ladders, widths, strict=True))}
        prices = {
            unit: _price(curves[unit], over, _replaced(widths, unit, lower), widths, unit)
            for unit, lower in steps.items()
            if lower < widths[unit]
        }
        unit = min(prices, key=prices.get)
        widths = _replaced(widths, unit, steps[unit])
    while gains := _gains(curves, ladders, limit.budgets, widths):
        unit = max(gains, key=gains.get)
        widths = _replaced(widths, unit, _higher(ladders[unit], widths[unit]))
    return widths


def _gains(
    curves: Sequence[list[float]], ladders: Sequence[list[int]], budgets: Sequence[Budget], widths: list[int]
) -> dict[int, float]:
    """For each unit that could be a rung wider within all budgets and lose error by it: how much for the cost."""
    gains = {}
    for unit, (curve, ladder) in enumerate(zip(curves, ladders, strict=True)):
        upper = _replaced(widths, unit, _higher(ladder, widths[unit]))
        if curve[upper[unit]] < curve[widths[unit]] and all(budget.cost(upper) <= budget.limit for budget in budgets):
            gains[unit] = _price(curve, budgets, widths, upper, unit)
    return gains


def _price(curve: list[float], budgets: Sequence[Budget], lower: list[int], upper: list[int], unit: int) -> float:
    """Error per cost between two plans that differ in one unit, costs as shares of the limits."""
    cost = sum((budget.cost(upper) - budget.cost(lower)) / budget.limit for budget in budgets)
    return (curve[lower[unit]] - curve[upper[unit]]) / max(cost, 1e-12)


def _lower(ladder: list[int], width: int) -> int:
    """The rung about a 32nd of the ladder further down, at most the last; the width itself where there is none."""
    place = ladder.index(width)
    return ladder[max(0, place - max(1, len(ladder) // STEPS))]


def _higher(ladder: list[int], width: int) -> int:
    return next((rung for rung in ladder if rung > width), width)


def _replaced(widths: Sequence[int], unit: int, width: int) -> list[int]:
    return [*widths[:unit], width, *widths[unit + 1 :]]
