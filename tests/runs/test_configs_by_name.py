"""Configs as the command line names them: files, ours by name, stock ones without settings, MMEngine's Python style."""

import itertools
import os
import re
import shlex
from functools import partial

import pytest
import torch
from conftest import REPO
from in_process import run_tool
from mmengine.config import Config

from mmautodfp import runs
from mmautodfp.outputs.report import Report
from mmautodfp.runs.report import remake_report
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import claimed, load_json
from mmautodfp.utils.registry import MODELS

# A small RetinaNet whose parts are named by what they are, as in MMDetection's own configs of that style.
PYTHON_STYLE = """
from mmcv.ops import nms
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, DetDataPreprocessor, FocalLoss, L1Loss, ResNet, RetinaHead, RetinaNet
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.runner import TestLoop
from torch.nn import BatchNorm2d
{bases}

default_scope = None
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor),
    backbone=dict(type=ResNet, depth=18, base_channels=8, norm_cfg=dict(type=BatchNorm2d), norm_eval=True),
    neck=dict(type=FPN, in_channels=[8, 16, 32, 64], out_channels=16, start_level=1, num_outs=5),
    bbox_head=dict(
        type=RetinaHead, num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(type=AnchorGenerator, scales=[4], ratios=[1.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder), loss_cls=dict(type=FocalLoss), loss_bbox=dict(type=L1Loss),
    ),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type=nms, iou_threshold=0.5), max_per_img=5),
)
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=CocoDataset, ann_file='/nowhere/annotations.json', metainfo=dict(classes=('ripe', 'raw'))),
)
test_evaluator = dict(type=CocoMetric, ann_file='/nowhere/annotations.json')
test_cfg = dict(type=TestLoop)
"""
FEW = {
    'autodfp.compare': False,
    'autodfp.report': False,
    'autodfp.reconstructor.images': dict(num_images=2, size=64, batch_size=2),
    'autodfp.reconstructor.refinement': dict(groups_per_pass=8),
    'autodfp.reward.images': dict(num_images=2, size=64),
}


def write(folder, bases: str = '') -> tuple[str, str]:
    """A config of that style and a checkpoint for it."""
    config, checkpoint = folder / 'mine.py', folder / 'mine.pth'
    config.write_text(PYTHON_STYLE.format(bases=bases))
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(runs.load_config(config).model).state_dict()), checkpoint)
    return str(config), str(checkpoint)


@pytest.mark.parametrize('folder', ['', 'demo/', 'configs/demo/'])
@pytest.mark.parametrize('end', ['', '.py'])
def test_our_configs_are_found_by_name_from_any_folder(folder, end, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = runs.load_config(f'{folder}vgg_digits_autodfp{end}')
    assert os.path.realpath(cfg.filename) == str(REPO / 'configs/demo/vgg_digits_autodfp.py')
    assert os.path.samefile(cfg.load_from, REPO / 'configs/demo/vgg_digits.pth')
    assert cfg.work_dir == 'work_dirs/vgg_digits_autodfp'


def test_a_file_of_ones_own_comes_before_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'vgg_digits_autodfp.py').write_text('model = 3')
    assert runs.load_config('vgg_digits_autodfp.py').model == 3


def test_a_config_of_a_package_is_found_as_in_base():
    found = runs.load_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    assert found.model.type == 'YOLOX'
    assert found.work_dir == 'work_dirs/yolox_tiny_8xb8-300e_coco'


