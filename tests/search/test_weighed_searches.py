"""Searches for several objectives: what they choose, how they are gone on with, and what ranks agree on."""

import itertools
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from chain import IMAGES, brightness
from gloo_ranks import on_ranks
from test_objectives import brute_force
from test_run import AGENT, Counted, Listed, episodes_of, make_task, run

from mmautodfp.utils import AutoDFPError

ACCURATE, CHEAP = dict(metric=1, params=0.01), dict(metric=0.01, params=1)


DENSE = brightness(make_task().model)


def fidelity(model) -> float:
    """At most 0.5, which the dense model has."""
    return 0.5 * math.exp(-50 * abs(brightness(model) - DENSE))


def weigh(task, result, objectives):
    """Slowly: each episode's utility, from its plan alone."""
    total, found = sum(objectives.values()), []
    for widths, lams in zip(result.history.widths, result.history.lams, strict=True):
        metric = task.evaluate(task.env.plan(widths, lams), fidelity) / 0.5
        cost = task.costs.params['module']
        saved = 1 - cost(widths) / cost(task.dense_widths)
        found.append((objectives['metric'] * metric + objectives['params'] * saved) / total)
    return found


@pytest.mark.parametrize('agent', [AGENT, dict(type='RandomSearch'), dict(type='CMAES')], ids=lambda one: one['type'])
def test_the_best_plan_has_the_highest_utility_within_the_limit(agent):
    task, told = make_task(), []
    objectives = dict(metric=1, params=0.5)
    result = run(task, 30, fidelity, objectives=objectives, agent=agent, on_episode=told.append)
    history = result.history
    assert history.rewards == pytest.approx(weigh(task, result, objectives), abs=1e-12)
    assert result.episode == int(np.argmax(history.rewards))
    assert result.reward == max(history.rewards)
    assert result.metric == task.evaluate(result.plan, fidelity) == history.stages[result.episode][-1]
    assert result.pareto == brute_force(history.outcomes)
    assert result.episode in result.pareto
    assert all(map(task.constraint.allows, history.widths))
    assert [(one.scalars['metric'], one.scalars['params']) for one in told] == list(map(tuple, history.outcomes))


def test_without_objectives_there_are_no_outcomes_and_the_agent_sees_no_preference(tmp_path):
    path = tmp_path / 'search.pth'
    result = run(make_task(), 9, checkpoint=path)
    assert (result.history.outcomes, result.pareto, result.metric) == ([], [], result.reward)
    kept = torch.load(path)
    assert kept.keys() == {'format', 'identity', 'rankings', 'start', 'curves', 'agent', 'history'}
    assert kept['history'].keys() == {'rewards', 'widths', 'lams', 'seconds', 'stages'}
    assert kept['agent']['buffer']['rewards'].shape == (15,)
    assert kept['agent']['actor']['net.0.weight'].shape == (16, 9)


def test_a_plain_agent_draws_the_same_numbers_whatever_is_set_for_preferences():
    plain, set_otherwise = (run(make_task(), 9, agent=dict(AGENT, drawn_preferences=share)) for share in (0.5, 1.0))
    assert episodes_of(plain) == episodes_of(set_otherwise)


def test_plans_from_the_limit_down_to_the_least_are_played_first(tmp_path):
    task = make_task(p_min=0.1)
    history = run(task, 12, fidelity, objectives=CHEAP, opening_points=5).history
    nested = history.widths[4:9]
    assert nested == task.nested_widths(5, task.constraint.share)[0]
    costs = [task.costs.params['module'](widths) for widths in nested]
    least = task.costs.params['module'](task.constraint.min_widths)
    assert nested[-1] == task.constraint.min_widths
    # In even steps, each as near as whole channels come to it from below.
    for step, cost in enumerate(costs):
        limit = task.constraint.budgets[0].limit
        bound = limit - step * (limit - least) / 4
        assert bound - 100 < cost <= bound + 1
    assert all(a >= b for wider, narrower in itertools.pairwise(nested) for a, b in zip(wider, narrower, strict=True))
    plain = run(make_task(p_min=0.1), 12, fidelity, objectives=CHEAP, opening_points=0).history
    assert plain.widths[:4] == history.widths[:4]
    assert plain.widths[4:9] != nested


def test_error_curves_are_computed_once_and_a_resumed_search_keeps_its_own(monkeypatch):
    asked, known = [], Listed.error_curves
    monkeypatch.setattr(Listed, 'error_curves', lambda self, *of: asked.append(of) or known(self, *of))
    task = make_task()
    run(task, 2, fidelity, objectives=CHEAP)
    assert len(asked) == 1
    curves = [curve.flip(0) for curve in task.error_curves]
    task.env.set_channels(task.rankings, task.allocation, curves)
    task.follow_env()
    task.nested_widths(3)
    assert task.error_curves is curves
    assert len(asked) == 1


def test_without_an_allocated_plan_a_resumed_search_opens_with_the_same_plans(tmp_path):
    settings, make = dict(objectives=CHEAP, opening_points=5), lambda: make_task(allocate=False, p_min=0.1)
    path = tmp_path / 'search.pth'
    whole = run(make(), 9, fidelity, **settings)
    run(make(), 5, fidelity, checkpoint=path, **settings)
    task = make()
    assert episodes_of(run(task, 9, fidelity, checkpoint=path, resume=True, **settings)) == episodes_of(whole)
    assert task.nested_widths(5) == make().nested_widths(5)


