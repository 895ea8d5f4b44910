"""What can be pruned: channel groups of a live model, found by those who know its blocks."""

from .finders import ChainFinder, ChannelPath, InvertedResidualFinder, ResidualBlockFinder, chain_units
from .units import (
    UNIT_FINDERS,
    Consumer,
    PrunableUnit,
    UnitFinder,
    UnitSurvey,
    find_units,
    is_batch_norm,
    path_statistics,
    survey_units,
    unit_statistics,
    walk_units,
)

__all__ = [
    'UNIT_FINDERS',
    'ChainFinder',
    'ChannelPath',
    'Consumer',
    'InvertedResidualFinder',
    'PrunableUnit',
    'ResidualBlockFinder',
    'UnitFinder',
    'UnitSurvey',
    'chain_units',
    'find_units',
    'is_batch_norm',
    'path_statistics',
    'survey_units',
    'unit_statistics',
    'walk_units',
]
