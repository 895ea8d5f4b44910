"""What can be pruned in a live model, what it costs, and doing it."""

from .budget import Budget, CostModel, FlopBudget, ModelCosts, ParamBudget, measure_positions, model_costs, round_widths
from .finders import ChainFinder, ChannelPath, InvertedResidualFinder, ResidualBlockFinder, chain_units
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
    'ChainFinder',
    'ChannelPath',
    'Consumer',
    'CostModel',
    'FlopBudget',
    'InvertedResidualFinder',
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
    'apply_plan',
    'batch_statistics',
    'chain_units',
    'features_of',
    'find_units',
    'measure_positions',
    'model_costs',
    'path_statistics',
    'round_widths',
    'survey_units',
    'unit_statistics',
    'walk_units',
]
