"""What can be pruned in a live model, what it costs, and doing it."""

from .allocation import allocate_widths, allocation_of
from .budget import (
    Budget,
    Budgets,
    FlopBudget,
    LatencyBudget,
    Limit,
    ParamBudget,
    allowed_widths,
    round_widths,
)
from .costs import CostModel, ModelCosts, measure_positions, model_costs
from .finders import ChainFinder, ChannelPath, InvertedResidualFinder, ResidualBlockFinder, chain_units
from .latency_table import LatencyCost, LatencyTable, measure_latency_costs
from .least_squares import SyntheticLeastSquares
from .plan import PruningPlan, UnitPlan
from .reconstructors import (
    NeuronMerging,
    OutputChange,
    PruneOnly,
    Reconstruction,
    Reconstructor,
    SimilarityReconstructor,
)
from .refine import Refinement
from .slim import Restore, Slim, apply_plan
from .synthetic import SyntheticImages, batch_statistics, features_of
from .units import (
    UNIT_FINDERS,
    Consumer,
    PrunableUnit,
    UnitFinder,
    UnitSurvey,
    find_units,
    path_statistics,
    survey_units,
    unit_statistics,
    walk_units,
)

__all__ = [
    'UNIT_FINDERS',
    'Budget',
    'Budgets',
    'ChainFinder',
    'ChannelPath',
    'Consumer',
    'CostModel',
    'FlopBudget',
    'InvertedResidualFinder',
    'LatencyBudget',
    'LatencyCost',
    'LatencyTable',
    'Limit',
    'ModelCosts',
    'NeuronMerging',
    'OutputChange',
    'ParamBudget',
    'PrunableUnit',
    'PruneOnly',
    'PruningPlan',
    'Reconstruction',
    'Reconstructor',
    'Refinement',
    'ResidualBlockFinder',
    'Restore',
    'SimilarityReconstructor',
    'Slim',
    'SyntheticImages',
    'SyntheticLeastSquares',
    'UnitFinder',
    'UnitPlan',
    'UnitSurvey',
    'allocate_widths',
    'allocation_of',
    'allowed_widths',
    'apply_plan',
    'batch_statistics',
    'chain_units',
    'features_of',
    'find_units',
    'measure_latency_costs',
    'measure_positions',
    'model_costs',
    'path_statistics',
    'round_widths',
    'survey_units',
    'unit_statistics',
    'walk_units',
]
