"""The whole way, on the demo's detector and a few images: prune, reload, evaluate, fine-tune, refuse."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from conftest import REPO, random_plan
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmautodfp import AutoDFPError, apis
from mmautodfp.hooks import AutoDFPHook, find_module
from mmautodfp.hooks.artifacts import slim_config
from mmautodfp.registry import HOOKS, build
from mmautodfp.rewards import CocoReward
from mmautodfp.surgery import PruningPlan, SimilarityReconstructor, apply_plan, find_units

CONFIG = 'configs/demo/faster_rcnn_digits_autodfp.py'
CHECKPOINT = 'configs/demo/faster_rcnn_digits.pth'


@pytest.fixture(scope='module')
def run(small_demo, tmp_path_factory):
    """One run of the main job: its work dir and what its test loop said."""
    work_dir = tmp_path_factory.mktemp('run')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPO)
        metrics = apis.prune(CONFIG, work_dir=str(work_dir), cfg_options=small_demo)
    return work_dir, metrics


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_run_leaves_what_it_promises(run):
    work_dir, metrics = run
    for name in ('pruned.pth', 'pruned.py', 'strategy.json', 'summary.json', 'search.pth', 'report.html'):
        assert (work_dir / name).stat().st_size > 500
    assert not list(work_dir.glob('.*'))  # no temporary file is left
    summary = read(work_dir / 'summary.json')
    assert summary['test'] == metrics
    assert summary['episodes'] == 4
    assert (summary['search_images'], summary['held_out_images']) == (8, 24)
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
    assert len(strategy['layers']) == len(strategy['units']) == 32


def test_the_search_is_at_least_as_good_as_the_uniform_plan(run):
    rows = {row['name']: row for row in read(run[0] / 'summary.json')['results']}
    assert rows['AutoDFP']['search_metric'] >= rows['uniform, same compensation']['search_metric']


def test_scalars_of_every_episode_reach_the_visualizer(run):
    lines = next(run[0].glob('*/vis_data/scalars.json')).read_text().splitlines()
    rewards = [json.loads(line) for line in lines if 'autodfp/reward' in line]
    assert [row['step'] for row in rewards] == [0, 1, 2, 3]
    history = torch.load(run[0] / 'search.pth', weights_only=True)
    assert [row['autodfp/reward'] for row in rewards] == pytest.approx(history['history']['rewards'].tolist())


def test_the_checkpoint_is_plain_and_holds_what_the_counts_say(run):
    content = torch.load(run[0] / 'pruned.pth', weights_only=True)
    json.dumps(content['meta'])
    assert tuple(content['meta']['dataset_meta']['classes']) == tuple('0123456789')
    plan = PruningPlan.from_dict(content['meta']['autodfp']['plan'])
    assert plan == PruningPlan.from_json(run[0] / 'strategy.json')
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    size = sum(
        tensor.numel()
        for name, tensor in content['state_dict'].items()
        if name.startswith('backbone.') and not name.endswith(buffers)
    )
    assert size == read(run[0] / 'summary.json')['results'][-1]['module_params']['count']


def test_stock_init_detector_loads_it_and_detects_digits(run, digits_root):
    model = init_detector(str(run[0] / 'pruned.py'), str(run[0] / 'pruned.pth'), device='cpu')
    assert type(model.backbone).__name__ == 'ResNet'
    assert model.dataset_meta['classes'][3] == '3'
    result = inference_detector(model, cv2.imread(str(digits_root / 'test' / '00001.png')))
    assert result.pred_instances.scores.max() > 0.5


def test_stock_runner_evaluates_it_to_the_same_map(run, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    cfg = Config.fromfile(run[0] / 'pruned.py')
    assert 'autodfp' not in cfg
    cfg.work_dir = str(tmp_path)
    cfg.load_from = str(run[0] / 'pruned.pth')
    assert Runner.from_cfg(cfg).test() == run[1]


def test_fine_tuning_starts_from_the_pruned_weights(run, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    cfg = Config.fromfile(run[0] / 'pruned.py')
    assert cfg.load_from == str(run[0] / 'pruned.pth')
    cfg.work_dir = str(tmp_path)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
    cfg.val_dataloader.dataset.indices = 8
    runner = Runner.from_cfg(cfg)
    model = runner.train()
    trained = model.state_dict()
    before = torch.load(run[0] / 'pruned.pth', weights_only=True)['state_dict']
    assert {name: t.shape for name, t in trained.items()} == {name: t.shape for name, t in before.items()}
    name = 'backbone.layer1.0.conv1.weight'
    step = (trained[name] - before[name]).norm() / before[name].norm()
    assert 0 < step < 0.1  # trained, and from there


def test_the_same_seed_gives_the_same_plan_and_resume_goes_on_from_it(run, small_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    settings = small_demo | {'autodfp.compare': False}
    apis.prune(CONFIG, work_dir=str(tmp_path / 'a'), episodes=2, cfg_options=settings)
    apis.prune(CONFIG, work_dir=str(tmp_path / 'a'), episodes=4, resume=True, cfg_options=settings)
    for name in ('rewards', 'widths', 'lams'):
        folders = (tmp_path / 'a', run[0])
        ours, first = (torch.load(path / 'search.pth', weights_only=True)['history'][name] for path in folders)
        assert torch.equal(ours, first)
    assert PruningPlan.from_json(tmp_path / 'a' / 'strategy.json') == PruningPlan.from_json(run[0] / 'strategy.json')
    with pytest.raises(AutoDFPError, match=r"saved with budget=.*0.9, 'module'.* but .*0.5, 'module'"):
        apis.prune(CONFIG, work_dir=str(tmp_path / 'a'), preserve_ratio=0.5, resume=True, cfg_options=settings)


def test_an_earlier_search_that_is_not_resumed_is_kept_aside(small_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    settings = small_demo | {'autodfp.compare': False}
    for episodes in (2, 1):
        apis.prune(CONFIG, work_dir=str(tmp_path), episodes=episodes, cfg_options=settings)
    searches = {path.name: torch.load(path, weights_only=True)['history'] for path in tmp_path.glob('search*.pth')}
    lengths = {name: len(history['rewards']) for name, history in searches.items()}
    assert sorted(lengths.values()) == [1, 2]
    assert lengths['search.pth'] == 1


def test_slim_demo_detector_detects_what_the_masked_dense_one_detects(demo_config, digits_root):
    # The layout of features matters to RoIAlign, which the backbone's output alone would not show.
    model = init_detector(demo_config, CHECKPOINT, device='cpu')
    backbone, plan = model.backbone, random_plan(init_detector(demo_config, CHECKPOINT, device='cpu').backbone, 5)
    reconstructor = SimilarityReconstructor()
    reconstructor.ensure_fitted(backbone)
    masked = copy.deepcopy(model)
    for unit in find_units(backbone):
        unit_plan = plan.units[unit.name]
        delivery = reconstructor.reconstruct(unit, torch.tensor(unit_plan.keep), unit_plan.lam).delivery
        layer = masked.backbone.get_submodule(unit.consumers[0].name)
        spread = torch.zeros(unit.num_channels, unit.num_channels)
        spread[:, list(unit_plan.keep)] = delivery
        layer.weight.data.copy_(torch.einsum('mnhw,nk->mkhw', layer.weight.data, spread))
    apply_plan(backbone, plan, reconstructor)
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
    values = [hook.evaluate(random_plan(hook.target, seed)) for seed in range(3)]
    assert len(set(values)) > 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in runner.model.state_dict().items())


def prepared_hook(cfg, **settings):
    cfg.load_from = CHECKPOINT
    hook = build(HOOKS, cfg.autodfp.to_dict() | settings)
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    hook.prepare(runner)
    return hook, runner


def test_the_opening_is_the_uniform_plan(demo_config):
    hook, _ = prepared_hook(demo_config)
    searcher = hook.build_searcher(Path(demo_config.work_dir) / 'search.pth')
    for actions, lam in zip(searcher.opening, hook.opening_lams, strict=True):
        hook.env.reset()
        hook.env.evaluate = lambda plan: 0.0
        plan = [hook.env.step(action) for action in actions][-1][4]['plan']
        assert plan == hook.env.uniform_plan(lam)


def test_the_dense_row_is_what_stock_evaluation_says(run, small_demo, monkeypatch):
    monkeypatch.chdir(REPO)
    options = {key: value for key, value in small_demo.items() if key.startswith('test_')}
    metrics = apis.evaluate(
        'configs/demo/faster_rcnn_digits.py', CHECKPOINT, str(run[0] / 'dense'), cfg_options=options
    )
    assert round(read(run[0] / 'summary.json')['results'][0]['held_out_metric'], 3) == metrics['coco/bbox_mAP']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'autodfp.clustering.eps': 1.0}, 'clustering'),
        ({'autodfp.reconstructor.type': 'NeuronMerging'}, 'reconstructor'),
        ({'val_dataloader.dataset.pipeline.1.scale': (64, 64)}, 'data'),
        ({'model.test_cfg.rcnn.score_thr': 0.3}, 'model'),
        ({'autodfp.reward.seed': 3}, 'images'),
        ({'autodfp.agent.batch_size': 64}, 'batch_size'),
        ({'autodfp.racing': True}, 'stages'),
        ({'autodfp.reward.stages': (0.1,)}, 'reward'),
    ],
)
def test_a_search_for_something_else_is_not_resumed(run, small_demo, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(REPO)
    shutil.copy(run[0] / 'search.pth', tmp_path)
    with pytest.raises(AutoDFPError, match=f'saved with {message}='):
        apis.prune(CONFIG, work_dir=str(tmp_path), episodes=5, resume=True, cfg_options=small_demo | change)


def test_more_episodes_do_not_make_a_race_of_a_search(run, small_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    monkeypatch.setattr('mmautodfp.hooks.settings.LONG_SEARCH', 5)
    assert AutoDFPHook(num_episodes=5).racing is not None
    shutil.copy(run[0] / 'search.pth', tmp_path)
    settings = small_demo | {'autodfp.compare': False}
    apis.prune(CONFIG, work_dir=str(tmp_path), episodes=5, resume=True, cfg_options=settings)
    assert torch.load(tmp_path / 'search.pth')['history']['stages'].shape == (5, 1)


def test_an_error_in_the_comparison_does_not_pass_the_dense_model_off_as_pruned(demo_config, monkeypatch):
    hook, runner = prepared_hook(demo_config)
    dense = sum(parameter.numel() for parameter in hook.model.parameters())

    def fail(*_):
        raise OSError('an image has vanished')

    with monkeypatch.context() as patch:
        patch.setattr('mmautodfp.hooks.autodfp_hook.measure', fail)
        with pytest.raises(OSError, match='vanished'):
            hook.before_test(runner)
    assert sum(parameter.numel() for parameter in hook.model.parameters()) == dense
    hook.before_test(runner)
    assert sum(parameter.numel() for parameter in hook.model.parameters()) < dense


def test_baselines_keep_the_channels_of_largest_norm_whatever_the_compensation_prefers(demo_config, monkeypatch):
    monkeypatch.setattr(
        SimilarityReconstructor, 'ranking', lambda self, unit: torch.arange(unit.num_channels), raising=False
    )
    contestants = []

    def measure(model, target, chosen, metrics):
        contestants.extend(chosen)
        return [[0.0, 0.0] for _ in chosen]

    monkeypatch.setattr('mmautodfp.hooks.autodfp_hook.measure', measure)
    hook, _ = prepared_hook(demo_config)
    hook._compare(hook.env.uniform_plan(), 0.0)
    plans = {contestant.name: contestant.plan for contestant in contestants}
    for unit in find_units(hook.target):
        norms = hook.target.get_submodule(unit.name).weight.flatten(1).norm(dim=1)
        width = plans['AutoDFP'].widths[unit.name]
        strongest = tuple(norms.argsort(descending=True)[:width].sort().values.tolist())
        for name in ('uniform, pruned only', 'uniform, Neuron Merging'):
            assert plans[name].units[unit.name].keep == strongest
        assert plans['uniform, same compensation'].units[unit.name].keep == tuple(range(width))


def test_a_moved_result_still_finds_its_weights(run, tmp_path):
    for name in ('pruned.py', 'pruned.pth'):
        shutil.copy(run[0] / name, tmp_path)
    assert Config.fromfile(tmp_path / 'pruned.py').load_from == str(tmp_path / 'pruned.pth')


def test_a_second_test_does_not_prune_the_pruned_model(demo_config):
    demo_config.load_from = CHECKPOINT
    hook = build(HOOKS, demo_config.autodfp.to_dict() | dict(num_episodes=1, compare=False))
    runner = Runner.from_cfg(demo_config)
    runner.register_hook(hook)
    assert runner.test() == runner.test()


def test_averaged_weights_and_classes_that_do_not_occur_are_no_obstacle(small_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
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


def test_flops_of_the_whole_model_can_be_limited(small_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    budget = {
        'autodfp.budget.type': 'FlopBudget',
        'autodfp.budget.scope': 'model',
        'autodfp.budget.preserve_ratio': 0.8,
    }
    options = small_demo | budget | {'autodfp.compare': False, 'autodfp.num_episodes': 2}
    apis.prune(CONFIG, work_dir=str(tmp_path), cfg_options=options)
    summary = read(tmp_path / 'summary.json')
    assert summary['results'][0]['model_flops']['ratio'] <= 0.8
    assert summary['flops_input'] == [1, 3, 128, 128]


def on_two_ranks(small_demo, folder, port, **options) -> subprocess.CompletedProcess:
    options = [f'{key}={value}' for key, value in (small_demo | options).items()]
    tool = [CONFIG, '2', '--device=cpu', f'--work-dir={folder}', '--cfg-options', *options]
    environment = os.environ | dict(PYTHONPATH=str(REPO), OMP_NUM_THREADS='1', PORT=str(port), PYTHON=sys.executable)
    return subprocess.run(
        ['tools/dist_prune.sh', *tool], cwd=REPO, env=environment, capture_output=True, text=True, timeout=300
    )


def test_two_processes_share_the_episodes_and_agree_with_one_where_nothing_is_learned(run, small_demo, tmp_path):
    result = on_two_ranks(small_demo, tmp_path, 29531)
    assert result.returncode == 0, result.stderr
    ours, alone = (read(path / 'summary.json') for path in (tmp_path, run[0]))
    assert ours['ranks'] == 2
    assert ours['episodes'] == 4
    for row, expected in zip(ours['results'][:-1], alone['results'][:-1], strict=True):
        assert row['module_params'] == expected['module_params']
        # One thread a rank and two in one process: sums are taken in another order.
        assert row['held_out_metric'] == pytest.approx(expected['held_out_metric'], abs=2e-3)
    rewards = [torch.load(path / 'search.pth')['history']['rewards'] for path in (tmp_path, run[0])]
    assert rewards[0][:3].tolist() == pytest.approx(rewards[1][:3].tolist(), abs=2e-2)  # the opening's


def test_a_rank_that_fails_ends_the_job_with_its_error(small_demo, tmp_path):
    (tmp_path / 'mmautodfp_broken.py').write_text(
        'from mmengine.dist import get_rank\n'
        'from mmautodfp.registry import REWARDS\n'
        'from mmautodfp.rewards import CocoReward\n\n'
        '@REWARDS.register_module()\n'
        'class Broken(CocoReward):\n'
        '    def __call__(self, model):\n'
        '        if get_rank() == 1:\n'
        "            raise OSError('the image has vanished')\n"
        '        return super().__call__(model)\n'
    )
    config = tmp_path / 'broken.py'
    config.write_text(
        f"_base_ = {str(REPO / CONFIG)!r}\ncustom_imports = dict(imports=['mmautodfp_broken'])\n"
        "autodfp = dict(reward=dict(type='Broken'))\n"
    )
    options = [f'{key}={value}' for key, value in small_demo.items()]
    environment = os.environ | dict(
        PYTHONPATH=f'{REPO}{os.pathsep}{tmp_path}', OMP_NUM_THREADS='1', PORT='29532', PYTHON=sys.executable
    )
    result = subprocess.run(
        ['tools/dist_prune.sh', config, '2', '--device=cpu', f'--work-dir={tmp_path}/w', '--cfg-options', *options],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode != 0
    assert 'rank 1 failed, which ends the job on all ranks: OSError: the image has vanished' in result.stderr


def test_an_image_that_vanishes_in_mid_search_is_named_and_the_search_kept(
    digits_root, small_demo, tmp_path, monkeypatch
):
    monkeypatch.chdir(REPO)
    shutil.copytree(digits_root / 'val', tmp_path / 'val')
    rewarded = []

    def vanish(reward, model):
        rewarded.append(1)
        if len(rewarded) == 3:
            os.remove(reward.images[0])
        return CocoReward.score(reward, reward.detect(model))

    monkeypatch.setattr(CocoReward, '__call__', vanish)
    options = {'autodfp.reward.cache_gb': 0, 'val_dataloader.dataset.data_prefix.img': str(tmp_path / 'val') + '/'}
    with pytest.raises(AutoDFPError, match=r'the reward needs image .*/val/.*\.png, which cannot be read'):
        apis.prune(CONFIG, work_dir=str(tmp_path / 'w'), cfg_options=small_demo | options)
    assert len(torch.load(tmp_path / 'w/search.pth')['history']['rewards']) == 2


def test_a_race_is_run_where_it_is_asked_for(small_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    options = {
        'autodfp.racing': dict(warmup=4, risk=0.2),
        'autodfp.num_episodes': 12,
        'autodfp.agent.warmup_episodes': 12,
        'autodfp.budget.preserve_ratio': 0.6,
        'autodfp.compare': False,
    }
    apis.prune(CONFIG, work_dir=str(tmp_path), cfg_options=small_demo | options)
    evaluations = read(tmp_path / 'summary.json')['image_evaluations']
    history = torch.load(tmp_path / 'search.pth')['history']
    stages = torch.tensor([2, 4, 8])[(~history['stages'].isnan()).sum(1) - 1]
    assert evaluations == dict(done=int(stages.sum()), without_racing=12 * 8)
    assert AutoDFPHook(num_episodes=500).racing is not None
    assert AutoDFPHook(num_episodes=499).racing is None
    assert AutoDFPHook(num_episodes=500, racing=False).racing is None


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'autodfp.module': 'trunk'},
            "'trunk' was to be pruned, but the FasterRCNN has no such part; it has.*backbone",
        ),
        ({'autodfp.module': 'backbone.layer1'}, 'has no model.backbone.layer1 that could be replaced'),
        ({'autodfp.module': 'neck'}, "nothing to prune in the FPN 'neck'"),
        (
            {'autodfp.agent.type': 'PPO'},
            "'PPO' is not known; known are CMAES, RandomSearch, SAC, UniformPlan",
        ),
        ({'autodfp.agent.learning_rate': 1}, 'learning_rate'),
        ({'autodfp.reward.type': 'Magic'}, "reward type 'Magic' is not known; known are AccuracyReward, CocoReward"),
        ({'autodfp.reward.images': 3}, "unexpected keyword argument 'images'.*num_images"),
        ({'autodfp.budget.preserve_ratio': 0.1}, 'can only reach 0.*; raise the ratio or lower p_min'),
        ({'autodfp.budget.type': 'Price'}, 'known are FlopBudget, LatencyBudget, ParamBudget'),
        ({'autodfp.num_episodes': 0}, 'num_episodes=0'),
        ({'autodfp.racing': dict(speed=3)}, 'it takes True, False or a dict of risk, warmup, refresh'),
        ({'autodfp.racing': dict(risk=2)}, 'risk=2; it must lie between'),
        ({'autodfp.reward.precision': 'int8'}, "precision='int8'; it must be auto, float32"),
        ({'autodfp.reward.stages': (0.5, 0.2)}, 'they must ascend'),
        ({'autodfp.module': ''}, 'name a part of the model'),
        ({'autodfp.agent.type': 'RandomSearch'}, '_delete_=True'),
        ({'autodfp.reconstructor.normalization': 'l1'}, "'max' or 'minmax', got 'l1'"),
        ({'autodfp.clustering.radius': 1}, 'eps and min_samples'),
        ({'autodfp.reward.num_images': 'many'}, "num_images='many'"),
        ({'test_cfg': None}, 'has no test_cfg'),
        ({'autodfp.episodes': 3}, "unexpected keyword argument 'episodes'"),
        ({'autodfp.p_min': 1.5}, 'p_min'),
        ({'autodfp.opening_lams': (2.0,)}, 'opening_lams'),
        ({'val_dataloader.dataset.ann_file': 'absent.json'}, r'val_dataloader\.dataset names .*absent\.json, but'),
        ({'test_dataloader.dataset.ann_file': 'absent.json'}, r'test_dataloader\.dataset names .*absent\.json, but'),
        ({'test_evaluator.ann_file': 'absent.json'}, r'test_evaluator names the annotations absent\.json, but'),
        ({'test_dataloader.dataset.data_prefix.img': 'absent/'}, r'image .*absent/.*which cannot be read'),
        ({'val_dataloader': None}, 'has no val_dataloader'),
        ({'val_dataloader.dataset.data_prefix.img': 'absent/'}, r'absent/.*which cannot be read'),
        ({'val_dataloader.dataset.indices': 0}, 'the data set has none'),
        (
            {'model.backbone.groups': 2, 'model.backbone.type': 'ResNeXt', 'model.backbone.base_width': 4},
            'grouped conv',
        ),
    ],
)
def test_bad_settings_end_in_one_clear_sentence(small_demo, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(REPO)
    checkpoint = CHECKPOINT
    if 'model.backbone.type' in options:  # other shapes than the shipped weights have
        cfg = Config.fromfile(CONFIG)
        cfg.merge_from_dict(options)
        checkpoint = tmp_path / 'random.pth'
        torch.save(dict(state_dict=init_detector(cfg, device='cpu').state_dict()), checkpoint)
    with pytest.raises(AutoDFPError, match=message) as caught:
        apis.prune(CONFIG, str(checkpoint), work_dir=str(tmp_path / 'w'), cfg_options=small_demo | options)
    assert '\n' not in str(caught.value)


def test_bad_checkpoints_and_configs_end_in_one_clear_sentence(digits_root, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    shutil.copy(CHECKPOINT, tmp_path / 'cut.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'cut.pth').read_bytes()[:100_000])
    torch.save(dict(state_dict=nn.Linear(2, 2).state_dict()), tmp_path / 'other.pth')
    torch.save(dict(weights='none'), tmp_path / 'empty.pth')
    (tmp_path / 'broken.py').write_text('model = dict(')
    cases = [
        (CONFIG, tmp_path / 'absent.pth', 'there is no such file'),
        (CONFIG, tmp_path / 'cut.pth', 'damaged'),
        (CONFIG, tmp_path / 'other.pth', 'does not fit the model of the config: of its .* are missing'),
        (CONFIG, tmp_path / 'empty.pth', "holds no 'state_dict'"),
        (CONFIG, 'http://localhost:9/x.pth', 'cannot be fetched'),
        (tmp_path / 'absent.py', CHECKPOINT, 'absent.py was asked for, but there is no such file'),
        (tmp_path / 'broken.py', CHECKPOINT, 'cannot be read: SyntaxError'),
        ('configs/demo/faster_rcnn_digits.py', CHECKPOINT, "no 'autodfp' entry"),
    ]
    for config, checkpoint, message in cases:
        with pytest.raises(AutoDFPError, match=message) as caught:
            apis.prune(config, str(checkpoint), work_dir=str(tmp_path / 'w'), cfg_options=None)
        assert '\n' not in str(caught.value), caught.value


def test_find_module_takes_the_whole_model_for_an_empty_path():
    model = nn.Sequential(nn.Linear(1, 1))
    assert find_module(model, '') is model
    assert find_module(model, '0') is model[0]


def test_the_written_config_forgets_the_search_and_stale_weights():
    cfg = Config(
        dict(
            model=dict(type='D', backbone=dict(type='ResNet', init_cfg=dict(type='Pretrained', checkpoint='x'))),
            custom_hooks=[dict(type='mmautodfp.AutoDFPHook'), dict(type='EMAHook')],
            autodfp=dict(num_episodes=3),
            work_dir='somewhere',
        )
    )
    slim = slim_config(cfg, 'backbone', {'layer1.0.conv1': 3}, 'pruned.pth')
    assert slim.model.backbone.type == 'mmautodfp.Slim'
    assert slim.model.backbone.widths == {'layer1.0.conv1': 3}
    assert slim.model.backbone.module == dict(type='ResNet', init_cfg=None)
    assert slim.custom_hooks == [dict(type='EMAHook')]
    assert not {'autodfp', 'work_dir'} & set(slim)
    assert cfg.model.backbone.type == 'ResNet'  # the run's own config is untouched
