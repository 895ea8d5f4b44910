"""The whole way, on the demo's detector and a few images: prune, reload, evaluate, fine-tune."""

import json
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from conftest import REPO, masked_dense, random_plan
from demo_helpers import CHECKPOINT, CONFIG, prepared_hook, read
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.runner import Runner

from mmautodfp import runs as apis
from mmautodfp.api import SearchResult
from mmautodfp.outputs import compare
from mmautodfp.reconstruction import SimilarityReconstructor
from mmautodfp.search import History
from mmautodfp.surgery import PruningPlan, apply_plan
from mmautodfp.utils.registry import HOOKS, build

pytestmark = pytest.mark.slow  # whole runs


def test_a_run_leaves_what_it_promises(demo_run):
    work_dir, metrics = demo_run
    for name in ('pruned.pth', 'pruned.py', 'strategy.json', 'summary.json', 'search.pth', 'report.html'):
        assert (work_dir / name).stat().st_size > 500
    assert not list(work_dir.glob('.*'))  # no temporary file is left
    summary = read(work_dir / 'summary.json')
    assert summary['test'] == metrics
    assert summary['episodes'] == 4
    assert (summary['search_images'], summary['held_out_images']) == (8, 24)
    assert summary['flops_input'] == [1, 3, 128, 128]
    names = [row['name'] for row in summary['results']]
    assert names == [
        'dense',
        'uniform, pruned only',
        'uniform, Neuron Merging',
        'uniform, same compensation',
        'AutoDFP',
    ]
    dense, *_, pruned = summary['results']
    assert dense['module_params'] == dict(count=1_480_976, ratio=1.0)
    assert 0.88 < pruned['module_params']['ratio'] <= 0.9
    assert pruned['search_metric'] > 0.3
    # The test loop evaluated the pruned model, on the same images as the held-out column, rounded by CocoMetric.
    assert round(pruned['held_out_metric'], 3) == metrics['coco/bbox_mAP']
    strategy = read(work_dir / 'strategy.json')
    assert len(strategy['layers']) == len(strategy['groups']) == 32


def test_the_search_is_at_least_as_good_as_the_uniform_plan(demo_run):
    rows = {row['name']: row for row in read(demo_run[0] / 'summary.json')['results']}
    assert rows['AutoDFP']['search_metric'] >= rows['uniform, same compensation']['search_metric']


def test_scalars_of_every_episode_reach_the_visualizer(demo_run):
    lines = next(demo_run[0].glob('*/vis_data/scalars.json')).read_text().splitlines()
    rewards = [json.loads(line) for line in lines if 'autodfp/reward' in line]
    assert [row['step'] for row in rewards] == [0, 1, 2, 3]
    history = torch.load(demo_run[0] / 'search.pth', weights_only=True)
    assert [row['autodfp/reward'] for row in rewards] == pytest.approx(history['history']['rewards'].tolist())


def test_the_checkpoint_is_plain_and_holds_what_the_counts_say(demo_run):
    content = torch.load(demo_run[0] / 'pruned.pth', weights_only=True)
    json.dumps(content['meta'])
    assert tuple(content['meta']['dataset_meta']['classes']) == tuple('0123456789')
    plan = PruningPlan.from_dict(content['meta']['autodfp']['plan'])
    assert plan == PruningPlan.from_json(demo_run[0] / 'strategy.json')
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    size = sum(
        tensor.numel()
        for name, tensor in content['state_dict'].items()
        if name.startswith('backbone.') and not name.endswith(buffers)
    )
    assert size == read(demo_run[0] / 'summary.json')['results'][-1]['module_params']['count']


def test_stock_init_detector_loads_it_and_detects_digits(demo_run, digits_root):
    model = init_detector(str(demo_run[0] / 'pruned.py'), str(demo_run[0] / 'pruned.pth'), device='cpu')
    assert type(model.backbone).__name__ == 'ResNet'
    assert model.dataset_meta['classes'][3] == '3'
    result = inference_detector(model, cv2.imread(str(digits_root / 'test' / '00001.png')))
    assert result.pred_instances.scores.max() > 0.5


def test_stock_runner_evaluates_it_to_the_same_map(demo_run, tmp_path):
    cfg = Config.fromfile(demo_run[0] / 'pruned.py')
    assert 'autodfp' not in cfg
    cfg.work_dir = str(tmp_path)
    cfg.load_from = str(demo_run[0] / 'pruned.pth')
    assert Runner.from_cfg(cfg).test() == demo_run[1]


def test_fine_tuning_starts_from_the_pruned_weights(demo_run, tmp_path):
    cfg = Config.fromfile(demo_run[0] / 'pruned.py')
    assert cfg.load_from == str(demo_run[0] / 'pruned.pth')
    cfg.work_dir = str(tmp_path)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
    cfg.val_dataloader.dataset.indices = 8
    runner = Runner.from_cfg(cfg)
    model = runner.train()
    trained = model.state_dict()
    before = torch.load(demo_run[0] / 'pruned.pth', weights_only=True)['state_dict']
    assert {name: t.shape for name, t in trained.items()} == {name: t.shape for name, t in before.items()}
    name = 'backbone.layer1.0.conv1.weight'
    step = (trained[name] - before[name]).norm() / before[name].norm()
    assert 0 < step < 0.1  # trained, and from there


