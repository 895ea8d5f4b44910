"""How the work of a pruned channel is handed on to the retained ones."""

from .base import OutputChange, PruneOnly, Reconstruction, Reconstructor
from .least_squares import SyntheticLeastSquares
from .neuron_merging import NeuronMerging
from .refine import Refinement
from .sensitivity import compare_kinds, mean_share, missed
from .similarity import SimilarityReconstructor
from .synthetic import SyntheticImages, batch_statistics, inputs_of

__all__ = [
    'NeuronMerging',
    'OutputChange',
    'PruneOnly',
    'Reconstruction',
    'Reconstructor',
    'Refinement',
    'SimilarityReconstructor',
    'SyntheticImages',
    'SyntheticLeastSquares',
    'batch_statistics',
    'compare_kinds',
    'inputs_of',
    'mean_share',
    'missed',
]
