"""Objectives of a whole run: what is measured for them, pruned and told, and that other weights choose anew."""

import json

import pytest
import torch
from demo_helpers import CLASSIFIER, QUICK, read
from mmengine.config import Config

from mmautodfp import runs as apis
from mmautodfp.hooks import read_settings
from mmautodfp.outputs.report import Report
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError

SETTINGS = QUICK | {'autodfp.num_episodes': 18}


def prune(work_dir, **objectives):
    weights = {f'autodfp.objectives.{name}': weight for name, weight in objectives.items()}
    apis.prune(
        CLASSIFIER, work_dir=str(work_dir), resume=(work_dir / 'search.pth').exists(), cfg_options=SETTINGS | weights
    )
    return read(work_dir / 'summary.json'), torch.load(work_dir / 'search.pth')


def test_a_run_prunes_the_plan_of_the_highest_utility_and_resumed_with_other_weights_another_one(tmp_path):
    summary, state = prune(tmp_path, metric=3.0, params=0.0, memory=1.0)
    assert summary['objectives']['weights'] == dict(metric=0.75, params=0, memory=0.25)
    rewards, outcomes = (state['history'][name].tolist() for name in ('rewards', 'outcomes'))
    assert rewards == pytest.approx([0.75 * metric + 0.25 * memory for metric, _, memory in outcomes])
    (lines,) = (path.read_text().splitlines() for path in tmp_path.glob('*/vis_data/scalars.json'))
    drawn = [row for row in map(json.loads, lines) if 'autodfp/reward' in row]
    names = [f'autodfp/{name}' for name in ('metric', 'params', 'memory')]
    assert [[row[name] for name in names] for row in drawn] == [pytest.approx(outcome) for outcome in outcomes]
    best, result = summary['best_episode'], summary['results'][-1]
    assert rewards[best] == max(rewards) == summary['utility']
    assert result['search_metric'] == pytest.approx(outcomes[best][0] * summary['objectives']['dense_metric'])
    # Of the scope of the budget, which is the part; the memory, on which there is none, of the whole model.
    assert outcomes[best][1:] == pytest.approx(
        [1 - result[name]['ratio'] for name in ('module_params', 'model_memory')]
    )
    front = {point['episode']: point for point in summary['pareto_set']}
    assert best in front
    assert [point['metric'] for point in summary['pareto_set']] == sorted(
        (point['metric'] for point in front.values()), reverse=True
    )
    for episode, point in front.items():
        assert list(point['outcome'].values()) == outcomes[episode]
        assert point['outcome']['memory'] == pytest.approx(1 - point['model_memory']['ratio'])
    page = Report(tmp_path).write().read_text()
    assert f'<td>episode {best + 1}, chosen</td>' in page
    assert page.count('<td>episode ') == len(front)

    before = state['history']['widths'].tolist()
    summary, state = prune(tmp_path, metric=0.01, params=1.0, memory=0.0)
    assert state['history']['widths'].tolist() == before
    fewest = max(range(18), key=lambda episode: 0.01 * outcomes[episode][0] + outcomes[episode][1])
    assert summary['best_episode'] == fewest != best
    plan = PruningPlan.from_json(tmp_path / 'strategy.json')
    assert list(plan.widths.values()) == before[fewest]
    assert {point['episode'] for point in summary['pareto_set']} == set(front)


def test_without_objectives_a_summary_tells_of_none_and_the_memory_is_not_measured(tmp_path):
    summary, state = prune(tmp_path)
    assert not {'objectives', 'utility', 'pareto_set'} & summary.keys()
    assert 'model_memory' not in summary['results'][-1]
    assert 'objectives' not in state


def test_wrong_objectives_are_told_before_anything_is_loaded():
    settings = Config.fromfile(CLASSIFIER).autodfp.to_dict()
    with pytest.raises(AutoDFPError, match='a set of objectives was asked for energy, which it does not know'):
        read_settings(settings | dict(objectives=dict(metric=1, energy=0.5)))
    with pytest.raises(AutoDFPError, match='only the metric is named'):
        read_settings(settings | dict(objectives=dict(metric=1)))
