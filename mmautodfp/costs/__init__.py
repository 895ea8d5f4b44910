"""What a plan costs, exactly, and the limits on it."""

from .constraints import (
    Budget,
    Constraint,
    Constraints,
    FlopBudget,
    LatencyBudget,
    MemoryBudget,
    ParamBudget,
    allowed_widths,
    divisors_of,
    round_widths,
)
from .counts import Cost, CostModel, ModelCosts, measure_positions, model_costs
from .latency_table import LatencyCost, LatencyTable, measure_latency_costs
from .memory import MemoryCost, measure_memory_costs
from .quantities import UNITS, Limit, format_quantity, parse_limit
from .reading import read_constraint

__all__ = [
    'UNITS',
    'Budget',
    'Constraint',
    'Constraints',
    'Cost',
    'CostModel',
    'FlopBudget',
    'LatencyBudget',
    'LatencyCost',
    'LatencyTable',
    'Limit',
    'MemoryBudget',
    'MemoryCost',
    'ModelCosts',
    'ParamBudget',
    'allowed_widths',
    'divisors_of',
    'format_quantity',
    'measure_latency_costs',
    'measure_memory_costs',
    'measure_positions',
    'model_costs',
    'parse_limit',
    'read_constraint',
    'round_widths',
]
