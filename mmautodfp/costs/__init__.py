"""Exact costs of a plan, and the limits on them."""

from .budgets import Budget, FlopBudget, LatencyBudget, MemoryBudget, ParamBudget
from .constraints import Constraint, read_constraint
from .counts import Cost, CostModel, ModelCosts, measure_positions, model_costs
from .latency_table import LatencyCost, LatencyTable, measure_latency_costs
from .memory import MemoryCost, measure_memory_costs
from .quantities import Limit, format_quantity, parse_limit
from .widths import allowed_widths, divisors_of, round_widths

__all__ = [
    'Budget',
    'Constraint',
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
