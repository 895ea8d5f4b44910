import itertools

import numpy as np
import pytest

from mmautodfp.experiments.benchmark_objectives import benchmark_objectives, hypervolume, preferences
from mmautodfp.search import pareto_set
from mmautodfp.utils import AutoDFPError

CONFIG = 'configs/demo/vgg_digits_autodfp.py'


def points(count, size, seed=0, steps=None):
    """Random outcomes [count, size], a tenth of them negative; with ``steps`` on a grid, so that some are equal."""
    values = np.random.default_rng(seed).random((count, size))
    return ((np.round(values * steps) / steps if steps else values) - 0.1).tolist()


@pytest.mark.parametrize('size', [1, 2, 3, 4])
@pytest.mark.parametrize('steps', [None, 3])
def test_the_hypervolume_is_that_of_inclusion_and_exclusion(size, steps):
    for seed in range(4):
        outcomes = points(7, size, seed, steps)
        volume = 0.0
        for count in range(1, 8):
            for boxes in itertools.combinations(outcomes, count):
                common = np.clip(np.min(boxes, 0), 0, None).prod()
                volume += common if count % 2 else -common
        assert hypervolume(outcomes) == pytest.approx(volume, abs=1e-12)


def test_beaten_points_add_no_volume_and_neither_do_those_at_or_below_0():
    outcomes = points(40, 3)
    front = [outcomes[index] for index in pareto_set(outcomes)]
    assert len(front) < 40
    assert hypervolume(front) == pytest.approx(hypervolume(outcomes), rel=1e-12)
    assert hypervolume([[2.0, -0.1], [0.0, 5.0]]) == 0


def test_weighted_searches_reach_evenly_from_the_costs_to_the_metric():
    found = preferences(dict(metric=2, params=1.5, flops=0.5))
    assert [one['metric'] for one in found] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    for one in found:
        assert sum(one.values()) == pytest.approx(1)
        assert one['params'] == pytest.approx(3 * one['flops'])


@pytest.mark.slow
def test_all_ways_get_as_many_evaluations_and_are_judged_alike():
    told = []
    found = benchmark_objectives(CONFIG, episodes=12, seeds=2, tell=told.append)
    assert list(found['ways']) == ['conditioned', 'asked', 'weighted', 'random', 'frontier']
    assert found['objectives'] == dict(metric=0.5, params=0.25, flops=0.25)
    assert (len(told), found['search_images'], found['held_out_images']) == (9, 300, 497)
    for name, way in found['ways'].items():
        assert all(10 <= count <= 12 for count in way['evaluations'])
        assert len(way['search']) == (1 if name == 'frontier' else 2)
        assert way['held_out_mean'] == pytest.approx(sum(way['held_out']) / len(way['held_out']))
        assert all(0 < value < 1 for value in (*way['search'], *way['held_out']))
    # Warm-up is all that twelve episodes allow: until it learns, the agent plays random plans.
    assert found['ways']['conditioned']['search'] == found['ways']['random']['search']


def test_impossible_requests_are_refused():
    with pytest.raises(AutoDFPError, match='but params, flops of the objectives all weigh 0; give one of the costs a'):
        preferences(dict(metric=1, params=0, flops=0))
    with pytest.raises(AutoDFPError, match='asked for episodes=4; it must be greater than or equal to 5'):
        benchmark_objectives(CONFIG, episodes=4)
