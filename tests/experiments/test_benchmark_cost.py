"""What least squares costs, measured step by step."""

from mmautodfp.experiments.benchmark_cost import measure_cost

STEPS = {'groups', 'moments', 'ranking', 'allocation', 'episode', 'full'}
FEW = dict(images=dict(num_images=2, size=64))


def test_cost_is_measured_step_by_step():
    result = measure_cost('configs/demo/faster_rcnn_digits.py', FEW)
    assert set(result['seconds']) == STEPS
    assert result['peak_memory_gb']['before'] <= result['peak_memory_gb']['after']
    assert (result['target'], result['groups']) == ('backbone', 32)


def test_cost_of_a_whole_detector_is_that_of_a_plan_within_a_share_of_its_flops():
    options = {'autodfp.target': 'model'}
    result = measure_cost('configs/demo/faster_rcnn_digits_autodfp.py', FEW, cfg_options=options)
    assert set(result['seconds']) == STEPS
    assert (result['target'], result['groups']) == ('model', 42)
    assert 0.48 < result['counts']['model_flops']['ratio'] <= 0.5
