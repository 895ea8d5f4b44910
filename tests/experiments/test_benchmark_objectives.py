import pytest

from mmautodfp.experiments.benchmark_objectives import benchmark_objectives, preferences
from mmautodfp.utils import AutoDFPError

CONFIG = 'configs/demo/vgg_digits_autodfp.py'


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
    with pytest.raises(AutoDFPError, match='asked for episodes=4; it must be greater than or equal to 5'):
        benchmark_objectives(CONFIG, episodes=4)
