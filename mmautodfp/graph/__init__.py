"""Channel groups of a live model, found by finders that know its blocks, or by tracing it."""

from .discovery import groups_of
from .finders import ChainFinder, InvertedResidualFinder, ResidualBlockFinder, chain_groups
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
from .groups import (
    GROUP_FINDERS,
    ChannelGroup,
    Consumer,
    GroupFinder,
    GroupSurvey,
    Producer,
    find_groups,
    is_batch_norm,
    join_path,
    layers_with_tied_weights,
    survey_groups,
    walk_groups,
)
from .rerun import Rerun
from .statistics import group_statistics, norm_statistics, outputs_first, path_statistics, phases
from .tracing import trace_channels

__all__ = [
    'GROUP_FINDERS',
    'ChainFinder',
    'ChannelGroup',
    'Consumer',
    'GroupFinder',
    'GroupSurvey',
    'InvertedResidualFinder',
    'Producer',
    'Rerun',
    'ResidualBlockFinder',
    'chain_groups',
    'find_groups',
    'flat_tensors',
    'group_statistics',
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
    'phases',
    'regions_of',
    'run_model',
    'samples_of',
    'second_stage_of',
    'survey_groups',
    'trace_channels',
    'walk_groups',
]
