"""Groups that must not be pruned are found, and no others."""

import re

import pytest
import torch
from torch import Tensor, nn

from mmautodfp.graph import groups_of, trace_channels
from mmautodfp.surgery import GroupPlan, PruningPlan, apply_plan, prove_groups


class Careless(nn.Module):
    """Three layers of which one is read in a way that its width must not change, and two that are not."""

    def __init__(self, careless):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 10, 3)
        self.d, self.out = nn.Conv2d(10, 5, 3), nn.Conv2d(5, 2, 3)
        self.careless = careless

    def forward(self, x: Tensor) -> Tensor:
        x = self.careless(self.b(self.a(x).relu()))
        return self.out(self.d(self.c(x).relu()).relu())


@pytest.mark.parametrize(
    ('careless', 'reason'),
    [
        (lambda x: x.reshape(len(x), 8, *x.shape[2:]), 'RuntimeError: shape .* is invalid for input of size'),
        (lambda x: x / x.shape[1], r'an output that varies by \S+ differs by'),
    ],
    ids=['hard-coded width', 'width as a number'],
)
def test_a_group_that_is_not_safe_is_named_with_the_reason_and_the_others_survive(careless, reason):
    torch.manual_seed(0)
    model = Careless(careless).eval()
    tensors, images = list(model.parameters()), torch.randn(1, 3, 16, 16)
    run = lambda model: [model(images.to(model.out.weight.dtype))]
    groups = groups_of(trace_channels(model, lambda: run(model))).groups
    assert [group.name for group in groups] == ['a', 'b', 'c', 'd']
    bad = prove_groups(model, groups, run)
    assert list(bad) == ['b']
    assert re.search(reason, bad['b'])
    assert all(a is b for a, b in zip(model.parameters(), tensors, strict=True))
    safe = [group for group in groups if group.name not in bad]
    assert not prove_groups(model, safe, run)
    plan = PruningPlan({group.name: GroupPlan((0, 2), group.num_channels) for group in safe})
    with apply_plan(model, plan, groups=safe):
        assert run(model)[0].shape == (1, 2, 6, 6)


@pytest.mark.parametrize('seed', range(2, 12))  # with 1, the layers behind give nothing but zeros
@pytest.mark.parametrize(
    'careless',
    [lambda x: x / x.shape[1], lambda x: torch.cat([x[:, :2] * x[:, :2].sigmoid(), x[:, 2:]], 1)],
    ids=['number of channels', 'first channels'],
)
def test_a_group_that_is_not_safe_is_found_whatever_the_weights_are(careless, seed):
    """Few channels behind it, which may all be 0, would hide it, and so would pruning the same channels always."""
    torch.manual_seed(seed)
    model, images = Careless(careless).eval(), torch.randn(1, 3, 16, 16)
    groups = groups_of(trace_channels(model, lambda: [model(images)])).groups
    assert list(prove_groups(model, groups, lambda model: [model(images)])) == ['b']


@pytest.mark.parametrize('precise', [True, False], ids=['float64', 'float32 alone'])
def test_what_rounding_does_does_not_condemn_a_group(precise):
    """As where it turns the order of two boxes."""
    torch.manual_seed(0)
    model, images = Careless(lambda x: x).eval(), torch.randn(1, 3, 16, 16)
    groups = groups_of(trace_channels(model, lambda: [model(images)])).groups
    before = [tensor.clone() for tensor in model.parameters()]
    calls = []

    def run(model: nn.Module) -> list[Tensor]:
        double = model.out.weight.dtype == torch.float64
        calls.append(double)
        if precise:  # float32 never says the same twice
            return [model(images.double() if double else images) + (0 if double else len(calls))]
        return [model(images) + (len(calls) == 2)]  # cannot be called in float64, and is wrong once

    assert not prove_groups(model, groups, run)
    # A masked and a slim model for each of three subsets, the first of which fails in float32.
    assert calls == [False, False, True, *[precise] * 6]
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_a_copy_that_runs_the_model_itself_proves_nothing():
    """Of words no type tells that the copy in float64 was meant."""
    torch.manual_seed(0)
    careless = Careless(lambda x: x / x.shape[1]).eval()
    model = nn.Sequential(nn.Embedding(9, 3), careless)
    words = torch.randint(9, (1, 16, 16))
    layers = list(model)
    model.forward = lambda words: layers[1](layers[0](words).permute(0, 3, 1, 2))
    run = lambda model: [model(words)]
    groups = groups_of(trace_channels(model, lambda: run(model))).groups
    assert [group.name for group in groups] == ['1.a', '1.b', '1.c', '1.d']
    assert list(prove_groups(model, groups, run)) == ['1.b']


def test_nothing_to_prove_is_proven():
    assert prove_groups(nn.Identity(), [], lambda model: []) == {}


@pytest.fixture
def rounding():
    tell = lambda: (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    allowed, precision = tell()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision('medium')
    yield tell
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision(precision)


def test_nothing_is_rounded_to_tensorfloat_32_while_groups_are_proven(rounding):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    images, seen = torch.rand(1, 3, 4, 4), []

    def run(model: nn.Module) -> list[Tensor]:
        seen.append(rounding())
        return [model(images)]

    groups = groups_of(trace_channels(model, lambda: [model(images)])).groups
    assert [group.name for group in groups] == ['0']
    assert prove_groups(model, groups, run) == {}
    assert seen == [(False, 'highest')] * 2 * 3
    assert rounding() == (True, 'medium')
