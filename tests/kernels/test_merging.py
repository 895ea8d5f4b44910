"""A consumer takes over what its pruned inputs did, beside a loop over the channels."""

import pytest
import torch
import torch.nn.functional as F
from delivery_loops import delivery_of, largest, random_layer

from mmautodfp.kernels import merge_input_channels


@pytest.mark.parametrize('tail', [(), (1, 1), (3, 3), (2, 3, 4)])
def test_merging_inputs_equals_a_loop(tail):
    generator = torch.Generator().manual_seed(0)
    next_weight = torch.randn(4, 6, *tail, generator=generator, dtype=torch.float64)
    delivery = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    expected = torch.zeros(4, 3, *tail, dtype=torch.float64)
    for m in range(4):
        for k in range(3):
            for n in range(6):
                expected[m, k] += next_weight[m, n] * delivery[n, k]
    torch.testing.assert_close(merge_input_channels(next_weight, delivery), expected)


def test_columns_of_a_flattened_map_move_with_their_channel():
    delivery = torch.tensor([[1.0, 0], [0, 1], [0, 0.5]])
    next_weight = torch.arange(24.0).view(2, 12)  # 3 channels of 2x2 positions
    expected = torch.cat([next_weight[:, 0:4], next_weight[:, 4:8] + 0.5 * next_weight[:, 8:12]], 1)
    assert torch.equal(merge_input_channels(next_weight, delivery), expected)


def test_a_one_hot_delivery_is_slicing():
    next_weight = torch.randn(4, 6, 3, 3)
    assert torch.equal(merge_input_channels(next_weight, torch.eye(6)[:, [1, 4]]), next_weight[:, [1, 4]])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_merged_weights_keep_their_dtype_and_carry_no_gradient(dtype):
    next_weight = torch.randn(4, 6, 3, 3).to(dtype).requires_grad_()
    delivery = torch.eye(6)[:, [0, 2]]
    delivery[5, 0] = 0.5
    merged = merge_input_channels(next_weight, delivery)
    assert merged.dtype == dtype
    assert not merged.requires_grad
    expected = next_weight[:, 0].double() + 0.5 * next_weight[:, 5].double()
    torch.testing.assert_close(merged[:, 0], expected.to(dtype))


@pytest.mark.parametrize('shape', [(4, 5, 3, 3), (4, 12, 3, 3), (4, 13), (4, 0), (6,)])
def test_a_consumer_of_other_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r'should read 6 channels, but its weight has shape \('):
        merge_input_channels(torch.zeros(shape), torch.eye(6)[:, :2])


def test_merging_is_the_same_as_expressing_every_channel_by_the_kept_ones():
    weight, bn = random_layer((10, 4, 3, 3))
    keep = largest(weight, 4)
    delivery = delivery_of(weight, bn, keep, 0.5)
    consumer, kept_maps = torch.randn(5, 10, 3, 3, dtype=torch.float64), torch.rand(2, 4, 8, 8, dtype=torch.float64)
    all_maps = torch.einsum('nk,bkhw->bnhw', delivery, kept_maps)
    expected = F.conv2d(all_maps, consumer)
    torch.testing.assert_close(F.conv2d(kept_maps, merge_input_channels(consumer, delivery)), expected)
