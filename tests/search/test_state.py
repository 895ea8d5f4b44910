import pytest
import torch
from conftest import REPO
from mmdet.registry import MODELS
from mmengine.config import Config

from mmautodfp.graph import find_groups, group_statistics
from mmautodfp.kernels import BatchNormStats
from mmautodfp.search.state import Clustering, LayerState, layer_state, scale_states


def random_layer(channels=12, inputs=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, inputs, 3, 3, generator=generator)
    numbers = torch.randn(4, channels, generator=generator)
    bn = BatchNormStats(numbers[0].abs() + 0.5, numbers[1], numbers[2], numbers[3].abs() + 0.5)
    return weight, bn


def test_the_bias_features_equal_loops_over_eq_18():
    weight, bn = random_layer()
    sigma = (bn.var + bn.eps).sqrt()
    norm = weight.flatten(1).norm(dim=1)
    values = []
    for i in range(12):
        for j in range(12):
            scale = (norm[i] * sigma[j] * bn.weight[i]) / (norm[j] * bn.weight[j] * sigma[i])
            term = scale * (bn.weight[j] * bn.mean[j] / sigma[j] - bn.bias[j])
            values.append((term - bn.weight[i] * bn.mean[i] / sigma[i] + bn.bias[i]).item())
    state = layer_state(3, weight, bn, Clustering(), 0.8)
    assert state.bias_mean == pytest.approx(sum(values) / 144, abs=1e-5)
    assert state.bias_small == pytest.approx(sum(abs(value) < 0.8 for value in values) / 144)
    assert (state.index, state.kind, state.in_channels, state.num_channels) == (3, 0, 5, 12)


def test_clusters_are_seen_and_linear_layers_told_apart():
    weight, bn = random_layer(channels=12)
    twins = weight.clone()
    twins[1:6] = twins[:1]
    state = layer_state(0, twins, bn, Clustering(eps=0.01, min_samples=5), 0.5)
    assert (state.num_clusters, state.noise_ratio) == (1, 0.5)
    assert layer_state(0, weight.flatten(1), bn, Clustering(), 0.5).kind == 1


def test_clusters_tell_the_layers_of_a_trained_detector_apart():
    config = Config.fromfile(REPO / 'configs/demo/faster_rcnn_digits.py').model.backbone
    backbone = MODELS.build(config)
    state = torch.load(REPO / 'configs/demo/faster_rcnn_digits.pth', map_location='cpu')
    state = {name: tensor for name, tensor in state.get('state_dict', state).items() if name.startswith('backbone.')}
    backbone.load_state_dict({name.removeprefix('backbone.'): tensor for name, tensor in state.items()})
    statistics = [group_statistics(backbone, group) for group in find_groups(backbone)]
    states = [layer_state(0, *layer, Clustering(), 0.5) for layer in statistics]
    assert sum(state.num_clusters >= 2 for state in states) > 0.75 * len(states)
    assert len({state.num_clusters for state in states}) >= 4
    assert all(state.noise_ratio < 0.9 for state in states)


def test_scaled_states_lie_around_the_unit_range():
    states = [
        LayerState(0, 0, 64, 256, -2.0, 0.25, 4, 0.5, -0.5),
        LayerState(1, 1, 32, 512, 4.0, 0.75, 0, 1.0, 0.25),
    ]
    expected = [[0, 0, 1, 0.5, -0.5, 0.25, 1, 0.5, -0.5], [1, 1, 0.5, 1, 1, 0.75, 0, 1, 0.25]]
    assert torch.allclose(scale_states(states), torch.tensor(expected))


def test_constant_features_do_not_divide_by_zero():
    states = [LayerState(0, 0, 8, 8, 0.0, 0.0, 0, 0.0, 0.0)]
    assert scale_states(states).isfinite().all()
