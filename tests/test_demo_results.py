"""The figures of the README: what `make demo` wrote is kept in configs/demo/results and measured again here."""

import hashlib

import pytest
from conftest import REPO
from mmengine.config import Config
from mmengine.runner import Runner

from mmautodfp.experiments.sweep import markdown
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, SimilarityReconstructor
from mmautodfp.surgery import PruningPlan, apply_plan
from mmautodfp.utils.fileio import load_json
from mmautodfp.utils.registry import HOOKS, build

RESULTS = REPO / 'configs/demo/results'


@pytest.fixture(scope='module')
def recorded() -> dict[str, dict]:
    summary = load_json(RESULTS / 'summary.json', 'the recorded summary')
    assert summary['episodes'] >= 100
    assert summary['budget'] == dict(type='ParamBudget', preserve_ratio=0.7, scope='module')
    assert summary['held_out_images'] == 800
    return {row['name']: row for row in summary['results']}


def test_autodfp_is_ahead_of_uniform_pruning_and_neuron_merging_within_the_budget(recorded):
    found = recorded['AutoDFP']
    assert found['module_params']['ratio'] <= 0.7
    for name in ('uniform, pruned only', 'uniform, Neuron Merging', 'uniform, same compensation'):
        assert found['held_out_metric'] > recorded[name]['held_out_metric'] + 0.02
        assert found['module_params']['count'] <= recorded[name]['module_params']['count'] * 1.01


@pytest.mark.slow
def test_the_recorded_figures_are_measured_again(recorded, digits_root, tmp_path):
    cfg = Config.fromfile('configs/demo/faster_rcnn_digits_autodfp.py')
    cfg.work_dir = str(tmp_path)
    hook = build(HOOKS, cfg.autodfp.to_dict())
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    hook.prepare(runner)
    found, uniform = PruningPlan.from_json(RESULTS / 'strategy.json'), hook.task.uniform_plan()
    candidates = [
        ('dense', PruningPlan({}), PruneOnly()),
        ('uniform, pruned only', uniform, PruneOnly()),
        ('uniform, Neuron Merging', uniform, NeuronMerging()),
        ('AutoDFP', found, SimilarityReconstructor()),
    ]
    for name, plan, reconstructor in candidates:
        with apply_plan(hook.task.module, plan, reconstructor):
            # Another processor rounds differently, and a detection near the threshold may come or go.
            assert hook.held_out(hook.task.model) == pytest.approx(recorded[name]['held_out_metric'], abs=0.005)


@pytest.mark.parametrize('name', ['faster_rcnn', 'retinanet', 'fcos', 'mask_rcnn', 'vgg', 'resnet'])
def test_a_shipped_checkpoint_is_the_one_of_its_record_and_small(name):
    path = REPO / f'configs/demo/{name}_digits.pth'
    record = load_json(path.with_suffix('.json'), 'the record')
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record['sha256']
    assert path.stat().st_size == record['bytes'] < 6e6
    assert path.with_suffix('.log').stat().st_size > 0
    least = dict(vgg=0.95, resnet=0.95).get(name, 0.6)
    assert next(iter(record['test'].values())) > least


def test_the_readme_shows_the_sweep_as_it_was_measured():
    cells = load_json(RESULTS / 'sweep.json', 'the recorded sweep')
    readme = (REPO / 'README.md').read_text().splitlines()
    assert {cell['preserve_ratio'] for cell in cells} == {0.9, 0.8, 0.7, 0.5}
    assert len(cells) == 16
    for line in markdown(cells):
        assert line in readme
    for cell in cells:
        assert cell['params']['AutoDFP'] <= cell['preserve_ratio']
        for name in ('uniform, pruned only', 'uniform, Neuron Merging'):
            assert cell['held_out']['AutoDFP'] > cell['held_out'][name]
