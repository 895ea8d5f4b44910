"""In which order channels are kept."""

import pytest
import torch

from mmautodfp.kernels import rank_channels


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
