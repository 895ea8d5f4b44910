"""What can be pruned in a live model, what it costs, and doing it."""

from .budget import Budget, CostModel, FlopBudget, ModelCosts, ParamBudget, measure_positions, model_costs, round_widths
from .finders import ChainFinder, ChannelPath, InvertedResidualFinder, ResidualBlockFinder, chain_units
from .plan import PruningPlan, UnitPlan
from .reconstructors import NeuronMerging, PruneOnly, Reconstruction, Reconstructor, SimilarityReconstructor
from .slim import Restore, Slim, apply_plan
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
    'ChainFinder',
    'ChannelPath',
    'Consumer',
    'CostModel',
    'FlopBudget',
    'InvertedResidualFinder',
    'ModelCosts',
    'NeuronMerging',
    'ParamBudget',
    'PrunableUnit',
    'PruneOnly',
    'PruningPlan',
    'Reconstruction',
    'Reconstructor',
    'ResidualBlockFinder',
    'Restore',
    'SimilarityReconstructor',
    'Slim',
    'UnitFinder',
    'UnitPlan',
    'UnitSurvey',
    'apply_plan',
    'chain_units',
    'find_units',
    'measure_positions',
    'model_costs',
    'path_statistics',
    'round_widths',
    'survey_units',
    'unit_statistics',
    'walk_units',
]