def test_slim_demo_detector_detects_what_the_masked_dense_one_detects(demo_config, digits_root):
    # The layout of features matters to RoIAlign, which the backbone's output alone would not show.
    model, masked = (init_detector(demo_config, CHECKPOINT, device='cpu') for _ in range(2))
    plan, reconstructor = random_plan(model.backbone, 5), SimilarityReconstructor()
    masked.backbone = masked_dense(model.backbone, plan, reconstructor)
    apply_plan(model.backbone, plan, reconstructor)
    for number in range(1, 4):
        image = cv2.imread(str(digits_root / 'test' / f'{number:05d}.png'))
        slim, dense = (inference_detector(m, image).pred_instances for m in (model, masked))
        assert len(slim) == len(dense)
        assert torch.allclose(slim.scores, dense.scores, atol=1e-5)
        assert torch.allclose(slim.bboxes, dense.bboxes, atol=1e-3)


def test_the_dense_weights_come_back_after_every_episode(demo_config):
    model = init_detector(demo_config, CHECKPOINT, device='cpu')
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hook, runner = prepared_hook(demo_config)
    values = [hook.task.evaluate(random_plan(hook.task.module, seed), hook.reward) for seed in range(3)]
    assert len(set(values)) > 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in runner.model.state_dict().items())


def test_the_dense_row_is_what_stock_evaluation_says(demo_run, small_demo):
    options = {key: value for key, value in small_demo.items() if key.startswith('test_')}
    metrics = apis.evaluate(
        'configs/demo/faster_rcnn_digits.py', CHECKPOINT, str(demo_run[0] / 'dense'), cfg_options=options
    )
    assert round(read(demo_run[0] / 'summary.json')['results'][0]['held_out_metric'], 3) == metrics['coco/bbox_mAP']


def test_an_error_in_the_comparison_does_not_pass_the_dense_model_off_as_pruned(demo_config, monkeypatch):
    hook, runner = prepared_hook(demo_config)
    dense = sum(parameter.numel() for parameter in hook.task.model.parameters())

    def fail(*_):
        raise OSError('an image has vanished')

    with monkeypatch.context() as patch:
        patch.setattr('mmautodfp.outputs.comparison._measure', fail)
        with pytest.raises(OSError, match='vanished'):
            hook.before_test(runner)
    assert sum(parameter.numel() for parameter in hook.task.model.parameters()) == dense
    hook.before_test(runner)
    assert sum(parameter.numel() for parameter in hook.task.model.parameters()) < dense


def test_baselines_keep_the_channels_of_largest_norm_whatever_the_compensation_prefers(demo_config, monkeypatch):
    monkeypatch.setattr(
        SimilarityReconstructor, 'ranking', lambda self, group: torch.arange(group.num_channels), raising=False
    )
    candidates = []

    def measure(task, candidate, metrics):
        candidates.append(candidate)
        return [0.0, 0.0]

    monkeypatch.setattr('mmautodfp.outputs.comparison._measure', measure)
    hook, _ = prepared_hook(demo_config)
    found = SearchResult(hook.task.uniform_plan(), 0.0, History(), 0.0, {})
    compare(hook.task, found, [hook.reward, hook.held_out])
    plans = {candidate.name: candidate.plan for candidate in candidates}
    for group in hook.task.groups:
        norms = hook.task.module.get_submodule(group.name).weight.flatten(1).norm(dim=1)
        width = plans['AutoDFP'].widths[group.name]
        strongest = tuple(norms.argsort(descending=True)[:width].sort().values.tolist())
        for name in ('uniform, pruned only', 'uniform, Neuron Merging'):
            assert plans[name].groups[group.name].keep == strongest
        assert plans['uniform, same compensation'].groups[group.name].keep == tuple(range(width))


def test_a_moved_result_still_finds_its_weights(demo_run, tmp_path):
    for name in ('pruned.py', 'pruned.pth'):
        shutil.copy(demo_run[0] / name, tmp_path)
    assert Config.fromfile(tmp_path / 'pruned.py').load_from == str(tmp_path / 'pruned.pth')


def test_a_second_test_does_not_prune_the_pruned_model(demo_config):
    demo_config.load_from = CHECKPOINT
    hook = build(HOOKS, demo_config.autodfp.to_dict() | dict(num_episodes=1, compare=False))
    runner = Runner.from_cfg(demo_config)
    runner.register_hook(hook)
    assert runner.test() == runner.test()


def test_averaged_weights_and_classes_that_do_not_occur_are_no_obstacle(small_demo, tmp_path):
    options = small_demo | {
        'custom_hooks': [dict(type='EMAHook')],
        'test_evaluator.classwise': True,
        'autodfp.compare': False,
        'autodfp.num_episodes': 1,
    }
    content = json.loads(Path(small_demo['test_evaluator.ann_file']).read_text())
    content['annotations'] = [a for a in content['annotations'] if a['category_id'] != 4]
    (tmp_path / 'no_threes.json').write_text(json.dumps(content))
    options['test_evaluator.ann_file'] = str(tmp_path / 'no_threes.json')
    apis.prune(CONFIG, work_dir=str(tmp_path), cfg_options=options)
    test = read(tmp_path / 'summary.json')['test']
    assert test['coco/3_precision'] is None
    assert test['coco/4_precision'] > 0.3


def test_a_test_data_set_of_another_kind_is_evaluated_but_nothing_is_held_out(demo_config, tmp_path):
    demo_config.load_from = str(REPO / CHECKPOINT)
    demo_config.visualizer.name = 'other_kind'
    demo_config.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[demo_config.test_dataloader.dataset])
    demo_config.autodfp.update(num_episodes=2, finalists=2, report=False)
    demo_config.dump(tmp_path / 'other_kind.py')
    assert apis.prune(tmp_path / 'other_kind.py')['coco/bbox_mAP'] > 0.3
    summary = read(tmp_path / 'run/summary.json')
    assert (summary['judge_images'], summary['held_out_images']) == (8, 0)
    assert {row['held_out_metric'] for row in summary['results']} == {None}
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert 'nothing is held out: CocoReward needs COCO-format data sets' in log.read_text()
