import pytest
from conftest import REPO

from mmautodfp.experiments.benchmark_kernels import benchmark_kernels, benchmark_latency, benchmark_overhead
from mmautodfp.utils import AutoDFPError


def test_the_loop_that_the_kernels_are_timed_against_computes_the_same():
    result = benchmark_kernels(channels=24, rows=12, repeat=1)
    assert result['largest_difference'] < 1e-4
    assert result['ratio'] == result['seconds']['loops'] / result['seconds']['kernels']


def test_pruned_models_that_are_timed_keep_to_flops_and_divisor():
    result = benchmark_latency(REPO / 'configs/demo/faster_rcnn_digits_autodfp.py', repeat=1, size=(32, 32))
    dense, plain, eights = (result['models'][name] for name in ('dense', 'divisor 1', 'divisor 8'))
    assert dense['ratio'] == dense['predicted'] == 1
    for row in (plain, eights):
        assert row['flops_ratio'] <= 0.5
        assert row['predicted'] < 1
        assert row['seconds'] > 0
    assert all(k % 8 == 0 or k == n for k, n in zip(eights['widths'], dense['widths'], strict=True))
    assert any(k % 8 for k in plain['widths'])


def test_a_share_of_flops_that_cannot_be_reached_is_refused():
    with pytest.raises(AutoDFPError, match='can only reach'):
        benchmark_latency(REPO / 'configs/demo/faster_rcnn_digits_autodfp.py', repeat=1, size=(32, 32), ratio=0.01)


def test_what_the_agent_costs_is_what_the_evaluations_leave_of_an_episode():
    result = benchmark_overhead(REPO / 'configs/demo/vgg_digits_autodfp.py', episodes=4)
    seconds = result['seconds']
    assert 0 < seconds['evaluation'] < seconds['episode']
    assert result['overhead'] > 0
