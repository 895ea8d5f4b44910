"""What least squares costs, measured step by step."""

from mmautodfp.experiments.benchmark_cost import measure_cost


def test_cost_is_measured_step_by_step():
    result = measure_cost('configs/demo/faster_rcnn_digits.py', dict(images=dict(num_images=2, size=64)))
    assert set(result['seconds']) == {'moments', 'ranking', 'allocation', 'episode', 'full'}
    assert result['peak_memory_gb']['before'] <= result['peak_memory_gb']['after']
