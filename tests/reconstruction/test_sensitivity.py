"""Errors of single groups, measured in the model's outputs."""

from functools import partial

import pytest
import torch
from conftest import build_resnet
from torch import nn

from mmautodfp.api import PruningTask
from mmautodfp.graph import find_groups
from mmautodfp.kernels import rank_channels
from mmautodfp.reconstruction import PruneOnly, SyntheticLeastSquares
from mmautodfp.reconstruction.sensitivity import MEASURED, missed, output_errors, scaled_curve, shares_missed
from mmautodfp.surgery import PruningPlan, apply_plan


def test_each_kind_has_the_share_of_all_that_is_missed_of_it():
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    batches = [[[draw(2, 3, 8, 8), 5 * draw(2, 3, 4, 4)], [draw(6, 5)]] for _ in range(2)]
    found = [[[level + 0.1 * torch.randn_like(level) for level in kind] for kind in outputs] for outputs in batches]

    def sums(a, b):
        b, a = b.transpose(0, 1).flatten(1), a.transpose(0, 1).flatten(1)
        return torch.stack([((a - b) ** 2).sum(), ((b - b.mean(1, keepdim=True)) ** 2).sum()])

    shares = []
    for kind in range(2):
        levels = [pair for a, b in zip(found, batches, strict=True) for pair in zip(a[kind], b[kind], strict=True)]
        missed_part, whole = sum(sums(*pair) for pair in levels)
        shares.append(float(missed_part / whole))
    assert shares_missed(found, batches) == pytest.approx(shares, rel=1e-5)


def test_outputs_of_one_number_for_each_image_or_for_all_have_one_channel():
    dense, found = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 4.0, 6.0])
    torch.testing.assert_close(missed(found, dense), torch.tensor([4.0, 14.0]).double())
    torch.testing.assert_close(missed(found[0], dense[1]), torch.tensor([1.0, 0.0]).double())


def test_places_count_as_often_as_their_weights_say():
    random = torch.Generator().manual_seed(0)
    found, dense = torch.randn(2, 2, 3, 4, 4, generator=random)
    counts = torch.randint(1, 4, (2, 4, 4), generator=random)
    rows = [x.movedim(1, -1).flatten(0, -2).repeat_interleave(counts.flatten(), 0) for x in (found, dense)]
    torch.testing.assert_close(missed(found, dense, counts.flatten()), missed(*rows), rtol=1e-6, atol=0)


def test_each_group_is_measured_alone_and_the_module_is_left_as_it_was():
    module = build_resnet(18)
    batches = torch.randn(2, 4, 3, 32, 32)
    groups = find_groups(module)[:3]
    rankings = [rank_channels(module.get_submodule(group.name).weight) for group in groups]
    before = dict(module.named_parameters())
    runs = [lambda images=images: [[level] for level in module(images)] for images in batches]  # each level a kind
    with torch.no_grad():
        dense = [run() for run in runs]
    found = output_errors(module, module, groups, rankings, PruneOnly(), runs)
    assert all(before[name] is tensor for name, tensor in module.named_parameters())
    for group, ranking, errors in zip(groups, rankings, found, strict=True):
        assert list(errors) == [round(share * group.num_channels) for share in MEASURED]
        width = min(errors)
        with apply_plan(module, PruningPlan.of([group.name], [ranking], [width]), PruneOnly()), torch.no_grad():
            shares = shares_missed([run() for run in runs], dense)
        assert min(shares) < max(shares)
        assert errors[width] == pytest.approx(max(shares), rel=1e-6)


def test_a_curve_is_brought_through_what_was_measured():
    curve = torch.linspace(1, 0, 17, dtype=torch.float64) ** 2
    scaled = scaled_curve(curve, {4: 0.5, 8: 0.1, 12: 0.01})
    for width, error in {4: 0.5, 8: 0.1, 12: 0.01}.items():
        assert float(scaled[width]) == pytest.approx(error)
    assert (scaled.diff() <= 0).all()
    assert scaled[-1] == 0
    assert float(scaled[0]) > 0.5


def test_a_measured_error_that_does_not_rise_is_passed_over():
    curve = torch.linspace(1, 0, 17, dtype=torch.float64)
    scaled = scaled_curve(curve, {4: 0.05, 8: 0.1, 12: 0.01})  # noise: more channels, and more is missed
    assert (scaled.diff() <= 0).all()
    assert float(scaled[12]) == pytest.approx(0.01)
    assert not scaled_curve(curve, {4: 0.0, 8: 0.0}).any()  # the model says the same without it


class TwoBranches(nn.Module):
    """One branch says ten times as much as the other; their shares of lost variance are alike."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.quiet = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
        self.loud = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
        self.loud.load_state_dict(self.quiet.state_dict())
        self.loud[3].weight.data *= 10

    def forward(self, x):
        return self.quiet(x) + self.loud(x)


class Wrapped(nn.Module):
    """A network in a wrapper, as a classifier of MMEngine; and, if asked for, parameters beside it."""

    def __init__(self, beside: bool = False):
        super().__init__()
        self.network = TwoBranches()
        if beside:
            self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.network(x) * getattr(self, 'scale', 1)


@pytest.mark.parametrize(
    ('model', 'target', 'sensitivity', 'spares'),
    [
        (TwoBranches, 'model', 0, False),
        (TwoBranches, 'model', 8, True),
        (TwoBranches, 'model', None, True),
        (Wrapped, 'network', None, True),
        (partial(Wrapped, beside=True), 'network', None, False),
    ],
)
def test_an_allocation_spares_the_group_that_the_outputs_depend_on(model, target, sensitivity, spares):
    ours = SyntheticLeastSquares(dict(num_images=16, size=16), sensitivity=sensitivity)
    task = PruningTask.build(model().eval(), target, constraint=0.6, reconstructor=ours)
    widths = dict(zip((group.name.removeprefix('network.') for group in task.groups), task.allocation, strict=True))
    if spares:
        assert widths['loud.0'] > widths['quiet.0'] + 2
    else:
        assert abs(widths['quiet.0'] - widths['loud.0']) <= 1


@pytest.mark.parametrize(
    ('side', 'there', 'count'), [(256, 12, 8), (128, 12, 8), (64, 40, 32), (32, 150, 128), (16, 200, 200)]
)
def test_as_many_images_are_compared_as_have_the_pixels_of_eight(side, there, count):
    model, seen = TwoBranches().eval(), []
    ours = SyntheticLeastSquares(dict(num_images=there, size=side, batch_size=100), refinement=False)
    groups = find_groups(model)
    ours.ensure_fitted(model, model)
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    ours.error_curves(groups, [rank_channels(model.get_submodule(group.name).weight) for group in groups])
    assert sum(seen) % count == 0
    assert sum(seen) // count == 1 + len(groups) * len(MEASURED)
