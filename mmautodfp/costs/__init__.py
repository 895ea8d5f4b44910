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
from .quantities import UNITS, Limit, format_quantity, parse_limit, parse_quantity

__all__ = [
    'UNITS',
    'Budget',
    'Constraint',
    'Constraints',
    'CostModel',
    'FlopBudget',
    'LatencyBudget',
    'LatencyCost',
    'LatencyTable',
    'Limit',
    'ModelCosts',
    'ParamBudget',
    'allowed_widths',
    'divisors_of',
    'format_quantity',
    'measure_latency_costs',
    'measure_positions',
    'model_costs',
    'parse_limit',
    'parse_quantity',
    'round_widths',
]
