import copy

import pytest
from mmengine.config import Config

from mmautodfp.experiments import benchmark_robustness as module
from mmautodfp.experiments.bench import Bench
from mmautodfp.experiments.benchmark_robustness import CONDITIONS, benchmark_robustness, degraded
from mmautodfp.utils import AutoDFPError
from mmautodfp.zoo import Degrade

CONFIG = 'configs/demo/faster_rcnn_digits_autodfp.py'
FEW = {name: CONDITIONS[name] for name in ('clean', 'darker, 0.8')}


def test_images_are_degraded_right_after_they_are_loaded():
    loader = Config.fromfile(CONFIG).test_dataloader
    before = copy.deepcopy(loader)
    kinds = [step['type'] for step in loader.dataset.pipeline]
    settings = dict(kind='blur', strength=2.0)
    found = degraded(loader, settings).dataset.pipeline
    assert [step['type'] for step in found] == ['LoadImageFromFile', 'mmautodfp.Degrade', *kinds[1:]]
    assert found[1] == dict(type='mmautodfp.Degrade', **settings)
    wrapped = degraded(dict(dataset=dict(type='RepeatDataset', dataset=loader.dataset)), settings)
    assert wrapped['dataset']['dataset']['pipeline'] == found
    assert loader == before == degraded(loader, {})


def test_a_pipeline_that_loads_no_files_is_told_in_a_sentence():
    loader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromNDArray')]))
    with pytest.raises(AutoDFPError, match='degraded after LoadImageFromFile, but the pipeline of test_dataloader'):
        degraded(loader, dict(kind='blur', strength=2.0))


def test_all_conditions_can_be_built():
    for settings in CONDITIONS.values():
        assert not settings or Degrade(**settings).kind == settings['kind']


@pytest.mark.slow
def test_dense_and_pruned_models_see_the_same_images_and_known_figures_are_kept(small_ours, monkeypatch):
    monkeypatch.setattr(module, 'CONDITIONS', FEW)
    lines, figures = [], []

    def keep(result: dict, line: str) -> None:
        lines.append(line)
        figures.append(copy.deepcopy(result))

    found = benchmark_robustness(CONFIG, cfg_options=small_ours, report=keep)
    names = ['dense', 'pruned only, uniform', 'Neuron Merging, uniform', 'ours, allocated']
    names += ['ours, allocated, whole detector']
    assert list(found['rows']) == list(found['left']) == names
    assert all(list(row) == list(FEW) for row in found['rows'].values())
    bench = Bench(CONFIG, cfg_options=small_ours)
    assert found['rows']['dense']['clean'] == bench.reward(bench.model)
    assert found['rows']['dense']['darker, 0.8'] != found['rows']['dense']['clean']
    assert found['left']['dense'] == dict(params=1, flops=1)
    assert 0.45 < found['left'][names[-1]]['flops'] <= 0.5
    # Killed after the third of ten figures: the others are measured, and are the same.
    lines.clear()
    again = benchmark_robustness(CONFIG, cfg_options=small_ours, known=figures[2], report=keep)
    assert (len(lines), again['rows']) == (7, found['rows'])
    with pytest.raises(AutoDFPError, match=r'was measured with share=0\.5'):
        benchmark_robustness(CONFIG, 0.4, cfg_options=small_ours, known=found)
