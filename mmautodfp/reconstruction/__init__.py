"""Compensation: how the retained channels of a group replace the pruned ones."""

from .base import OutputChange, PruneOnly, Reconstruction, Reconstructor
from .distillation import Distillation
from .foreground import Foreground, foreground_of
from .images import SyntheticImages
from .layer_fit import Refinement
from .least_squares import SyntheticLeastSquares
from .neuron_merging import NeuronMerging
from .sensitivity import shares_missed, with_channels
from .similarity import SimilarityReconstructor
from .synthetic import Stopped, batch_statistics, inputs_of, require_taken

__all__ = [
    'Distillation',
    'Foreground',
    'NeuronMerging',
    'OutputChange',
    'PruneOnly',
    'Reconstruction',
    'Reconstructor',
    'Refinement',
    'SimilarityReconstructor',
    'Stopped',
    'SyntheticImages',
    'SyntheticLeastSquares',
    'batch_statistics',
    'foreground_of',
    'inputs_of',
    'require_taken',
    'shares_missed',
    'with_channels',
]
