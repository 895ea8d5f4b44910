"""A frontier of a chain of small convolutions, with plain functions as metrics."""

import csv
import itertools
import json
import logging
from dataclasses import replace

import pytest
import torch
from chain import IMAGES, brightness, make_chain
from torch import nn

from mmautodfp.api import PruningTask, frontier
from mmautodfp.frontier import Frontier, Point
from mmautodfp.frontier import measure as measuring
from mmautodfp.reconstruction import PruneOnly
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_json, save_json


class Finalized(PruneOnly):
    """Says which widths it would choose, or not; its full pass doubles the last bias."""

    def __init__(self, tells=True):
        super().__init__()
        self.tells = tells

    def error_curve(self, group, ranking):
        return torch.linspace(1, 0, group.num_channels + 1) ** 2 if self.tells else None

    def finalize(self, module, plan, restore):
        layer = restore.remember(module[-1])
        layer._parameters['bias'] = nn.Parameter(layer.bias * 2)


def make_task(seed=0, limit=0.6, tells=True, example=IMAGES, **settings) -> PruningTask:
    return PruningTask.build(make_chain(seed), '', example, limit, Finalized(tells), **settings)


@torch.no_grad()
def contrast(model) -> float:
    return model(IMAGES).std().item()


def made_up(metrics, held_out=None) -> Frontier:
    """A frontier of one group, whose points cost 100, 80, 60, ... of everything; the dense latency is 100 ms."""
    points = []
    for step, metric in enumerate(metrics):
        ratio = 1 - step / 5
        costs = {f'model_{name}': dict(count=round(1000 * ratio), ratio=ratio) for name in ('params', 'flops')}
        costs['latency'] = dict(count=round(1e8 * ratio), ratio=ratio)
        points.append(Point([10 - 2 * step], metric, held_out and held_out[step], costs, 1.0))
    path = [point.widths for point in points]
    return Frontier(['conv'], [list(range(10))], path, dict(weights='a'), {}, points)


@pytest.mark.parametrize('tells', [True, False])
def test_points_are_nested_and_evenly_spread_and_each_is_what_its_plan_is_worth_after_the_full_pass(tells, tmp_path):
    task = make_task(tells=tells)
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    found = frontier(task, brightness, contrast, 6, tmp_path / 'frontier.json')
    assert found.complete
    assert len(found.points) == 6
    assert found.about['allocated'] is tells
    cost, least = task.costs.params['module'], task.constraint.min_widths
    for step, (point, widths) in enumerate(zip(found.points, found.path, strict=True)):
        bound = cost(least) + (1 - step / 5) * (cost(cost.dense) - cost(least))
        assert point.widths == widths
        assert bound - 0.15 * cost(cost.dense) < cost(widths) <= bound
    for wider, narrower in itertools.pairwise(found.path):
        assert all(a >= b for a, b in zip(wider, narrower, strict=True))
        assert wider != narrower
    assert found.path[0] == [8, 12, 10]
    assert (found.points[0].metric, found.points[0].held_out) == (brightness(task.model), contrast(task.model))
    for index, point in enumerate(found.points[1:], 1):
        with task.apply(found.plan(index), final=True):
            assert (brightness(task.model), contrast(task.model)) == (point.metric, point.held_out)
            count = sum(parameter.numel() for parameter in task.model.parameters())
        assert point.costs['model_params']['count'] == count
        assert point.costs['model_flops']['count'] == task.costs.flops['model'](point.widths)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())


def test_error_curves_of_a_task_are_not_asked_for_again(monkeypatch):
    task = make_task()
    monkeypatch.setattr(Finalized, 'error_curve', None)
    assert frontier(task, brightness, num_points=3).about['allocated']


def test_files_hold_what_was_measured(tmp_path):
    file = tmp_path / 'frontier.json'
    found = frontier(make_task(), brightness, contrast, 6, file, dict(metric='brightness'))
    again = Frontier.load(file)
    assert again == found
    assert all(again.plan(index) == found.plan(index) for index in range(6))
    assert [row['dominated'] for row in load_json(file, 'it')['points']] == found.dominated()
    rows = list(csv.DictReader((tmp_path / 'frontier.csv').open()))
    assert [float(row['metric']) for row in rows] == [point.metric for point in found.points]
    assert [int(row['flops']) for row in rows] == [point.costs['model_flops']['count'] for point in found.points]
    assert [bool(int(row['dominated'])) for row in rows] == found.dominated()


