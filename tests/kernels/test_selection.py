"""Which channels are kept."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from mmautodfp.kernels import keep_indices, rank_channels


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('shape', [(1, 2, 3, 3), (20, 3, 3, 3), (33, 7, 1, 1), (12, 5)])
def test_ranking_equals_sorting_the_norms(shape, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    norms = [sum(value**2 for value in row.flatten().tolist()) ** 0.5 for row in weight]
    assert rank_channels(weight).tolist() == sorted(range(len(norms)), key=lambda index: -norms[index])


def test_equal_norms_stay_in_order_of_index():
    weight = torch.ones(40, 2, 3, 3)
    weight[[5, 30]] = 2
    assert rank_channels(weight).tolist() == [5, 30] + [index for index in range(40) if index not in (5, 30)]


def test_the_norm_is_l2_and_not_l1():
    weight = torch.tensor([[2.0, 2.0, 2.0], [3.9, 0.0, 0.0], [0.0, 0.0, -4.0]])
    assert rank_channels(weight).tolist() == [2, 1, 0]


def test_large_half_precision_weights_are_ranked_by_value():
    weight = torch.tensor([[300.0, 10.0], [400.0, 0.0], [-500.0, 1.0]], dtype=torch.float16)  # squares overflow
    assert rank_channels(weight).tolist() == [2, 1, 0]


def test_the_largest_are_kept_in_ascending_order():
    weight = torch.tensor([[3.0], [1.0], [-5.0], [4.0], [2.0]])
    assert keep_indices(weight, 3).tolist() == [0, 2, 3]
    assert keep_indices(weight, 1).tolist() == [2]
    assert keep_indices(weight, 5).tolist() == [0, 1, 2, 3, 4]


def test_what_is_kept_only_grows_with_the_number():
    weight = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    kept = [set(keep_indices(weight, num_keep).tolist()) for num_keep in range(1, 17)]
    assert [len(one) for one in kept] == list(range(1, 17))
    assert all(one < other for one, other in pairwise(kept))


def test_numpy_integers_are_numbers():
    assert keep_indices(torch.eye(4), np.int64(2)).tolist() == [0, 1]


@pytest.mark.parametrize('num_keep', [0, -1, 5, 2.5])
def test_a_number_that_the_layer_cannot_keep_is_refused(num_keep):
    with pytest.raises(ValueError, match=f'^{num_keep} channels were to be kept, but the layer has 4; ask for 1 to 4$'):
        keep_indices(torch.eye(4), num_keep)
