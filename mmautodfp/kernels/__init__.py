"""Functions of tensors, on any device; none takes a module, and no result carries a gradient.

:mod:`.similarity`, :mod:`.selection` and :mod:`.reconstruction` compute how alike the channels of a layer are, which
are kept, and which stand in for the others. They use the producer's weight, of a convolution [N, C, kH, kW] or a linear
layer [N, C], and the statistics of its BatchNorm; half precision becomes float32, except in rewritten weights.
:mod:`.regression` computes how much channels explain of one another, from moments of samples (:mod:`.moments`), in
float64. :mod:`.images` draws synthetic images.
"""

from .images import dead_leaves, image_generator, white_noise
from .moments import Moments, TapCorrelation, output_variance
from .reconstruction import merge_input_channels, neuron_merging_delivery
from .regression import bounded_gain, least_squares_delivery, rank_by_explanation, solve_ridge, unexplained_shares
from .selection import rank_channels
from .similarity import BatchNormStats, ChannelSimilarity, bias_matrix, cluster_channels, cosine_distance

__all__ = [
    'BatchNormStats',
    'ChannelSimilarity',
    'Moments',
    'TapCorrelation',
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
    'solve_ridge',
    'unexplained_shares',
    'white_noise',
]
