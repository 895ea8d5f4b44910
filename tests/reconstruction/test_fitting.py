"""When a reconstructor is fitted anew, and when it is not."""

import copy

import pytest
import torch
from conftest import enliven, random_plan
from least_squares_data import IMAGES
from torch import nn

from mmautodfp.graph import find_groups
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, SimilarityReconstructor, SyntheticLeastSquares, inputs_of
from mmautodfp.reconstruction.base import fingerprint
from mmautodfp.search.run import search
from mmautodfp.search.task import PruningTask
from mmautodfp.surgery import GroupPlan, PruningPlan, apply_plan
from mmautodfp.utils import AutoDFPError
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


def by_the_order_of_its_inputs(module):
    module.layer1[0].conv1.weight.data = module.layer1[0].conv1.weight.data.roll(2, 1)


def by_loading(module):
    module.load_state_dict(enliven(CifarResNet(depth=8), 5).state_dict())


CHANGES = [in_place, through_data, of_a_buffer, by_order, by_the_order_of_its_inputs, by_loading]


@pytest.mark.parametrize('change', CHANGES)
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


def test_a_fit_to_other_groups_that_failed_is_done_again():
    seen = []

    class FailsAtFirst(PruneOnly):
        def _fit(self, module, model):
            seen.append(len(self._groups))
            if len(seen) == 2:
                raise AutoDFPError('no image reaches a layer')

    module, reconstructor = enliven(CifarResNet(depth=8)), FailsAtFirst()
    groups = find_groups(module)
    reconstructor.ensure_fitted(module, groups=groups[:1])
    with pytest.raises(AutoDFPError, match='no image'):
        reconstructor.ensure_fitted(module, groups=groups)
    reconstructor.ensure_fitted(module, groups=groups)
    assert seen == [1, 3, 3]


class WantsTargets(nn.Module):
    def forward(self, x):
        if self.training:
            raise RuntimeError('in training, targets are expected')
        return x


@pytest.mark.parametrize('final', [False, True])
def test_a_part_of_a_model_in_training_mode_is_pruned_as_in_eval_mode(final):
    part, states = nn.Sequential(nn.Dropout(), enliven(CifarResNet(depth=8))), []
    plan = PruningPlan({'1.layer1.0.conv1': GroupPlan((0, 1, 2), 16)})
    for training in (False, True):
        model = nn.Sequential(WantsTargets(), copy.deepcopy(part)).train(training)
        apply_plan(model[1], plan, SyntheticLeastSquares(IMAGES), final, model)
        states.append(model.state_dict())
        assert all(layer.training == training for layer in model.modules())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


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


def test_one_compensation_serves_two_tasks_whose_modules_are_parts_of_other_models():
    compensation = SyntheticLeastSquares(IMAGES)

    def build(channels):
        model = nn.Sequential(nn.Conv2d(3, channels, 1), enliven(CifarResNet(depth=8)))
        model[1].conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        return PruningTask.build(model.eval(), '1', None, 0.6, compensation)

    first, second = build(5), build(7)
    for task in (first, second, first):
        with task.apply(task.uniform_plan(), final=True):
            assert task.model(torch.rand(1, 3, 32, 32)).isfinite().all()


def test_what_version_0_1_called_adjust_and_finish_is_still_done():
    done = []
    with pytest.warns(FutureWarning, match='Old.finish is called finalize'):

        class Old(PruneOnly):
            def adjust(self, module, plan, restore):
                done.append('adjust')

            def finish(self, module, plan, restore):
                done.append('finish')

    module = enliven(CifarResNet(depth=8))
    for final in (False, True):
        apply_plan(module, random_plan(module), Old(), final)()
    assert done == ['adjust', 'finish']


def test_settings_are_told_in_words_that_are_the_same_in_another_process():
    class Own(PruneOnly):
        def __init__(self, rule):
            super().__init__()
            self.rule = rule

    assert Own(by_order).identity == 'Own(rule=by_order)'
    assert Own([1, 2]).identity == 'Own(rule=[1, 2])'
    assert ' at 0x' not in Own(nn.ReLU.forward).identity + Own(object()).identity


@pytest.mark.parametrize('settings', [dict(lam=2.0), dict(lam='a half'), dict(min_cosine='low')])
def test_settings_that_neuron_merging_cannot_use_are_told(settings):
    with pytest.raises(AutoDFPError, match=f'NeuronMerging was asked for {next(iter(settings))}='):
        NeuronMerging(**settings)


def test_images_that_a_model_does_not_take_are_told_in_a_sentence():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(AutoDFPError, match=r'sent through the Sequential, which does not take them .*mean=') as caught:
        PruningTask.build(model, '', None, 0.6)
    assert '\n' not in str(caught.value)
    images = IMAGES | dict(mean=(0.0,), std=(1.0,))
    assert PruningTask.build(model, '', None, 0.6, dict(type='SyntheticLeastSquares', images=images)).allocation


class Scaled(nn.Module):
    def forward(self, inputs, scale=1.0, shift=2.0, *, by_name=None):
        return inputs * scale + shift


class Around(nn.Module):
    def __init__(self, **named):
        super().__init__()
        self.part, self.named = Scaled(), named

    def forward(self, images):
        return self.part(inputs=images, **self.named)


def test_a_part_that_is_given_its_inputs_by_name_is_run_with_the_same_ones():
    images = torch.rand(2, 3, 4, 4)
    for named in ({}, dict(scale=3.0), dict(shift=5.0)):
        model = Around(**named)
        assert torch.equal(model.part(*inputs_of(model, model.part, images)), model(images))
    model = Around(by_name=1)
    with pytest.raises(
        AutoDFPError, match='the Scaled that is to be pruned is given by_name by name, but it is run by'
    ):
        inputs_of(model, model.part, images)


def test_norms_in_front_of_a_part_use_the_statistics_of_the_batch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Scaled())
    model[1].running_var.fill_(9.0)
    images = torch.rand(8, 3, 6, 6)
    before = copy.deepcopy(model.state_dict())
    expected = copy.deepcopy(model[:2]).train()(images)
    found = inputs_of(model.eval(), model[2], images)[0]
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
