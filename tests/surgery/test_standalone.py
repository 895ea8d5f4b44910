"""Pruned models that stand by themselves: the config is enough, and files of the version before still load."""

import copy

import pytest
import torch
from conftest import REPO, build_resnet, random_plan
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch import nn

import mmautodfp.graph
from mmautodfp.outputs.latency import dense_module
from mmautodfp.reconstruction import SimilarityReconstructor
from mmautodfp.surgery import GroupPlan, PruningPlan, Slim, apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import MODELS

OLD = REPO / 'tests/files/version_0_1'


def test_a_slim_model_is_built_without_a_finder_and_takes_the_pruned_weights(monkeypatch):
    dense = build_resnet(50, base_channels=8)
    twin = copy.deepcopy(dense)
    restore = apply_plan(dense, random_plan(dense), SimilarityReconstructor())
    monkeypatch.setattr(mmautodfp.graph.groups, 'walk_groups', lambda *_: pytest.fail('a finder ran'))
    slim = Slim(twin, restore.changes(dense))
    assert slim is twin
    slim.load_state_dict(dense.state_dict())
    images = torch.randn(2, 3, 64, 64)
    slim.eval()
    with torch.no_grad():
        for found, expected in zip(slim(images), dense(images), strict=True):
            assert torch.equal(found, expected)
    for path, layer in dense.named_modules():
        if isinstance(layer, nn.Conv2d):
            other = slim.get_submodule(path)
            assert (layer.in_channels, layer.out_channels) == (other.in_channels, other.out_channels)


def test_depthwise_layers_and_biases_that_pruning_adds_are_rebuilt():
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1, bias=False),
        )

    torch.manual_seed(0)
    net = build()
    net[0].weight.data[5:] = 0  # constant channels: what they give becomes a bias of the last layer
    plan = PruningPlan({'0': GroupPlan((0, 1, 2, 4), 8)})
    restore = apply_plan(net, plan, SimilarityReconstructor())
    layers = restore.changes(net)
    assert layers == {
        '0': dict(out_channels=4),
        '2': dict(in_channels=4, out_channels=4, groups=4),
        '4': dict(in_channels=4, bias=True),
    }
    slim = Slim(build(), layers)
    slim.load_state_dict(net.state_dict())
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(slim(x), net(x))
    restore()
    assert restore.changes(net) == {}


def test_weights_that_no_checkpoint_fills_are_random_of_the_right_shape():
    slim = Slim(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), {'0': dict(out_channels=5), '1': dict(num_features=5)}
    )
    assert slim[0].weight.shape == (5, 3, 3, 3)
    assert slim[0].weight.std() > 0
    assert torch.equal(slim[1].running_var, torch.ones(5))


@pytest.mark.parametrize(
    ('layers', 'message'),
    [
        ({'9': dict(out_channels=3)}, "a layer '9', but the Sequential has none of that name"),
        ({'0': dict(num_groups=3)}, '0 is a Conv2d, which has no num_groups'),
        ({'0': 8}, r'0 takes a dict of sizes, such as dict\(out_channels=8\), got 8'),
        ({'0': dict(out_channels=0)}, 'out_channels=0, but a Conv2d takes a whole number of 1 or more'),
        ({'0': dict(out_channels='4')}, "out_channels='4'"),
        ({'0': dict(bias=3)}, '0 was to have bias=3, but bias can only be True'),
        ({'0': dict(bias=False)}, '0 was to have bias=False, but bias can only be True'),
        (None, 'asked for layers=None; it takes a dict of each changed layer to its sizes'),
        (['0'], r"asked for layers=\['0'\]; it takes a dict"),
        ({'1': dict(bias=True)}, '1 is a ReLU, which has no bias'),
    ],
)
def test_sizes_that_do_not_fit_are_told_in_one_sentence(layers, message):
    with pytest.raises(AutoDFPError, match=message):
        Slim(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), layers)


def test_files_of_version_0_1_still_load():
    cfg = Config.fromfile(OLD / 'pruned.py')
    assert 'widths' in cfg.model.network  # as that version wrote it
    model = MODELS.build(cfg.model)
    load_checkpoint(model, str(OLD / 'pruned.pth'), strict=True)
    kept = {name: len(group.keep) for name, group in PruningPlan.from_json(OLD / 'strategy.json').groups.items()}
    assert dict(cfg.model.network.widths) == kept
    assert all(model.network.get_submodule(name).out_channels == width for name, width in kept.items())
    dense = dense_module(cfg.model, 'network')
    assert dense.features[0].out_channels > kept['features.0']
