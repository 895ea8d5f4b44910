"""Groups of whole detectors: a slim one is the masked dense one, its counts are exact, and it comes back as it was."""

import copy
from functools import cache

import pytest
import torch
from conftest import REPO
from mmcv.ops import DeformConv2dPack
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

from mmautodfp.costs import measure_positions, model_costs
from mmautodfp.graph import ChannelGroup, outputs_of, samples_of
from mmautodfp.reconstruction import PruneOnly, SyntheticLeastSquares
from mmautodfp.search.environment import PruningEnv
from mmautodfp.search.task import PruningTask
from mmautodfp.surgery import GroupPlan, PruningPlan, Restore, apply_plan
from mmautodfp.surgery.proof import mask_group

SMALL = dict(widen_factor=0.125)
NECK = dict(in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1)
HEAD = dict(in_channels=32, feat_channels=32, num_classes=10)
DETECTORS = dict(
    faster_rcnn=(f'{REPO}/configs/demo/faster_rcnn_digits.py', {}),
    mask_rcnn=(f'{REPO}/configs/demo/mask_rcnn_digits.py', {}),
    retinanet=(f'{REPO}/configs/demo/retinanet_digits.py', {}),
    fcos=(f'{REPO}/configs/demo/fcos_digits.py', {}),
    rtmdet=('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', dict(backbone=SMALL, neck=NECK, bbox_head=HEAD)),
    yolox=('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', dict(backbone=SMALL, neck=NECK, bbox_head=HEAD)),
)
# Two hundred in all; the first few of each always.
PLANS, FIRST_PLANS = 34, 2
LIMITS = dict(params=0.5, flops=0.4)

detectors = pytest.mark.parametrize('name', DETECTORS)


@cache
def task_of(name: str) -> PruningTask:
    """A detector of random weights with its groups, which are proven here, once; in double precision."""
    config, changes = DETECTORS[name]
    if config.startswith('mmdet::'):
        from mmengine.hub import get_config

        cfg = get_config(config)
    else:
        cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(model=changes))
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for layer in model.modules():
        if isinstance(layer, nn.GroupNorm | nn.modules.batchnorm._BatchNorm):
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.3)
            if not isinstance(layer, nn.GroupNorm):
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 1.5)
    images = torch.rand(1, 3, 64, 64)
    budgets = [
        dict(type='ParamBudget', preserve_ratio=LIMITS['params'], scope='model'),
        dict(type='FlopBudget', preserve_ratio=LIMITS['flops'], scope='model'),
    ]
    settings = dict(p_min=0.1, reconstructor=PruneOnly(), allocate=False)
    task = PruningTask.build(model, 'model', (images, samples_of(images)), budgets, **settings)
    model.double()
    return task


def random_plan(groups: list[ChannelGroup], seed: int) -> PruningPlan:
    random = torch.Generator().manual_seed(seed)
    plans = {}
    for group in groups:
        width = int(torch.randint(1, group.num_channels + 1, (), generator=random))
        keep = torch.randperm(group.num_channels, generator=random)[:width].sort().values
        plans[group.name] = GroupPlan(tuple(keep.tolist()), group.num_channels)
    return PruningPlan(plans)


def images_of(seed: int) -> Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)).double()


@torch.no_grad()
def assert_slim_equals_masked(task: PruningTask, seed: int) -> None:
    plan, images = random_plan(task.groups, seed), images_of(seed)
    with Restore() as restore:
        for group in task.groups:
            mask_group(task.model, group, plan.groups[group.name], restore)
        masked = outputs_of(task.model, images)
    with task.apply(plan):
        slim = outputs_of(task.model, images)
    assert len(slim) == len(masked) > 1
    for a, b in zip(slim, masked, strict=True):
        # A map of a single place and channel has no deviation.
        assert (a - b).abs().max() <= 1e-5 * b.std(correction=0) + 1e-9 * b.abs().max()


@pytest.mark.parametrize('seed', range(FIRST_PLANS))
@detectors
def test_a_slim_detector_says_what_the_masked_dense_one_says(name, seed):
    assert_slim_equals_masked(task_of(name), seed)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(FIRST_PLANS, PLANS))
@detectors
def test_slim_detectors_say_what_masked_dense_ones_say_under_many_plans(name, seed):
    assert_slim_equals_masked(task_of(name), seed)


@detectors
def test_dense_detectors_differ_from_masked_ones(name):
    """Or the tests above would prove nothing."""
    task = task_of(name)
    plan, images = random_plan(task.groups, 0), images_of(0)
    with torch.no_grad():
        dense = outputs_of(task.model, images)
        with task.apply(plan):
            slim = outputs_of(task.model, images)
    assert all(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(dense, slim, strict=True))


@pytest.mark.parametrize('seed', range(2))
@detectors
def test_counts_are_those_of_the_slim_model(name, seed):
    task = task_of(name)
    plan, images = random_plan(task.groups, seed), images_of(seed)
    widths = [plan.widths[group.name] for group in task.groups]
    # Of two stages with the same regions; a pruned first one may propose another number of them.
    count = lambda: measure_positions(task.model, lambda: outputs_of(task.model, images))
    with torch.no_grad():
        flops = model_costs(task.model, task.model, task.groups, count()).flops['model']
        with task.apply(plan):
            slim_params = sum(parameter.numel() for parameter in task.model.parameters())
            slim_flops = sum(places * layer.weight.numel() for layer, places in count().items())
    assert task.costs.params['model'](widths) == slim_params
    assert flops(widths) == slim_flops < flops(flops.dense)
    if not hasattr(task.model, 'roi_head'):
        assert task.costs.flops['model'](widths) == slim_flops