@pytest.mark.parametrize(
    'name',
    ['mmdet::absent.py', 'mmpose::a/b.py', 'absent', 'igits_autodfp', '../demo/vgg_digits_autodfp.py', 'demo', '', '/'],
)
def test_other_names_are_told(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('mmengine.utils.package_utils.call_command', lambda _: pytest.fail('a package is installed'))
    with pytest.raises(AutoDFPError, match='was asked for, but there is no such file, and mmautodfp has no config of'):
        runs.find_config(name)


@pytest.mark.parametrize(('episodes', 'searched'), [(1, 'no search'), (2, 'a search without annotations')])
def test_a_config_without_settings_is_pruned_without_data_and_says_so(tmp_path, episodes, searched):
    config, checkpoint = write(tmp_path)
    # MMEngine's runs of one name and second share a log.
    options = FEW | {'autodfp.finalists': 0, 'experiment_name': f'episodes_{episodes}'}
    told = dict(preserve_ratio=0.7, episodes=episodes, cfg_options=options)
    assert runs.prune(config, checkpoint, work_dir=str(tmp_path / 'run'), **told) == {}
    summary = load_json(tmp_path / 'run/summary.json', 'the summary')
    assert (summary['episodes'], summary['metric']) == (episodes, 'output_likeness')
    assert summary['budget']['preserve_ratio'] == 0.7
    (log,) = (tmp_path / 'run').glob('*/*.log')
    lines = [line for line in log.read_text().splitlines() if "has no 'autodfp' entry" in line]
    assert len(lines) == 1
    assert f'configs/_base_/zero_data.py: no data and {searched} (--search: one on its val images)' in lines[0]
    assert not (tmp_path / 'run/report.html').exists()
    assert 'report.html' not in log.read_text()


def test_settings_that_are_only_part_of_an_entry_override_the_packaged_ones():
    cfg = Config(dict(autodfp=dict(p_min=0.3, reward=dict(_delete_=True, type='CocoReward'))))
    assert runs.add_settings(cfg, 'zero_data')
    assert (cfg.autodfp.num_episodes, cfg.autodfp.p_min, cfg.autodfp.reward) == (1, 0.3, dict(type='CocoReward'))
    assert not runs.add_settings(cfg, 'autodfp')


def test_a_search_of_a_config_without_settings_needs_its_data(tmp_path):
    config, checkpoint = write(tmp_path)
    with pytest.raises(AutoDFPError, match='has no val_dataloader and no val_evaluator and no val_cfg'):
        runs.prune(config, checkpoint, work_dir=str(tmp_path), search=True)


def test_annotations_that_a_python_style_config_names_are_missed(tmp_path):
    config, checkpoint = write(tmp_path)
    with pytest.raises(AutoDFPError, match=r'names the annotations /nowhere/annotations\.json, but there is no such'):
        runs.evaluate(config, checkpoint, work_dir=str(tmp_path))


@pytest.mark.parametrize('place', [0, 1])
def test_annotations_that_any_of_several_evaluators_names_are_missed(place):
    evaluators = [dict(type='DumpDetResults')]
    evaluators.insert(place, dict(type='CocoMetric', ann_file='/nowhere/annotations.json'))
    dataset = dict(type='CocoDataset', ann_file='')
    cfg = Config(dict(test_dataloader=dict(dataset=dataset), test_evaluator=evaluators, test_cfg=dict(type='TestLoop')))
    with pytest.raises(AutoDFPError, match=r'test_evaluator names the annotations /nowhere/annotations\.json, but'):
        runs.require_data(cfg, 'test')


def test_a_python_style_config_takes_our_settings_and_leaves_a_pruned_model_that_loads(tmp_path):
    bases = 'with read_base():\n    from mmautodfp.configs._base_.zero_data import *\nautodfp.update(p_min=0.4)'
    config, checkpoint = write(tmp_path, bases)
    runs.prune(config, checkpoint, work_dir=str(tmp_path / 'run'), preserve_ratio=0.7, cfg_options=FEW)
    assert load_json(tmp_path / 'run/summary.json', 'the summary')['autodfp']['p_min'] == 0.4
    cfg = Config.fromfile(tmp_path / 'run/pruned.py')
    assert cfg.model.type == 'mmautodfp.SlimModel'
    assert cfg.model.test_cfg.nms.type == 'nms'
    # The run's own copy of the dense config, which its report names to run it again.
    assert Config.fromfile(tmp_path / 'run/mine.py').model.test_cfg.nms.type == 'nms'
    model = MODELS.build(cfg.model).eval()
    content = torch.load(tmp_path / 'run/pruned.pth', weights_only=True)
    model.load_state_dict(content['state_dict'])
    dense = MODELS.build(runs.load_config(config).model.backbone)
    params = [sum(p.numel() for p in backbone.parameters()) for backbone in (model.backbone, dense)]
    assert 0.6 < params[0] / params[1] <= 0.7
    assert content['meta']['dataset_meta']['classes'] == ('ripe', 'raw')
    data = model.data_preprocessor(dict(inputs=[torch.zeros(3, 64, 64)], data_samples=[_sample()]))
    (found,) = model.predict(data['inputs'], data['data_samples'])
    assert len(found.pred_instances) == 5


def test_a_detector_of_that_style_that_was_pruned_as_a_whole_loads_and_can_be_pruned_again(tmp_path):
    config, checkpoint = write(tmp_path, 'tta_model = dict(tta_cfg=dict(nms=dict(type=nms, iou_threshold=0.5)))')
    params = []
    for number in (1, 2):
        run = tmp_path / str(number)
        runs.prune(config, checkpoint, str(run), 0.8, cfg_options=FEW | {'autodfp.target': 'model'})
        config, checkpoint = str(run / 'pruned.py'), str(run / 'pruned.pth')
        cfg = Config.fromfile(config)
        assert cfg.tta_model.tta_cfg.nms.type == 'nms'
        model = MODELS.build(cfg.model)
        assert type(model).__name__ == 'RetinaNet'
        model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
        params.append(sum(p.numel() for p in model.parameters()))
    assert params[1] <= 0.8 * params[0]
    # The run's own copy of the config that it was given, which has the name of its result.
    kept = Config.fromfile(Report(tmp_path / '2').config_file)
    assert kept.model == Config.fromfile(tmp_path / '1/pruned.py').model
    assert kept.autodfp.target == 'model'


@pytest.mark.parametrize(
    ('tool', 'name'),
    [
        (runs.prune, 'mine.py'),
        (runs.prune, 'pruned.py'),
        (partial(runs.prune, resume=True), 'pruned.py'),
        (partial(runs.prune, resume=True), 'mine.py'),
        (partial(runs.frontier, no_data=True), 'mine.py'),
    ],
)
@pytest.mark.parametrize(
    'settings', ['', "autodfp = dict(type='AutoDFPHook', num_episodes=1, reward=dict(type='SyntheticReward'))"]
)
def test_no_config_is_overwritten_by_what_becomes_of_it(tmp_path, tool, name, settings):
    _, checkpoint = write(tmp_path)
    text = PYTHON_STYLE.format(bases=settings)
    (tmp_path / name).write_text(text)
    (tmp_path / 'search.pth').touch()
    (tmp_path / 'other').mkdir()
    with pytest.raises(AutoDFPError, match=rf'{name} itself lies and would be overwritten; name another folder'):
        tool(tmp_path / name, checkpoint, str(tmp_path / 'other/..'))
    assert (tmp_path / name).read_text() == text


def test_an_evaluation_leaves_the_config_alone_that_a_run_has_kept(tmp_path):
    kept = tmp_path / 'kept.py'
    runs.load_config('vgg_digits_autodfp', str(tmp_path)).dump(kept)  # it names its folder
    text = kept.read_text()
    assert runs.evaluate(kept, str(REPO / 'configs/demo/vgg_digits.pth'))['accuracy/top1'] > 0.9
    assert kept.read_text() == text
    assert [file.name for file in tmp_path.glob('*.py')] == ['kept.py']


@pytest.mark.parametrize(
    ('budget', 'size'),
    [
        (dict(type='FlopBudget', limit='60%'), [64, 64]),
        (dict(type='FlopBudget', limit='12M', scope='model'), [96, 160]),
        (dict(type='MemoryBudget', limit='1MB', scope='model'), [96, 160]),
    ],
)
def test_without_data_an_amount_is_of_an_image_of_the_tests_size(tmp_path, budget, size):
    config, checkpoint = write(tmp_path)
    pipeline = [dict(type='Resize', scale=(160, 96), keep_ratio=True)]
    options = FEW | {'autodfp.budget': budget, 'test_dataloader.dataset.pipeline': pipeline}
    options['autodfp.reward.images'] = dict(num_images=2, size=64, batch_size=2)
    runs.prune(config, checkpoint, str(tmp_path / 'run'), cfg_options=options)
    summary = load_json(tmp_path / 'run/summary.json', 'the summary')
    assert summary['flops_input'] == [1, 3, *size]
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert f'FLOPs, latency and memory are those of an input of 1x3x{size[0]}x{size[1]}' in log


def test_a_folder_in_which_another_run_is_at_work_is_left_to_it(tmp_path):
    config, checkpoint = write(tmp_path)
    with claimed(tmp_path / 'run'):
        with pytest.raises(AutoDFPError, match='another run is at work there'):
            runs.prune(config, checkpoint, str(tmp_path / 'run'))
        assert not list((tmp_path / 'run').iterdir())


def test_a_search_goes_on_with_the_config_that_its_run_has_kept(tmp_path):
    config, checkpoint = write(tmp_path)
    runs.prune(config, checkpoint, str(tmp_path / 'run'), 0.7, episodes=2, cfg_options=FEW)
    plan = PruningPlan.from_json(tmp_path / 'run/strategy.json')
    (tmp_path / 'run/strategy.json').unlink()
    runs.prune(tmp_path / 'run/mine.py', resume=True)
    assert PruningPlan.from_json(tmp_path / 'run/strategy.json') == plan


def test_the_command_in_a_report_runs_what_needed_a_trusted_checkpoint_again(tmp_path):
    config, checkpoint = write(tmp_path)
    torch.save(torch.load(checkpoint) | dict(hook=itertools.count()), checkpoint)
    runs.prune(config, checkpoint, str(tmp_path / 'run'), 0.7, trust_checkpoint=True, cfg_options=FEW)
    *_, tool, config, option, folder, trust = shlex.split(Report(tmp_path / 'run')._command())
    assert run_tool(tool, config, option, folder, trust).returncode == 0
    plans = [PruningPlan.from_json(f'{run}/strategy.json') for run in (tmp_path / 'run', folder)]
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_the_report_of_a_run_without_a_default_scope_can_be_made_again(tmp_path):
    config, checkpoint = write(tmp_path)
    runs.prune(config, checkpoint, work_dir=str(tmp_path / 'run'), preserve_ratio=0.7, cfg_options=FEW)
    page = remake_report(tmp_path / 'run').read_text()
    assert re.findall(r'Not shown: (.*)\.</p>', page) == ['the run opened no data set']


def _sample():
    from mmdet.structures import DetDataSample

    return DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0), img_id=0))


