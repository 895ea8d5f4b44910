import json
import random
from itertools import product

import numpy as np
import pytest
import torch
import torchvision
from conftest import build_resnet, enliven
from cost_data import play
from torchvision.ops.misc import FrozenBatchNorm2d

from mmautodfp.costs import (
    Constraint,
    LatencyBudget,
    LatencyCost,
    LatencyTable,
    ModelCosts,
    allowed_widths,
    latency_table,
    measure_latency_costs,
    round_widths,
)
from mmautodfp.costs.latency_table import LayerCall
from mmautodfp.graph import ChannelGroup, Consumer, find_groups
from mmautodfp.utils import AutoDFPError


def measure(model, cache, divisor=1, module=None, size=32, **settings):
    module = module or model
    budget = LatencyBudget(0.7, **(dict(points=3, repeat=1) | settings))
    images = torch.zeros(1, 3, size, size, dtype=next(model.parameters()).dtype)
    return measure_latency_costs(model, module, find_groups(module), lambda: model(images), budget, divisor, cache)


@pytest.fixture
def clock(monkeypatch):
    """Instead of the time: multiply-accumulates of a layer as nanoseconds; a billion more for the rest."""

    def work(call):
        names = call.__code__.co_freevars
        cells = dict(zip(names, (cell.cell_contents for cell in call.__closure__), strict=True))
        outputs = cells['new'](cells['values'])
        weight = cells['new'].weight
        return 1e-9 * (outputs.numel() * weight[0].numel() if weight.ndim > 1 else outputs.numel())

    def in_place(module, layers, run, repeat):
        spans = []

        def count(layer, args, output):
            spans.append(output.numel() * (layer.weight[0].numel() if layer.weight.ndim > 1 else 1))

        handles = [layer.register_forward_hook(count) for layer in set(layers)]
        run()
        for handle in handles:
            handle.remove()
        return dict(module=sum(spans) + 10**9, model=sum(spans) + 10**9, calls=spans)

    monkeypatch.setattr(latency_table, 'median_in_turns', lambda calls, repeat: {k: work(c) for k, c in calls.items()})
    monkeypatch.setattr(latency_table, 'time_in_place', in_place)


def test_a_table_interpolates_between_what_was_measured():
    table = LatencyTable([1, 5], [1, 3], [[10, 30], [50, 90]])
    assert table.lookup[[1, 5, 1, 5], [1, 1, 3, 3]].tolist() == [10, 50, 30, 90]
    assert table.lookup[3, 1] == 30
    assert table.lookup[3, 2] == (10 + 30 + 50 + 90) / 4


def test_a_table_never_falls_as_widths_grow():
    rng = np.random.default_rng(0)
    table = LatencyTable([1, 7, 16, 20], [4, 8, 12], rng.integers(1, 100, (4, 3)).tolist())
    assert (np.diff(table.lookup, axis=0) >= 0).all()
    assert (np.diff(table.lookup, axis=1) >= 0).all()
    measured = np.array(table.nanoseconds).ravel()
    assert all(
        table.lookup[i, j] >= value
        for (i, j), value in zip(product(table.outputs, table.inputs), measured, strict=True)
    )


