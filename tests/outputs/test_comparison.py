"""The found plan beside others."""

import torch
from conftest import build_resnet

from mmautodfp.api import PruningTask, SearchResult
from mmautodfp.outputs import compare
from mmautodfp.search import History

LEAST_SQUARES = dict(type='SyntheticLeastSquares', images=dict(num_images=4, size=64, batch_size=2))


def reward_of(model):
    """Likeness to the dense model on one image."""
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = model(image)[-1]

    @torch.no_grad()
    def reward(model) -> float:
        return 1 - ((model(image)[-1] - dense).norm() / dense.norm()).item()

    return reward


def test_what_was_applied_is_measured_as_it_stands_and_not_pruned_again(monkeypatch):
    task = PruningTask.build(build_resnet(18, base_channels=8), '', None, 0.6, LEAST_SQUARES)
    reward = reward_of(task.model)
    found = SearchResult(task.allocated_plan(), 0.0, History(), 0.0, {})
    rows = compare(task, found, [reward, None])
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}

    applied = task.apply(found.plan, final=True)
    applied.swap()
    finalize, finalized = task.reconstructor.finalize, []
    monkeypatch.setattr(task.reconstructor, 'finalize', lambda *args: finalized.append(args[1]) or finalize(*args))
    again = compare(task, found, [reward, None], applied=applied)
    assert finalized == [task.uniform_plan()]
    assert [(row.name, row.search_metric) for row in again] == [(row.name, row.search_metric) for row in rows]
    names = ['allocated, same compensation', 'AutoDFP']
    assert [row.name for row in again][-2:] == names
    assert len({row.search_metric for row in again if row.name in names}) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())
    applied.swap()
    assert reward(task.model) == again[-1].search_metric


def test_the_found_plan_alone_is_distilled_and_measured_before_too():
    settings = LEAST_SQUARES | dict(distillation=dict(steps=40, batch_size=2))
    task = PruningTask.build(build_resnet(18, base_channels=8), '', None, 0.4, settings)
    reward, plan = reward_of(task.model), task.plan([width + 1 for width in task.uniform_plan().widths.values()])
    found = SearchResult(plan, 0.0, History(), 0.0, {})
    rows = {row.name: row.search_metric for row in compare(task, found, [reward, None])}
    undistilled = PruningTask.build(task.model, '', None, 0.4, LEAST_SQUARES)
    expected = {row.name: row.search_metric for row in compare(undistilled, found, [reward, None])}
    before, distilled = expected.pop('AutoDFP'), rows.pop('AutoDFP')
    assert rows == expected | {'AutoDFP, before distillation': before}
    assert distilled == task.evaluate(plan, reward, final=True) != before


def test_a_bare_run_only_counts():
    task = PruningTask.build(build_resnet(18, base_channels=8), '', None, 0.6, dict(type='PruneOnly'))
    found = SearchResult(task.uniform_plan(), 0.25, History(), 0.0, {})
    (row,) = compare(task, found, [], compared=False)
    assert (row.name, row.search_metric, row.held_out_metric) == ('AutoDFP', 0.25, None)
    assert row.counts['module_params']['ratio'] <= 0.6
    assert set(row.counts) == {'module_params', 'model_params'}  # without an example there are no FLOPs to count