def test_without_an_example_neither_flops_nor_latency_are_told():
    found = frontier(make_task(example=None), brightness, num_points=3)
    assert found.costs() == ['params']
    assert {point.held_out for point in found.points} == {None}


def test_memory_is_told_where_the_budget_is_on_it():
    task = make_task(limit=dict(type='MemoryBudget'))
    found = frontier(task, brightness, num_points=4)
    assert found.costs() == ['params', 'flops', 'latency', 'memory']
    held = [point.cost('memory')['count'] for point in found.points]
    assert held == [task.costs.memory['model'](widths) for widths in found.path]
    assert held == sorted(held, reverse=True)


def test_a_latency_is_the_dense_one_times_the_share_that_was_measured():
    found = frontier(make_task(), brightness, num_points=4)
    dense, *others = (point.cost('latency') for point in found.points)
    assert dense['ratio'] == 1
    assert all(cost['count'] == round(cost['ratio'] * dense['count']) for cost in others)


@pytest.mark.parametrize('after', [0, 1, 4])
def test_what_was_measured_before_an_interruption_is_not_measured_again(tmp_path, monkeypatch, after):
    file, real, calls = tmp_path / 'frontier.json', measuring._measure, []

    def stop(*arguments):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(measuring, '_measure', stop)
    with pytest.raises(KeyboardInterrupt):
        frontier(make_task(), brightness, contrast, 6, file)
    assert file.exists() == (after > 0)
    kept = Frontier.load(file).points if after else []
    assert len(kept) == after
    calls.clear()
    monkeypatch.setattr(measuring, '_measure', lambda *arguments: calls.append(arguments) or real(*arguments))
    found = frontier(make_task(), brightness, contrast, 6, file)
    assert len(calls) == 6 - after
    assert found.points[:after] == kept
    whole = frontier(make_task(), brightness, contrast, 6)
    assert [(p.metric, p.held_out, p.widths) for p in found.points] == [
        (p.metric, p.held_out, p.widths) for p in whole.points
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['frontier.csv', 'frontier.json']  # nothing half-written


@pytest.mark.parametrize(
    ('task', 'settings', 'name'),
    [
        (dict(seed=1), {}, 'weights'),
        (dict(tells=False), {}, 'reconstructor'),
        (dict(channel_divisor=4), {}, 'channel_divisor'),
        (dict(limit=dict(type='FlopBudget')), {}, 'budget'),
        (dict(example=IMAGES[:1]), {}, 'input'),
        ({}, dict(num_points=5), 'number_of_points'),
        ({}, dict(reward=contrast), 'reward'),
        ({}, dict(held_out=None), 'held_out_images'),
    ],
)
def test_an_old_file_of_something_else_is_refused_and_left_as_it_is(tmp_path, task, settings, name):
    file = tmp_path / 'frontier.json'
    usual = dict(reward=brightness, held_out=contrast, num_points=6, file=file)
    frontier(make_task(), **usual)
    before = file.read_bytes()
    with pytest.raises(AutoDFPError, match=f'frontier.json was measured with other .*{name.replace("_", " ")}'):
        frontier(make_task(**task), **usual | settings)
    assert file.read_bytes() == before


def test_where_the_limit_lies_does_not_matter(tmp_path):
    file = tmp_path / 'frontier.json'
    found = frontier(make_task(limit=0.9), brightness, None, 6, file)
    assert frontier(make_task(limit=0.5), brightness, None, 6, file) == found


def test_a_point_is_dominated_if_another_costs_no_more_and_is_better():
    assert made_up([0.9, 0.9, 0.7, 0.8, 0.1]).dominated() == [True, False, True, False, False]
    slow = made_up([0.9, 0.8])
    point = slow.points[1]
    slow.points[1] = replace(point, metric=0.95, costs=point.costs | dict(latency=dict(count=200_000_000, ratio=2.0)))
    assert slow.dominated() == [True, False]  # a latency is measured: chance may have made it so


def test_bad_requests_end_in_a_sentence(tmp_path):
    with pytest.raises(
        AutoDFPError, match='a frontier was asked for num_points=1; it must be greater than or equal to 2'
    ):
        frontier(make_task(), brightness, num_points=1)
    with pytest.raises(AutoDFPError, match='point 0 of the frontier was rewarded with nan, but a reward is a'):
        frontier(make_task(), lambda model: float('nan'))
    with pytest.raises(AutoDFPError, match='there is no such file'):
        Frontier.load(tmp_path / 'absent.json')
    with pytest.raises(AutoDFPError, match=r'kept in .*frontier\.csv, which is the name of its table; let it end in'):
        frontier(make_task(), brightness, num_points=2, file=tmp_path / 'frontier.csv')
    for content, found in (([], 'none'), (dict(format=1, groups={}), 'none'), (dict(format=9, path=[]), 'format 9')):
        save_json(content, tmp_path / 'other.json')
        with pytest.raises(AutoDFPError, match=f'expected to be a frontier of format 1, found {found}; name the'):
            Frontier.load(tmp_path / 'other.json')
    save_json(dict(format=1, path=[[1]]), tmp_path / 'other.json')
    with pytest.raises(AutoDFPError, match='lacks what a frontier holds'):
        Frontier.load(tmp_path / 'other.json')


def give_widths(made, widths):
    made['path'][1] = made['points'][1]['widths'] = widths


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda made: made.update(about='x'), r"other.json was asked for about='x'; it must be a dict"),
        (lambda made: made.update(rankings=['x']), r"rankings=\['x'\]; item 1 of it must be a list"),
        (lambda made: made['points'][1].update(metric=float('nan')), 'a point of .* must be a finite number'),
        (lambda made: made['points'][1].update(metric=None), 'a point of .*metric=None; it must be a number'),
        (lambda made: made['points'][1]['costs'].update(model_params='x'), 'a point of .* must be a dict'),
        (
            lambda made: made['points'][1]['costs'].update(model_params={}),
            "lacks what a frontier holds: KeyError 'count'",
        ),
        (lambda made: made['points'][1].update(widths=[1]), 'other.json holds points of other widths than its path'),
        (lambda made: made['path'].__setitem__(1, [-1, 3, 2]), 'path=.*must be greater than or equal to 1'),
        (lambda made: give_widths(made, [9, 3, 2]), 'is damaged: its path has widths that its rankings do not allow; '),
        (lambda made: give_widths(made, [2, 3]), 'its path has widths that its rankings do not allow; delete it, and'),
        (lambda made: made.update(path=[], points=[]), 'is damaged: its path does not begin with all channels; delete'),
        (lambda made: made['groups'].pop(), 'is damaged: it has 2 groups and 3 rankings; delete it, and measure'),
        (
            lambda made: made['groups'].__setitem__(0, 'x'),
            'its groups are not those that its points were measured with',
        ),
        (lambda made: made['rankings'].pop(), 'is damaged: it has 3 groups and 2 rankings; delete it, and measure'),
        (
            lambda made: made['rankings'][0].__setitem__(0, -1),
            'is damaged: a ranking does not name each channel of its group once; ',
        ),
        (lambda made: made['rankings'][0].pop(), 'is damaged: (a ranking does not name|its path does not begin)'),
        (
            lambda made: made['points'][1].update(costs={}),
            'some of its points lack costs that others have, or model_params',
        ),
        (
            lambda made: [point.update(costs={}) for point in made['points']],
            'lack costs that others have, or model_params',
        ),
        (lambda made: made['points'][1]['costs'].pop('latency'), 'is damaged: some of its points lack costs'),
        (lambda made: made['about'].pop('allocated'), r'is damaged: about\.allocated is missing'),
        (
            lambda made: made['identity'].update(further='x'),
            r'is damaged: identity\.further is no dict; delete',
        ),
    ],
)
def test_files_that_were_changed_by_hand_end_in_a_sentence(change, message, tmp_path):
    file = tmp_path / 'other.json'
    frontier(make_task(), brightness, num_points=2, file=file)
    made = json.loads(file.read_text())
    assert Frontier.load(file).complete
    change(made)
    file.write_text(json.dumps(made))
    with pytest.raises(AutoDFPError, match=message):
        Frontier.load(file)


def test_progress_and_what_is_left_are_told(caplog):
    logger = logging.getLogger('told')
    with caplog.at_level(logging.INFO, 'told'):
        frontier(make_task(), brightness, contrast, 3, None, dict(metric='brightness'), logger)
    lines = [line for line in caplog.messages if line.startswith('point')]
    assert [line.partition('  ')[0] for line in lines] == ['point 1/3', 'point 2/3', 'point 3/3']
    assert all('brightness' in line and 'held-out' in line and 'eta' in line for line in lines)
    assert lines[-1].endswith('eta 0:00')
