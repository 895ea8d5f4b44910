"""What a plan costs, exactly, and the limits on it."""

from .constraints import (
    Budget,
    Constraint,
    Constraints,
    FlopBudget,
    LatencyBudget,
    ParamBudget,
    allowed_widths,
    divisors_of,
    round_widths,
)
from .counts import CostModel, ModelCosts, measure_positions, model_costs
from .latency_table import LatencyCost, LatencyTable, measure_latency_costs

__all__ = [
    'Budget',
    'Constraint',
    'Constraints',
    'CostModel',
    'FlopBudget',
    'LatencyBudget',
    'LatencyCost',
    'LatencyTable',
    'ModelCosts',
    'ParamBudget',
    'allowed_widths',
    'divisors_of',
    'measure_latency_costs',
    'measure_positions',
    'model_costs',
    'round_widths',
]
