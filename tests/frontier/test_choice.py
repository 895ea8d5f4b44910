"""Choosing a point: against looking at all of them, and what is said where there is none."""

import itertools
import re
from dataclasses import replace

import pytest
from chain import brightness
from test_frontier import made_up, make_task

from mmautodfp.frontier import choose, frontier
from mmautodfp.utils import AutoDFPError

METRICS = [0.80, 0.78, 0.79, 0.60, 0.30]  # at 100, 80, 60, 40, 20 %


@pytest.mark.parametrize(
    ('limits', 'index'),
    [
        (dict(max_flops='100%'), 0),
        (dict(max_flops='90%'), 2),  # better than the wider one at 80 %
        (dict(max_flops='600'), 2),
        (dict(max_params='0.5k'), 3),
        (dict(max_latency='100ms'), 0),
        (dict(max_latency='59ms'), 3),
        (dict(max_latency='60%'), 2),
        (dict(min_metric='0.78'), 2),  # the cheapest
        (dict(min_metric=0.3), 4),
        (dict(min_metric='75%'), 3),
        (dict(min_metric='75%', max_flops='100%'), 0),  # the best again
        (dict(max_flops='60%', max_latency='45ms'), 3),
        (dict(max_flops='60%', max_params='70%', min_metric='0.5'), 2),
    ],
)
def test_the_best_point_within_all_limits_is_taken_and_with_a_least_metric_alone_the_cheapest(limits, index):
    assert choose(made_up(METRICS), limits).index == index


def test_a_point_that_is_pruned_comes_with_what_a_search_sees_of_the_dense_model():
    task, found = make_task(), frontier(make_task(), brightness, num_points=3)
    choice = choose(found, dict(max_flops='90%'))
    result = choice.found_for(task)
    assert (result.plan, result.reward, len(result.history)) == (found.plan(choice.index), choice.point.metric, 0)
    task.apply(result.plan, final=True)
    assert task.layer_states == make_task().layer_states
    with pytest.raises(AutoDFPError, match=r'it\.json was measured with other weights than what is asked for now'):
        choose(found, dict(max_flops='90%'), 'it.json').found_for(make_task(seed=1))


def test_held_out_images_choose_nothing():
    for held_out in itertools.permutations([0.1, 0.2, 0.3, 0.8, 0.9]):
        assert choose(made_up(METRICS, held_out), dict(max_flops='90%')).index == 2
        assert choose(made_up(METRICS, held_out), dict(min_metric='0.6')).index == 3


def test_of_points_with_the_same_metric_the_narrowest_is_taken():
    assert choose(made_up([0.8, 0.8, 0.8, 0.7]), dict(max_flops='100%')).index == 2


def test_memory_is_a_limit_where_it_is_known():
    known = made_up([0.8, 0.7, 0.6])
    with pytest.raises(AutoDFPError, match=r'--max-memory was asked for, but .* tell params, flops, latency alone'):
        choose(known, dict(max_memory='400MB'))
    for place, (point, count) in enumerate(zip(known.points, (500e6, 400e6, 300e6), strict=True)):
        costs = point.costs | dict(model_memory=dict(count=int(count), ratio=count / 500e6))
        known.points[place] = replace(point, costs=costs)
    assert choose(known, dict(max_memory='400MB')).index == 1
    assert choose(known, dict(max_memory='60%')).index == 2


@pytest.mark.parametrize(
    ('limits', 'message'),
    [
        (dict(max_flops='100'), r'--max-flops 100 was asked for, but the points of it\.json reach from 200 to 1000'),
        (dict(max_flops='10%'), r'--max-flops 10% was asked for, but .* reach from 20% to 100%; ask for something in'),
        (dict(max_latency='19ms'), 'reach from 20ms to 100ms'),
        (dict(min_metric='0.81'), r'--min-metric 0.81 was asked for, but .* reach from 0.3000 to 0.8000'),
        (dict(min_metric='101%'), 'reach from 37.50% to 100.00%'),
        (dict(max_flops='40%', min_metric='0.7'), 'it.json within --max-flops 40% reach from 0.3000 to 0.6000'),
        (dict(max_flops='40ms'), 'a limit of .40ms. was asked for the flops'),
        (dict(min_metric='much'), '--min-metric much was asked for; it takes a number such as 0.37'),
        (dict(best='yes'), 'a point was to be chosen by best, but there are max_params, max_flops, max_latency'),
        ({}, 'a point was to be chosen from it.json, but no limit was named; name one of --max-params'),
    ],
)
def test_a_limit_that_cannot_be_met_or_read_ends_in_a_sentence(limits, message):
    with pytest.raises(AutoDFPError, match=message):
        choose(made_up(METRICS), limits, 'it.json')


@pytest.mark.parametrize('dense', [0.007, 0.36996, 0.56])
def test_the_most_that_is_told_of_a_metric_can_be_asked_for(dense):
    known = made_up([dense, 0.98996 * dense])
    for number, suffix in (('2', ''), ('200%', '%')):
        with pytest.raises(AutoDFPError) as told:
            choose(known, dict(min_metric=number))
        most = re.search(rf'to ([\d.]+{suffix});', str(told.value))[1]
        assert choose(known, dict(min_metric=most)).index == 0


def test_of_a_metric_that_is_not_above_0_there_is_no_share():
    with pytest.raises(AutoDFPError, match=r'but of a metric of -0.5, which the dense model has, there is no share'):
        choose(made_up([-0.5, -0.6]), dict(min_metric='90%'))


@pytest.mark.parametrize('measured', [0, 3])
def test_of_a_frontier_that_is_not_finished_nothing_is_chosen(measured):
    begun = made_up(METRICS)
    del begun.points[measured:]
    with pytest.raises(AutoDFPError, match=f'of its 5 points {measured} have been measured; the same command'):
        choose(begun, dict(max_flops='100%'))
