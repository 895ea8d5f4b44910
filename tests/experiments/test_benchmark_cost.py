"""What least squares costs, measured step by step."""

import pytest

from mmautodfp.experiments.benchmark_cost import measure_cost
from mmautodfp.utils import AutoDFPError

STEPS = {'groups', 'moments', 'ranking', 'allocation', 'episode', 'full'}
FEW = dict(num_images=2, size=64)


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


def test_cost_is_that_of_the_configs_own_settings():
    ours = 'autodfp.reconstructor.'
    few = {f'{ours}images.num_images': 4, f'{ours}images.batch_size': 2}
    options = few | {f'{ours}refinement.positions': 64, f'{ours}distillation.steps': 2, f'{ours}sensitivity': 2}
    result = measure_cost('configs/demo/fcos_digits_whole_autodfp.py', dict(size=64), options)
    assert set(result['seconds']) == STEPS | {'distilled'}
    assert result['settings']['images'] == dict(num_images=4, size=64, batch_size=2)
    assert result['settings']['distillation'] == dict(steps=2)


def test_cost_is_that_of_the_groups_and_widths_that_the_config_allows():
    config = 'configs/demo/faster_rcnn_digits_autodfp.py'
    assert measure_cost(config, FEW, {'autodfp.residual_streams': True})['groups'] > 32
    for setting, message in (({'p_min': 0.9}, 'lower p_min$'), ({'channel_divisor': 64}, 'or channel_divisor$')):
        with pytest.raises(AutoDFPError, match=f'can only reach .* {message}'):
            measure_cost(config, FEW, {f'autodfp.{name}': value for name, value in setting.items()})


def test_cost_of_a_config_that_names_no_size_is_measured_on_images_of_the_synthetic_ones():
    steps = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
    flops, quick = [], dict(type='SyntheticLeastSquares', sensitivity=0, recalibration=0, refinement=False)
    options = {'autodfp.target': 'model', 'autodfp.reconstructor': quick, 'test_dataloader.dataset.pipeline': steps}
    for size in (64, 128):
        counts = measure_cost('configs/demo/fcos_digits_autodfp.py', FEW | dict(size=size), options)['counts']
        flops.append(counts['model_flops']['count'])
    assert flops[1] == pytest.approx(4 * flops[0], rel=0.05)


@pytest.mark.parametrize(('images', 'options'), [(FEW, {'images': 3}), (dict(size=0), {})])
def test_images_that_are_none_are_told(images, options):
    options = {f'autodfp.reconstructor.{name}': value for name, value in options.items()}
    with pytest.raises(AutoDFPError, match='images'):
        measure_cost('configs/demo/fcos_digits_whole_autodfp.py', images, options)


def test_what_is_no_detector_is_told():
    with pytest.raises(AutoDFPError, match=r'vgg_digits\.py was to be measured with .* but it has no backbone; name a'):
        measure_cost('configs/demo/vgg_digits.py')
