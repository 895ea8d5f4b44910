"""The configs that users start from, at their real size where that can be afforded."""

import json

import pytest
import torch
from conftest import REPO, SHARED
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmautodfp import runs
from mmautodfp.graph import find_groups
from mmautodfp.hooks import AutoDFPHook
from mmautodfp.search.survey import survey_target
from mmautodfp.utils.registry import HOOKS, build

# Detectors have the two of each of ResNet-50's sixteen blocks.
GROUPS = {
    'vgg16_cifar10_autodfp.py': 13,
    'vgg19_cifar10_autodfp.py': 16,
    'resnet56_cifar10_autodfp.py': 27,
    'mobilenet_v1_cifar10_autodfp.py': 14,
    'mobilenet_v1_imagenet_autodfp.py': 14,
    'mobilenet_v2_cifar10_autodfp.py': 18,
    'resnet34_imagenet_autodfp.py': 16,
    'resnet101_imagenet_autodfp.py': 66,
    'vgg_digits_autodfp.py': 5,
    'resnet_digits_autodfp.py': 6,
}
AUTODFP_CONFIGS = sorted(path.relative_to(REPO).as_posix() for path in REPO.glob('configs/**/*_autodfp.py'))
ZERO_DATA_CONFIGS = sorted(path.relative_to(REPO).as_posix() for path in REPO.glob('configs/**/*_zero_data.py'))


@pytest.mark.parametrize('path', AUTODFP_CONFIGS)
def test_every_config_builds_its_hook_and_has_groups_to_prune(path):
    register_all_modules()
    cfg = Config.fromfile(REPO / path)
    hook = build(HOOKS, cfg.autodfp.to_dict())
    assert isinstance(hook, AutoDFPHook)
    if 'backbone' in cfg.model:
        cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model).eval()
    if hook.settings.target == 'model':
        backbone = [group for group in survey_target(model, 'model').groups if group.name.startswith('backbone.')]
        assert len(backbone) == 32 + 1 + 4  # inside of the blocks, the stem, the streams
    elif path.endswith('rtmdet_tiny_bccd_autodfp.py'):  # no finder knows a CSPNeXt
        assert len(survey_target(model, 'backbone').groups) == 15
    else:
        assert len(find_groups(model.get_submodule(hook.settings.target))) == GROUPS.get(path.split('/')[-1], 32)


def test_every_detector_has_a_config_without_data():
    # Those of blood cells are what table 5 starts from, which names the compensation itself.
    paths = [path for path in AUTODFP_CONFIGS if 'bccd' not in path]
    searched = [path for path in paths if Config.fromfile(REPO / path).autodfp.target == 'backbone']
    assert [path.replace('_autodfp', '_zero_data') for path in searched] == ZERO_DATA_CONFIGS
    assert len(searched) == 8


@pytest.mark.parametrize('path', ZERO_DATA_CONFIGS)
def test_a_config_without_data_is_of_the_same_model_and_has_no_search(path):
    cfg, searched = (Config.fromfile(REPO / name) for name in (path, path.replace('_zero_data', '_autodfp')))
    assert cfg.model == searched.model
    assert cfg.load_from == searched.load_from
    hook = build(HOOKS, cfg.autodfp.to_dict())
    assert hook.settings.num_episodes == 1
    assert not hook.reward.needs_data
    assert cfg.autodfp.budget == searched.autodfp.budget


def test_shared_settings_are_the_papers():
    cfg = Config.fromfile(REPO / 'configs/faster_rcnn_autodfp.py').autodfp
    assert (cfg.num_episodes, cfg.p_min, cfg.p_max, cfg.budget.preserve_ratio) == (5000, 0.2, 1.0, 0.9)
    agent = cfg.agent
    assert (agent.actor_lr, agent.critic_lr, agent.alpha_lr, agent.tau) == (1e-3, 1e-3, 3e-4, 0.01)
    assert (agent.gamma, agent.batch_size, agent.buffer_episodes, agent.warmup_episodes) == (1.0, 128, 100, 200)


@pytest.mark.slow
def test_full_size_faster_rcnn_searches_on_real_coco_images(tmp_path):
    """Crowds, masks and an image without annotations are among them; random weights, so that only the way counts."""
    root = SHARED / 'data' / 'coco'
    if not root.is_dir():
        pytest.skip(f'{root} with real COCO images is not there')
    register_all_modules()
    config = 'configs/faster_rcnn_autodfp.py'
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    checkpoint = tmp_path / 'random.pth'
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), checkpoint)
    annotations = 'annotations/instances_val2017_mini.json'
    options = {
        'model.test_cfg.rpn.max_per_img': 50,
        'autodfp.reward.num_images': None,
        'autodfp.compare': False,
        'autodfp.agent.warmup_episodes': 1,
    }
    for split in ('val', 'test'):
        options |= {
            f'{split}_dataloader.num_workers': 0,
            f'{split}_dataloader.persistent_workers': False,
            f'{split}_dataloader.dataset.data_root': str(root),
            f'{split}_dataloader.dataset.ann_file': annotations,
            f'{split}_dataloader.dataset.pipeline.1.scale': (256, 160),
            f'{split}_evaluator.ann_file': str(root / annotations),
        }
    runs.prune(config, str(checkpoint), work_dir=str(tmp_path / 'run'), episodes=3, cfg_options=options)
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert summary['search_images'] == 106
    assert summary['episodes'] == 3
    pruned = summary['results'][-1]
    dense = {name: round(pruned[name]['count'] / pruned[name]['ratio']) for name in ('module_params', 'model_params')}
    assert dense['module_params'] == 23_508_032
    state = torch.load(tmp_path / 'run' / 'pruned.pth', weights_only=True)['state_dict']
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    sizes = {name: tensor.numel() for name, tensor in state.items() if not name.endswith(buffers)}
    assert sum(sizes.values()) == pruned['model_params']['count']
    backbone = sum(size for name, size in sizes.items() if name.startswith('backbone.'))
    assert backbone == pruned['module_params']['count']
    assert 0.88 * 23_508_032 < backbone <= 0.9 * 23_508_032