@pytest.mark.parametrize('stopped_after', [1, 8, 17, 20])
def test_a_killed_and_resumed_search_ends_as_one_that_ran_through(tmp_path, stopped_after):
    path = tmp_path / 'search.pth'
    whole = run(make_task(), 24, Counted(fidelity), objectives=CHEAP)
    with pytest.raises(KeyboardInterrupt):
        # The first call is of the dense model.
        run(make_task(), 24, Counted(fidelity, until=1 + stopped_after), objectives=CHEAP, checkpoint=path)
    reward = Counted(fidelity)
    result = run(make_task(), 24, reward, objectives=CHEAP, checkpoint=path, resume=True)
    assert reward.calls == 24 - stopped_after
    assert episodes_of(result) == episodes_of(whole)
    assert result.history.outcomes == whole.history.outcomes
    assert (result.plan, result.reward, result.pareto) == (whole.plan, whole.reward, whole.pareto)
    torch.load(path, weights_only=True)


def test_other_weights_choose_another_plan_and_nothing_is_evaluated_again(tmp_path):
    path, reward, task = tmp_path / 'search.pth', Counted(fidelity), make_task()
    first = run(task, 20, reward, objectives=ACCURATE, checkpoint=path)
    assert reward.calls == 21
    again = run(task, 20, reward, objectives=CHEAP, checkpoint=path, resume=True)
    assert reward.calls == 21
    assert again.history.rewards == pytest.approx(weigh(task, first, CHEAP), abs=1e-12)
    assert again.episode == int(np.argmax(weigh(task, first, CHEAP))) != first.episode
    assert again.plan == task.env.plan(first.history.widths[again.episode], first.history.lams[again.episode])
    assert (again.history.outcomes, again.pareto) == (first.history.outcomes, first.pareto)
    assert torch.load(path)['history']['rewards'].tolist() == again.history.rewards
    # Further episodes are played with the networks and the buffer that there are.
    longer = run(task, 24, reward, objectives=CHEAP, checkpoint=path, resume=True)
    assert reward.calls == 25
    assert longer.history.widths[:20] == first.history.widths


@pytest.mark.parametrize('others', [dict(metric=1, params=1, flops=0), None])
def test_other_objectives_are_not_gone_on_with(tmp_path, others):
    path = tmp_path / 'search.pth'
    run(make_task(example_input=IMAGES), 2, fidelity, objectives=CHEAP, checkpoint=path)
    asked = [*others] if others else None
    message = rf"was saved with objectives=\['metric', 'params'\], but objectives={re.escape(repr(asked))} is asked"
    with pytest.raises(AutoDFPError, match=message):
        run(make_task(example_input=IMAGES), 4, fidelity, objectives=others, checkpoint=path, resume=True)


def test_finalists_are_judged_by_the_utility_with_the_judges_metric(tmp_path):
    def judge(model):
        return 0.8 * fidelity(model) ** 2  # 0.2 of the dense model

    path, task, objectives = tmp_path / 'search.pth', make_task(), dict(metric=1, params=0.6)
    judged = Counted(judge)
    result = run(task, 20, fidelity, objectives=objectives, judge=judged, finalists=5, checkpoint=path)
    assert judged.calls == 5 + 1
    cost = task.costs.params['module']
    for one in result.finalists:
        widths, lams = result.history.widths[one.episode], result.history.lams[one.episode]
        share = task.evaluate(task.env.plan(widths, lams), judge, final=True) / 0.2
        assert one.metric == pytest.approx((share + 0.6 * (1 - cost.ratio(widths))) / 1.6)
        assert one.reward == result.history.rewards[one.episode]
    assert [one.chosen for one in result.finalists] == [
        one.metric == max(other.metric for other in result.finalists) for one in result.finalists
    ]
    assert result.metric == result.history.stages[result.episode][-1]
    # With other weights only plans that were no finalists are judged.
    again = run(task, 20, fidelity, objectives=CHEAP, judge=judged, finalists=5, checkpoint=path, resume=True)
    new = {one.episode for one in again.finalists} - {one.episode for one in result.finalists}
    assert judged.calls == 6 + len(new)


def weighed_on(rank, path):
    first = run(make_task(), 8, fidelity, objectives=ACCURATE, checkpoint=path)
    again = run(make_task(), 8, fidelity, objectives=CHEAP, checkpoint=path, resume=True)
    task, told = make_task(), (first, again)
    return [(one.history.rewards, one.history.outcomes, one.episode, one.pareto) for one in told], [
        weigh(task, first, objectives) for objectives in (ACCURATE, CHEAP)
    ]


@pytest.mark.slow
def test_ranks_agree_on_what_plans_are_worth(tmp_path):
    first, second = on_ranks(partial(weighed_on, path=tmp_path / 'search.pth'))
    assert first == second
    for (rewards, _, episode, _), expected in zip(*first, strict=True):
        assert rewards == pytest.approx(expected, abs=1e-12)
        assert episode == int(np.argmax(rewards))
