"""The short demo: the digits' classifiers as they ship, from the config to the pruned model that stock tools load."""

import json

import pytest
import torch
from conftest import REPO, SHARED
from mmengine.config import Config
from mmengine.runner import Runner

from mmautodfp import runs
from mmautodfp.utils import AutoDFPError

NETS = ['vgg', 'resnet']


@pytest.mark.parametrize('net', NETS)
def test_a_shipped_classifier_reads_as_well_as_its_record_says(net, tmp_path):
    record = json.loads((REPO / f'configs/demo/{net}_digits.json').read_text())
    assert record['seconds'] < 60
    found = runs.evaluate(f'configs/demo/{net}_digits.py', f'configs/demo/{net}_digits.pth', work_dir=str(tmp_path))
    assert found['accuracy/top1'] == pytest.approx(record['test']['accuracy/top1'], abs=0.005)
    assert found['accuracy/top1'] > 0.97


@pytest.fixture(scope='module', params=NETS)
def run(request, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp(request.param)
    metrics = runs.prune(f'configs/demo/{request.param}_digits_autodfp.py', work_dir=str(work_dir), episodes=60)
    return work_dir, metrics


def test_the_search_beats_the_uniform_plan_on_digits_that_it_has_not_seen(run):
    summary = json.loads((run[0] / 'summary.json').read_text())
    rows = {row['name']: row for row in summary['results']}
    assert (summary['search_images'], summary['held_out_images']) == (300, 497)
    assert rows['dense']['held_out_metric'] > 0.97
    best_uniform = max(row['held_out_metric'] for name, row in rows.items() if name.startswith('uniform'))
    assert rows['AutoDFP']['held_out_metric'] > best_uniform + 0.1
    assert summary['test'] == run[1] == {'accuracy/top1': rows['AutoDFP']['held_out_metric']}


def test_the_pruned_classifier_has_the_counted_size_and_loads_with_mmengine_alone(run, tmp_path):
    summary = json.loads((run[0] / 'summary.json').read_text())
    content = torch.load(run[0] / 'pruned.pth', weights_only=True)
    cfg = Config.fromfile(run[0] / 'pruned.py')
    assert cfg.model.type == 'mmautodfp.SlimModel'
    cfg.work_dir, cfg.load_from = str(tmp_path), str(run[0] / 'pruned.pth')
    runner = Runner.from_cfg(cfg)
    assert runner.test() == run[1]
    params = sum(p.numel() for p in runner.model.network.parameters())
    assert params == summary['results'][-1]['module_params']['count']
    assert params <= summary['budget']['preserve_ratio'] * summary['results'][0]['module_params']['count']
    assert set(content['state_dict']) == set(runner.model.state_dict())


def test_data_that_is_not_there_is_missed_before_the_search(tmp_path):
    options = {f'{split}_dataloader.dataset.data_root': str(tmp_path / 'absent.npz') for split in ('val', 'test')}
    with pytest.raises(AutoDFPError, match=r'^CIFAR-10 was to be read from .*absent\.npz, but there is no such file'):
        runs.prune('configs/classification/resnet56_cifar10_autodfp.py', work_dir=str(tmp_path), cfg_options=options)


def test_a_shared_checkpoint_is_read_and_reaches_its_accuracy_on_real_images(tmp_path):
    """400 images here; tools/reproduce.py has the exact figure."""
    checkpoint = SHARED / 'data/checkpoints/resnet56_cifar10.pth.tar'
    images = SHARED / 'data/cifar10/cifar10_test_half.npz'
    for path in (checkpoint, images):
        if not path.is_file():
            pytest.skip(f'{path} is not there')
    import numpy as np

    with np.load(images) as content:
        np.savez(tmp_path / 'few.npz', **{name: array[:400] for name, array in content.items()})
    options = {'test_dataloader.dataset.data_root': str(tmp_path / 'few.npz')}
    config = 'configs/classification/resnet56_cifar10_autodfp.py'
    found = runs.evaluate(config, str(checkpoint), work_dir=str(tmp_path), cfg_options=options)
    assert found['accuracy/top1'] == pytest.approx(0.934, abs=0.025)
