"""Shared by all tests: networks with lively norms, the digits data set, the demo detector."""

import copy
import os
from pathlib import Path

if 'PYTEST_XDIST_WORKER' in os.environ:
    # Processes that share the cores slow one another down many times over with several threads each.
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from filelock import FileLock
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from own_data import own_data  # noqa: F401, a fixture
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from mmautodfp.graph import find_groups
from mmautodfp.reconstruction import Reconstructor
from mmautodfp.runs import prune
from mmautodfp.surgery import GroupPlan, PruningPlan
from mmautodfp.utils.fileio import load_json, save_json
from mmautodfp.zoo import make_digits

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / 'shared'


def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm random statistics, as training would, and switch to eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d):
            size = layer.weight.shape
            layer.weight.data = torch.rand(size, generator=generator) + 0.5
            layer.bias.data = torch.randn(size, generator=generator) * 0.3
            layer.running_mean = torch.randn(size, generator=generator) * 0.3
            layer.running_var = torch.rand(size, generator=generator) + 0.5
    model.eval()
    return model


def random_plan(module: nn.Module, seed: int = 0) -> PruningPlan:
    """A plan of random widths, random channels and random lambdas for every group."""
    generator = torch.Generator().manual_seed(seed)
    groups = {}
    for group in find_groups(module):
        width = int(torch.randint(1, group.num_channels + 1, (), generator=generator))
        keep = torch.randperm(group.num_channels, generator=generator)[:width].sort().values
        groups[group.name] = GroupPlan(
            tuple(keep.tolist()), group.num_channels, torch.rand((), generator=generator).item()
        )
    return PruningPlan(groups)


def masked_dense(module: nn.Module, plan: PruningPlan, reconstructor: Reconstructor) -> nn.Module:
    """No surgery: a dense copy, its consumers' weights merged, with pruned channels zeroed where a consumer reads."""
    reconstructor.ensure_fitted(module)
    dense = copy.deepcopy(module)
    for group in find_groups(module):
        keep = torch.tensor(plan.groups[group.name].keep)
        found = reconstructor.reconstruct(group, keep, plan.groups[group.name].lam)
        (consumer,) = group.consumers
        layer = dense.get_submodule(consumer.name)
        columns = layer.weight.shape[1] // group.num_channels  # of one channel, above 1 behind a flatten
        spread = layer.weight.new_zeros(group.num_channels, group.num_channels)
        spread[:, keep] = found.delivery.to(spread)
        spread = torch.kron(spread, torch.eye(columns, dtype=spread.dtype))
        layer.weight.data.copy_(torch.tensordot(layer.weight.data, spread, dims=([1], [0])).movedim(-1, 1))
        mask = spread.new_zeros(group.num_channels)
        mask[keep] = 1
        mask = mask.repeat_interleave(columns).view((1, -1) if isinstance(layer, nn.Linear) else (1, -1, 1, 1))
        layer.register_forward_pre_hook(lambda _, inputs, mask=mask: inputs[0] * mask)
    return dense


def build_resnet(depth: int = 50, seed: int = 0, **settings) -> nn.Module:
    """mmdet's ResNet at a quarter of its width unless told otherwise, with random weights."""
    import mmdet.models  # noqa: F401, registers the model

    torch.manual_seed(seed)
    config = dict(type='mmdet.ResNet', depth=depth, base_channels=16, norm_cfg=dict(type='BN')) | settings
    return enliven(MODELS.build(config), seed)


@pytest.fixture
def other_weights(tmp_path) -> str:
    """A checkpoint that fits the VGG of the demo, and is not its own."""
    state = torch.load(REPO / 'configs/demo/vgg_digits.pth', weights_only=True)
    state = state.get('state_dict', state)
    next(iter(state.values())).mul_(2)
    (tmp_path / 'other').mkdir()
    torch.save(state, tmp_path / 'other/vgg_digits.pth')
    return str(tmp_path / 'other/vgg_digits.pth')


@pytest.fixture(autouse=True)
def _mmdet_scope():
    """Transforms are found in the scope of the last Runner; tests must not depend on their order."""
    init_default_scope('mmdet')


@pytest.fixture(scope='session', autouse=True)
def workspace(tmp_path_factory) -> Path:
    """Where all tests run: the repository's configs and tools are there, and nothing is written beside them."""
    folder = tmp_path_factory.mktemp('workspace')
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(REPO / name)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope='session')
def digits_root(workspace) -> Path:
    """The digits data set where the demo configs look for it; made once (20 seconds), kept between runs."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmautodfp'
    cache.mkdir(parents=True, exist_ok=True)
    (workspace / 'data').mkdir()
    with FileLock(cache / 'digits.lock'):  # of the processes that share the tests, one makes it
        (workspace / 'data/digits').symlink_to(make_digits(cache / 'digits'))
    return workspace / 'data/digits'


@pytest.fixture(scope='session')
def small_demo(digits_root, tmp_path_factory) -> dict:
    """Overrides that let the demo's whole path run in seconds, on 24 test images and four episodes."""
    content = load_json(digits_root / 'annotations/instances_test.json', 'annotations')
    content['images'] = content['images'][:24]
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] <= 24]
    small = tmp_path_factory.mktemp('annotations') / 'small.json'
    save_json(content, small)
    loaders = {
        f'{split}_dataloader': dict(num_workers=0, persistent_workers=False) for split in ('train', 'val', 'test')
    }
    return {
        'autodfp.num_episodes': 4,
        'autodfp.reward.num_images': 8,
        'autodfp.reward.batch_size': 8,
        'autodfp.agent.warmup_episodes': 2,
        'autodfp.budget.preserve_ratio': 0.9,
        'train_dataloader.dataset.indices': 32,
        'val_dataloader.dataset.indices': 40,
        'test_dataloader.dataset.ann_file': str(small),
        'test_evaluator.ann_file': str(small),
        **{f'{loader}.{key}': value for loader, settings in loaders.items() for key, value in settings.items()},
    }


@pytest.fixture(scope='session')
def small_ours(small_demo) -> dict:
    """The same with least squares, on four synthetic images."""
    return small_demo | {
        'autodfp.reconstructor': dict(type='SyntheticLeastSquares', images=dict(num_images=4, size=64))
    }


@pytest.fixture(scope='session')
def demo_run(small_demo, tmp_path_factory) -> tuple[Path, dict]:
    """One run of the main job on the demo's detector: its work dir and what its test loop said."""
    work_dir = tmp_path_factory.mktemp('run')
    # MMEngine keeps a visualizer by its name, and with it the folder of the test that came first.
    options = small_demo | {'visualizer.name': 'demo_run'}
    metrics = prune('configs/demo/faster_rcnn_digits_autodfp.py', work_dir=str(work_dir), cfg_options=options)
    return work_dir, metrics


@pytest.fixture
def demo_config(small_demo, tmp_path) -> Config:
    """The demo's config, made small, with a work dir of its own."""
    cfg = Config.fromfile('configs/demo/faster_rcnn_digits_autodfp.py')
    cfg.work_dir = str(tmp_path / 'run')
    cfg.merge_from_dict(small_demo)
    return cfg
