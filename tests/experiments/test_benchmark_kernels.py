from mmautodfp.experiments.benchmark_kernels import benchmark_kernels


def test_the_loop_that_the_kernels_are_timed_against_computes_the_same():
    result = benchmark_kernels(channels=24, rows=12, repeat=1)
    assert result['largest_difference'] < 1e-4
    assert result['ratio'] == result['seconds']['loops'] / result['seconds']['kernels']
