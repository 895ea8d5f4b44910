"""What the tests of costs and limits share: a model's costs, and Algorithm 1 within limits on them."""

from collections.abc import Callable

import torch

from mmautodfp.costs import Constraint, ModelCosts, measure_positions, model_costs, round_widths
from mmautodfp.graph import find_groups


def costs_of(model, module=None, size=64) -> ModelCosts:
    module = module or model
    positions = measure_positions(model, lambda: model(torch.zeros(1, 3, size, size)))
    return model_costs(model, module, find_groups(module), positions)


def bound(*budgets, costs, divisor=1) -> Constraint:
    limits = Constraint(budgets)
    limits.bind(costs, round_widths(0.2, costs.params['module'].dense, divisor), divisor)
    return limits


def play(limits: Constraint, ask: Callable[[int], float]) -> list[int]:
    """Algorithm 1 as the environment runs it: ask(N) channels of each group, rounded and bounded."""
    chosen, dense = [], limits.budgets[0].cost.dense
    for least, channels, divisor in zip(limits.min_widths, dense, limits.divisors, strict=True):
        most = limits.max_width(chosen)
        assert least <= most <= channels
        (asked,) = round_widths(ask(channels) / channels, [channels], divisor)
        chosen.append(min(max(least, asked), most))
    return chosen