def test_the_cost_is_the_sum_over_the_layers_at_their_groups_widths(clock, tmp_path):
    model = build_resnet(18)
    costs = measure(model, tmp_path)
    # A conv's work is bilinear in its widths, so interpolation is exact, and so must the sum be.
    widths = [random.Random(0).randint(n // 3, n) for n in costs['module'].dense]
    work = {}

    def count(layer, args, output):
        if isinstance(layer, torch.nn.Conv2d):
            work[layer] = output.numel() * layer.weight[0].numel()

    layers = dict(model.named_modules())
    handles = [layer.register_forward_hook(count) for layer in layers.values()]
    model(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    expected = dense = 0
    for group, width in zip(find_groups(model), widths, strict=True):
        share = width / group.num_channels
        norm = work[layers[group.name]] / layers[group.name].weight[0].numel()
        (consumer,) = group.consumers
        for amount in (work[layers[group.name]], norm, work[layers[consumer.name]]):
            expected += amount * share
            dense += amount
    saved = costs['module'](costs['module'].dense) - costs['module'](widths)
    assert saved == pytest.approx(dense - expected, abs=3 * len(widths))


def test_the_time_in_place_is_that_of_each_call_and_of_the_whole():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 1))
    layers = [model[0], model[2], model[2]]

    def run():
        model[2](model(torch.zeros(1, 3, 8, 8)))

    times = latency_table.time_in_place([model], layers, run, 3)
    assert len(times['calls']) == 3
    assert all(span > 0 for span in times['calls'])
    assert times['model'] > 0
    assert times['module'] > 0
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_what_was_measured_once_is_taken_from_the_cache(tmp_path, monkeypatch):
    first = measure(build_resnet(18), tmp_path)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())['machine']['points'] == 3
    for function in ('median_in_turns', 'time_in_place'):
        monkeypatch.setattr(latency_table, function, None)  # not to be called
    again = measure(build_resnet(18, seed=1), tmp_path)
    assert {scope: cost(cost.dense) for scope, cost in again.items()} == {
        scope: cost(cost.dense) for scope, cost in first.items()
    }


def test_numbers_of_another_type_are_measured_on_their_own(clock, tmp_path):
    for model in (build_resnet(18), build_resnet(18).double()):
        measure(model, tmp_path)
    (file,) = tmp_path.iterdir()
    known = json.loads(file.read_text())
    assert len(known['totals']) == 2
    single = [key.removesuffix('float32') for key in known['tables'] if key.endswith('float32')]
    assert sorted(key for key in known['tables'] if not key.endswith('float32')) == sorted(
        f'{key}float64' for key in single
    )


