"""Tensors in, tensors out: how alike the channels of a layer are, which are kept, and which stand in for the others.

Everything here takes the producer's weight (a convolution [N, C, kH, kW] or a linear layer [N, C]) and the statistics
of its BatchNorm, on any device and in any float dtype, and knows no module. No result carries a gradient. Half
precision is computed in, and returned as, float32.
"""

from .images import dead_leaves, image_generator, white_noise
from .moments import Moments, TapCorrelation, output_variance
from .reconstruction import merge_input_channels, neuron_merging_delivery
from .regression import bounded_gain, least_squares_delivery, rank_by_explanation, solve_ridge, unexplained_shares
from .selection import rank_channels
from .similarity import (
    BatchNormStats,
    ChannelClusters,
    ChannelSimilarity,
    alive_channels,
    bias_matrix,
    cluster_channels,
    cosine_distance,
    reconstruction_scale,
)

__all__ = [
    'BatchNormStats',
    'ChannelClusters',
    'ChannelSimilarity',
    'Moments',
    'TapCorrelation',
    'alive_channels',
    'bias_matrix',
    'bounded_gain',
    'cluster_channels',
    'cosine_distance',
    'dead_leaves',
    'image_generator',
    'least_squares_delivery',
    'merge_input_channels',
    'neuron_merging_delivery',
    'output_variance',
    'rank_by_explanation',
    'rank_channels',
    'reconstruction_scale',
    'solve_ridge',
    'unexplained_shares',
    'white_noise',
]