@pytest.mark.parametrize('name', ['faster_rcnn', 'retinanet', 'fcos'])
def test_a_bias_that_appears_is_counted(name):
    """Least squares moves constants into convolutions before a GroupNorm, which had no bias."""
    task = task_of(name)
    model, groups = copy.deepcopy(task.model).float(), task.groups
    images = dict(num_images=2, size=64, batch_size=2)
    added = []
    for reconstructor in (SyntheticLeastSquares(images, recalibration=2), PruneOnly()):
        costs = model_costs(model, model, groups, {}, reconstructor.moves_constants)
        for seed in range(4):
            plan = random_plan(groups, seed)
            if seed % 2:  # some stay whole, and what reads nothing else gets no bias
                plan = PruningPlan(dict(list(plan.groups.items())[seed::3]))
            widths = [plan.widths.get(group.name, group.num_channels) for group in groups]
            with apply_plan(model, plan, reconstructor, final=seed == 0, groups=groups) as restore:
                assert costs.params['model'](widths) == sum(parameter.numel() for parameter in model.parameters())
                added.append(sum('bias' in sizes for sizes in restore.changes(model).values()))
    assert any(added[:4]) == (name == 'fcos')
    assert not any(added[4:])


def test_a_deformable_convolution_that_cannot_have_a_bias_is_given_none():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 12, 3), nn.ReLU(), DeformConv2dPack(12, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3)
    model = nn.Sequential(*layers).eval()
    reconstructor = dict(type='SyntheticLeastSquares', images=dict(num_images=2, size=32, batch_size=2))
    task = PruningTask.build(model, 'model', None, 0.6, reconstructor)
    assert [group.name for group in task.groups] == ['0', '2']
    assert len(task.layer_states) == 2  # what an agent sees of a layer has its bias in it
    plan = task.allocated_plan()
    for final in (False, True):
        with task.apply(plan, final):
            assert task.summary(plan)['model_params']['count'] == sum(p.numel() for p in model.parameters())
            assert model(torch.rand(1, 3, 32, 32)).shape == (1, 5, 28, 28)


def test_the_share_that_a_list_of_parts_keeps_is_of_these_parts():
    model, images = copy.deepcopy(task_of('retinanet').model).float(), torch.rand(1, 3, 64, 64)
    limits = [dict(type=kind, preserve_ratio=0.5) for kind in ('ParamBudget', 'FlopBudget')]
    task = PruningTask.build(
        model, ['backbone', 'neck'], (images, samples_of(images)), limits, PruneOnly(), allocate=False
    )
    params = lambda: sum(p.numel() for part in (model.backbone, model.neck) for p in part.parameters())
    dense = params()
    assert task.costs.params['module'](task.dense_widths) == dense < task.costs.params['model'](task.dense_widths)
    plan = task.uniform_plan()
    with task.apply(plan):
        assert task.summary(plan)['module_params']['count'] == params() <= dense / 2
    assert task.summary(plan)['module_flops']['ratio'] <= 0.5 < task.summary(plan)['model_flops']['ratio']


@detectors
def test_a_detector_comes_back_with_the_very_same_tensors(name):
    task = task_of(name)
    tensors = lambda: [*task.model.named_parameters(), *task.model.named_buffers()]
    sizes = lambda: {path: repr(layer) for path, layer in task.model.named_modules() if not list(layer.children())}
    before, values, shapes = tensors(), [tensor.clone() for _, tensor in tensors()], sizes()
    restore = task.apply(random_plan(task.groups, 7))
    assert sizes() != shapes
    restore()
    assert sizes() == shapes
    for (path, tensor), (name, old), value in zip(tensors(), before, values, strict=True):
        assert path == name
        assert tensor is old
        assert torch.equal(tensor, value)


@detectors
def test_random_agents_never_exceed_the_budgets(name):
    task = task_of(name)
    # As the task's own, but for states that say nothing: clustering channels takes longer than all else here.
    states = torch.zeros(len(task.groups), 1)
    env = PruningEnv([group.name for group in task.groups], task.rankings, states, task.constraint, task.ratios)
    random = torch.Generator().manual_seed(0)
    for power in (1.0, 1.0, 0.2, 0.05):  # the last ones ask for nearly everything
        for _ in range(5):
            rollout = env.rollout(lambda _, power=power: torch.rand(2, generator=random) ** power)
            for metric, limit in LIMITS.items():
                assert getattr(task.costs, metric)['model'].ratio(rollout.widths) <= limit
            for group, width in zip(task.groups, rollout.widths, strict=True):
                assert 1 <= width <= group.num_channels


def test_groups_cover_norms_of_groups_blocks_followers_and_streams():
    """What the detectors above are good for."""
    groups = {name: task_of(name).groups for name in DETECTORS}
    assert any(group.block > 1 for group in groups['fcos'])
    assert any(group.followers for group in groups['faster_rcnn'])
    assert any(consumer.offset for group in groups['yolox'] for consumer in group.consumers)
    assert all(any(group.others for group in found) for found in groups.values())
