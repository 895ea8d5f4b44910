"""A model that is pruned already, pruned once more."""

import copy

import pytest
import torch
from conftest import REPO, build_resnet, enliven, random_plan
from mmdet.registry import MODELS
from mmengine.config import Config

from mmautodfp.api import prune
from mmautodfp.graph import find_groups
from mmautodfp.outputs import slim_config
from mmautodfp.outputs.latency import dense_module
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, SimilarityReconstructor, SyntheticLeastSquares
from mmautodfp.surgery import GroupPlan, PruningPlan, Slim, apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.zoo import CifarResNet

IMAGES = dict(num_images=8, size=32, batch_size=4)


@pytest.mark.parametrize('final', [False, True])
@pytest.mark.parametrize(
    'build', [PruneOnly, SimilarityReconstructor, NeuronMerging, lambda: SyntheticLeastSquares(IMAGES)]
)
def test_a_second_plan_of_the_same_reconstructor_is_one_of_the_narrower_model(build, final):
    module, reconstructor = enliven(CifarResNet(depth=8)), build()
    dense = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    first = random_plan(module, 1)
    once = apply_plan(module, first, reconstructor, final)
    second = random_plan(module, 2)
    assert {name: group.num_channels for name, group in second.groups.items()} == first.widths
    with torch.no_grad():
        twice = apply_plan(module, second, reconstructor, final)
        found = module(images)
        twice()
        with apply_plan(module, second, build(), final):  # as if it had never seen the wide one
            assert torch.equal(module(images), found)
    once()
    assert all(torch.equal(dense[name], tensor) for name, tensor in module.state_dict().items())


def test_nested_slims_are_built_without_looking_for_groups(monkeypatch):
    model = build_resnet(18)
    config = dict(type='mmdet.ResNet', depth=18, base_channels=16, norm_cfg=dict(type='BN'))
    for seed in range(2):
        restore = apply_plan(model, random_plan(model, seed), SimilarityReconstructor())
        config = dict(type='mmautodfp.Slim', module=config, layers=restore.changes(model))
    monkeypatch.setattr('mmautodfp.graph.groups.walk_groups', None)
    settings = {key: value for key, value in config.items() if key != 'type'}
    slim = Slim(**settings)
    slim.load_state_dict(model.state_dict())


def test_a_config_tells_all_shapes_of_a_detector_that_was_pruned_several_times():
    cfg = Config.fromfile(REPO / 'configs/demo/retinanet_digits.py')
    model = MODELS.build(cfg.model).eval()
    for target in ('model', 'model', 'backbone'):
        result = prune(model, constraint=0.8, target=target, reconstructor=dict(type='PruneOnly'))
        cfg = slim_config(cfg, result.task.path, result.layers, None)
        rebuilt = MODELS.build(cfg.model)
        rebuilt.load_state_dict(model.state_dict())
        before = dense_module(cfg.model.to_dict(), result.task.path)
        Slim(before, result.layers).load_state_dict(result.task.module.state_dict())
    assert len(cfg.model.layers) == 3


def test_pruning_from_python_once_more_narrows_further():
    model = enliven(CifarResNet(depth=14))
    settings = dict(target='', reconstructor=dict(type='SyntheticLeastSquares', images=IMAGES), p_min=0.05)
    counts = [sum(p.numel() for p in model.parameters())]
    for _ in range(2):
        result = prune(model, constraint=0.7, **settings)
        counts.append(sum(p.numel() for p in model.parameters()))
        assert counts[-1] <= 0.7 * counts[-2]
        assert result.plan.widths == {group.name: group.num_channels for group in find_groups(model)}
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def both_ends_pruned(reconstructor):
    """A network, a copy of its state, and what undoes each of two prunings, of its first and of its last group."""
    module = enliven(CifarResNet(depth=8))
    dense = copy.deepcopy(module.state_dict())
    first, *_, last = find_groups(module)
    plans = [PruningPlan({group.name: GroupPlan((0, 1, 2), group.num_channels)}) for group in (first, last)]
    return module, dense, [apply_plan(module, plan, reconstructor) for plan in plans]


def assert_state(module, expected):
    state = module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())


def test_prunings_of_the_same_layers_are_undone_last_one_first():
    """No width tells the order here: what both prunings change are running statistics."""
    module, dense, (first, second) = both_ends_pruned(SyntheticLeastSquares(IMAGES))
    pruned = copy.deepcopy(module.state_dict())
    for undo in (first, first.swap):
        with pytest.raises(AutoDFPError, match=r'a BatchNorm2d, has been pruned again since; undo the later pruning'):
            undo()
    assert_state(module, pruned)
    second()
    first()
    assert_state(module, dense)


def test_prunings_of_different_layers_are_undone_in_any_order():
    module, dense, undo = both_ends_pruned(None)
    for restore in undo:
        restore()
    assert_state(module, dense)