class Neck(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(8, 16, 3), torch.nn.Conv2d(16, 4, 1)

    def forward(self, maps):
        return self.last(self.first(sum(maps)))


class Named(torch.nn.Module):
    """Takes its images by name, and hands its neck a tuple, which calls it or goes around the call."""

    def __init__(self, around=False):
        super().__init__()
        self.stem, self.neck, self.around = torch.nn.Conv2d(3, 8, 3), Neck(), around

    def forward(self, images):
        maps = (self.stem(images),) * 2
        return self.neck.forward(maps) if self.around else self.neck(maps)


def cost_of_named(model, module, cache, size=16):
    prefix = '' if module is model.neck else 'neck.'
    groups = [ChannelGroup(f'{prefix}first', 16, norm=None, consumers=(Consumer(f'{prefix}last'),))]
    run = lambda: model(images=torch.zeros(1, 3, size, size))
    return measure_latency_costs(model, module, groups, run, LatencyBudget(points=2, repeat=1), cache=cache)


def test_images_of_another_size_are_measured_on_their_own_however_they_are_handed_over(clock, tmp_path):
    model, found = Named(), []
    for size in (16, 64, 16):
        cost = cost_of_named(model, model, tmp_path, size)['model']
        found.append(cost(cost.dense))
    assert found[0] == found[2] < found[1]


def test_other_groups_of_the_same_model_are_measured_on_their_own(clock, tmp_path):
    model = build_resnet(18)
    run, budget = lambda: model(torch.zeros(1, 3, 32, 32)), LatencyBudget(points=3, repeat=1)
    groups, costs = find_groups(model), []
    for some in (groups, groups[:2], groups[1:3]):
        for cache in (tmp_path / 'shared', tmp_path / f'own_{len(costs)}'):
            cost = measure_latency_costs(model, model, some, run, budget, 1, cache)['module']
            costs.append([cost([1] * len(some)), cost(cost.dense)])
    assert costs[::2] == costs[1::2]


def test_a_part_that_is_given_several_maps_is_measured_and_one_that_is_not_called_is_refused(clock, tmp_path):
    model, around = Named(), Named(around=True)
    cost = cost_of_named(model, model.neck, tmp_path)['module']
    assert cost([1]) < cost([16])
    with pytest.raises(AutoDFPError, match='the Neck to prune is not called itself, so its time cannot be taken'):
        cost_of_named(around, around.neck, tmp_path)


def test_a_damaged_cache_is_measured_anew(clock, tmp_path):
    measure(build_resnet(18), tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    file.write_text(whole[:100])
    measure(build_resnet(18), tmp_path)
    assert file.read_text() == whole


def test_measured_widths_are_allowed_ones(clock, tmp_path):
    measure(build_resnet(18, base_channels=20), tmp_path, divisor=8, points=4)
    (file,) = tmp_path.iterdir()
    tables = json.loads(file.read_text())['tables'].values()
    assert tables
    for table in tables:
        for widths in (table['outputs'], table['inputs']):
            assert set(widths) <= set(allowed_widths(widths[-1], 8))


def test_depthwise_convs_and_linear_layers_after_a_flatten_are_measured_at_any_width(tmp_path):
    for build in (
        lambda: torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.25),
        lambda: torchvision.models.vgg11(num_classes=4),
    ):
        cost = measure(enliven(build()), tmp_path, points=2)['module']
        assert 0 < cost([1] * len(cost.dense)) < cost(cost.dense)


def test_frozen_norms_are_measured_at_any_width():
    call = LayerCall(FrozenBatchNorm2d(8), (1, 8, 5, 5), [(0, 1)], [(None, 1)])
    assert call.key == LayerCall(FrozenBatchNorm2d(8), (1, 8, 5, 5), [(2, 1)], [(None, 1)]).key
    assert call.at(3, 1)().shape == (1, 3, 5, 5)


def test_a_transposed_convolution_is_not_taken_for_one_that_shrinks():
    shape, sides = (1, 8, 4, 4), ([(0, 1)], [(1, 1)])
    calls = [LayerCall(kind(8, 8, 2, stride=2), shape, *sides) for kind in (torch.nn.Conv2d, torch.nn.ConvTranspose2d)]
    assert [call.at(8, 8)().shape[-1] for call in calls] == [2, 8]
    assert calls[0].key != calls[1].key


@pytest.mark.parametrize('divisor', [1, 8])
def test_random_agents_are_never_over_the_latency_budget(divisor):
    rng = np.random.default_rng(0)
    dense = [16, 24, 32, 20]
    tables = [
        LatencyTable([1, n // 2, n], [1, m // 2, m], rng.integers(10, 1000, (3, 3)).tolist())
        for m, n in zip([16, *dense[:-1]], dense, strict=True)
    ]
    terms = [(table, [(group, 1)], [(group - 1 if group else None, 1)]) for group, table in enumerate(tables)]
    tables[0].inputs, tables[0].nanoseconds = [1], [row[:1] for row in tables[0].nanoseconds]
    cost = LatencyCost(dense, 100, terms)
    limits = Constraint([LatencyBudget(0.95)])
    limits.bind(ModelCosts({}, {}, dict(module=cost)), round_widths(0.2, dense, divisor), divisor)
    for _ in range(200):
        chosen = play(limits, lambda n: n * rng.uniform(0.2, 1))
        assert all(width in allowed_widths(n, divisor) for width, n in zip(chosen, dense, strict=True))
        assert cost(chosen) <= 0.95 * cost(dense)


def test_an_unreachable_latency_is_refused_with_the_reachable_range():
    cost = LatencyCost([4], 1000, [(LatencyTable([1, 4], [1], [[0], [1000]]), [(0, 1)], [(None, 1)])])
    with pytest.raises(AutoDFPError, match=r"0.3 of the module's latency was asked for, but .* reach 0.5000 to 1"):
        Constraint([LatencyBudget(0.3)]).bind(ModelCosts({}, {}, dict(module=cost)), [1])
