"""When a reconstructor is fitted anew, and when it is not."""

import pytest
import torch
from conftest import enliven, random_plan
from least_squares_data import IMAGES
from torch import nn

from mmautodfp.reconstruction import NeuronMerging, PruneOnly, SimilarityReconstructor, SyntheticLeastSquares
from mmautodfp.reconstruction.base import fingerprint
from mmautodfp.search.run import search
from mmautodfp.search.task import PruningTask
from mmautodfp.surgery import apply_plan
from mmautodfp.zoo import CifarResNet


@torch.no_grad()
def in_place(module):
    module.layer1[0].conv1.weight[2] += 1


def through_data(module):
    module.layer1[0].conv1.weight.data[2, 1, 0, 0] = 3  # torch counts no version for it


def of_a_buffer(module):
    module.layer1[0].bn1.running_var.data[3] *= 2


def by_order(module):
    module.layer1[0].conv1.weight.data = module.layer1[0].conv1.weight.data.flip(0)


def by_loading(module):
    module.load_state_dict(enliven(CifarResNet(depth=8), 5).state_dict())


@pytest.mark.parametrize('change', [in_place, through_data, of_a_buffer, by_order, by_loading])
@pytest.mark.parametrize('build', [SimilarityReconstructor, NeuronMerging, lambda: SyntheticLeastSquares(IMAGES)])
def test_changed_weights_are_noticed_and_fitted_to(change, build):
    module, plan = enliven(CifarResNet(depth=8)), random_plan(CifarResNet(depth=8))
    images = torch.randn(2, 3, 32, 32)
    used = build()
    apply_plan(module, plan, used)()
    change(module)
    with torch.no_grad():
        with apply_plan(module, plan, build()):
            expected = module(images)
        with apply_plan(module, plan, used):
            assert torch.equal(module(images), expected)


def test_a_search_with_its_plans_carried_out_and_taken_back_fits_once(monkeypatch):
    fits = []
    original = SyntheticLeastSquares._fit
    monkeypatch.setattr(SyntheticLeastSquares, '_fit', lambda self, *args: fits.append(1) or original(self, *args))
    model = enliven(CifarResNet(depth=8))
    task = PruningTask.build(model, '', None, 0.6, dict(type='SyntheticLeastSquares', images=IMAGES))
    found = search(task, lambda model: float(model(torch.ones(1, 3, 32, 32)).max()), 4, dict(type='RandomSearch'))
    restore = task.apply(found.plan, final=True)
    restore.swap()
    task.evaluate(task.uniform_plan(), lambda model: 0.0)
    restore.swap()
    restore()
    task.reconstructor.ensure_fitted(task.module)  # the model is known from before
    assert len(fits) == 1


def test_a_module_is_fitted_anew_within_the_model_that_it_was_fitted_in():
    seen = []

    class Watching(PruneOnly):
        def _fit(self, module, model):
            seen.append(model)

    model = nn.Sequential(nn.Conv2d(3, 3, 1), enliven(CifarResNet(depth=8)))
    reconstructor = Watching()
    reconstructor.ensure_fitted(model[1], model)
    reconstructor.ensure_fitted(model[1])
    model[0].weight.data += 1  # what the module reads has changed
    reconstructor.ensure_fitted(model[1])
    assert seen == [model, model]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool])
@pytest.mark.parametrize('shape', [(), (5,), (3, 4), (2, 3, 3, 3), (0, 2)])
def test_a_fingerprint_sees_a_change_of_one_number_and_no_layout(dtype, shape):
    module = nn.Module()
    module.register_buffer('held', (torch.rand(7, *shape) * 9).to(dtype)[1])  # not at the start of its storage
    before = fingerprint(module)
    assert fingerprint(module) == before
    if module.held.ndim == 4:
        module.held = module.held.contiguous(memory_format=torch.channels_last)
        assert fingerprint(module) == before
    if module.held.numel():
        last = (-1,) * len(shape)
        module.held[last] = ~module.held[last] if dtype == torch.bool else module.held[last] + 1
        assert fingerprint(module) != before