def test_a_ratio_on_the_command_line_takes_the_place_of_a_limit_in_the_config():
    budget = dict(type='FlopBudget', limit='2M')
    cfg = Config(dict(autodfp=dict(budget=budget)))
    runs.configs.override_settings(cfg, None, None, None)
    assert cfg.autodfp.budget == budget
    runs.configs.override_settings(cfg, 0.5, None, None)
    assert cfg.autodfp.budget == dict(type='FlopBudget', preserve_ratio=0.5)


@pytest.mark.parametrize('said', [True, False, None])
@pytest.mark.parametrize('in_options', [True, False])
def test_a_setting_of_a_group_can_be_changed_where_the_group_is_only_turned_on_or_off(tmp_path, said, in_options):
    config = tmp_path / 'detector.py'
    switch = {} if said is None else dict(distillation=said)
    config.write_text(f'autodfp = dict(racing=False, reconstructor={dict(ridge=0.1) | switch!r})')
    options = {'autodfp.reconstructor.distillation': True} if in_options else {}
    options |= {'autodfp.reconstructor.distillation.steps': 5, 'autodfp.reconstructor.distillation.batch_size': 4}
    cfg = runs.load_config(config, cfg_options=options)
    assert cfg.autodfp.to_dict() == dict(
        racing=False, reconstructor=dict(ridge=0.1, distillation=dict(steps=5, batch_size=4))
    )
    cfg = runs.load_config(config, cfg_options={'autodfp.racing.risk': 0.1})
    assert cfg.autodfp.racing == dict(risk=0.1)
