"""What can be pruned: channel groups of a live model, found by those who know its blocks, or by tracing it."""

from .discovery import groups_of
from .finders import ChainFinder, ChannelPath, InvertedResidualFinder, ResidualBlockFinder, chain_units
from .forward import (
    flat_tensors,
    has_plain_second_stage,
    hook_handles,
    is_detector,
    is_torchvision_detector,
    opaque_parts,
    outputs_by_kind,
    outputs_of,
    regions_of,
    run_model,
    samples_of,
    second_stage_of,
)
from .rerun import Rerun
from .statistics import norm_statistics, outputs_first, path_statistics, unit_statistics
from .tracing import trace_channels
from .units import (
    UNIT_FINDERS,
    ChannelGroup,
    Consumer,
    Producer,
    UnitFinder,
    UnitSurvey,
    find_units,
    is_batch_norm,
    join_path,
    layers_with_tied_weights,
    survey_units,
    walk_units,
)

__all__ = [
    'UNIT_FINDERS',
    'ChainFinder',
    'ChannelGroup',
    'ChannelPath',
    'Consumer',
    'InvertedResidualFinder',
    'Producer',
    'Rerun',
    'ResidualBlockFinder',
    'UnitFinder',
    'UnitSurvey',
    'chain_units',
    'find_units',
    'flat_tensors',
    'groups_of',
    'has_plain_second_stage',
    'hook_handles',
    'is_batch_norm',
    'is_detector',
    'is_torchvision_detector',
    'join_path',
    'layers_with_tied_weights',
    'norm_statistics',
    'opaque_parts',
    'outputs_by_kind',
    'outputs_first',
    'outputs_of',
    'path_statistics',
    'regions_of',
    'run_model',
    'samples_of',
    'second_stage_of',
    'survey_units',
    'trace_channels',
    'unit_statistics',
    'walk_units',
]
