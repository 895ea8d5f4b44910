"""Pruning from Python: the README's examples as they stand, on random weights."""

import copy
import logging
import pickle
import re
from collections import OrderedDict
from functools import partial

import pytest
import torch
import torchvision
from conftest import REPO, enliven
from mmengine.logging import MMLogger
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

from mmautodfp import api
from mmautodfp.surgery import Slim
from mmautodfp.utils import AutoDFPError

SMALL = dict(type='SyntheticLeastSquares', images=dict(num_images=4, size=64), recalibration=4)


def blocks(page: str, heading: str) -> list[str]:
    """Python code below a heading, with searches of two episodes."""
    section = (REPO / page).read_text().partition(f'\n## {heading}\n')[2].partition('\n## ')[0]
    found = re.findall(r'```python\n(.*?)```', section, re.DOTALL)
    return [re.sub(r'num_episodes=\d+', 'num_episodes=2', block) for block in found]


class Narrow(Bottleneck):
    expansion = 1


def narrow_resnet(weights=None, **settings) -> ResNet:
    """A block a stage, of half and an eighth of the width."""
    torch.manual_seed(0)
    return enliven(ResNet(Narrow, [1, 1, 1, 1], num_classes=10, width_per_group=32, **settings))


def narrow_faster_rcnn(weights=None) -> FasterRCNN:
    """As torchvision makes it for a checkpoint: every norm frozen."""
    body = narrow_resnet(norm_layer=FrozenBatchNorm2d)
    return FasterRCNN(_resnet_fpn_extractor(body, 3), 3, min_size=64, max_size=64)


@pytest.fixture
def _narrow(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, 'resnet50', narrow_resnet)
    monkeypatch.setattr(torchvision.models.detection, 'fasterrcnn_resnet50_fpn', narrow_faster_rcnn)
    monkeypatch.setattr(api, 'prune', partial(api.prune, reconstructor=SMALL))


def run(block: str, names: dict | None = None) -> dict:
    names = {} if names is None else names
    exec(compile(block, 'README.md', 'exec'), names)
    return names


@pytest.mark.usefixtures('_narrow')
def test_the_readmes_classifier_is_pruned_saved_and_built_again():
    classifier, _ = blocks('README.md', 'From Python')
    assert len(classifier.splitlines()) <= 24
    names = run(classifier)
    pruned, slim, images = names['model'], names['slim'], names['images']
    dense = narrow_resnet()
    assert count(pruned) <= 0.7 * count(dense)
    assert len(names['result'].search.history) == 2
    assert re.fullmatch(r'PruningResult\(\d+ groups; .*module params \d\d\.\d%.*\)', repr(names['result']))
    assert names['result'].search.reward == max(names['result'].search.history.rewards)
    with torch.no_grad():
        assert torch.equal(slim.eval()(images), pruned(images))
        names['result'].restore()
        assert torch.equal(pruned(images), dense(images))


@pytest.mark.usefixtures('_narrow')
def test_the_readmes_detector_keeps_within_its_flops_and_is_built_again():
    _, detector = blocks('README.md', 'From Python')
    assert len(detector.splitlines()) <= 24
    names = run(detector)
    model, result, images = names['model'], names['result'], names['images']
    assert result.task.summary(result.plan)['module_flops']['ratio'] <= 0.7
    assert any(isinstance(layer, FrozenBatchNorm2d) for layer in model.modules())
    again = narrow_faster_rcnn()
    Slim(again.backbone.body, result.layers)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        batch = torch.stack(images)
        found, expected = again.eval().backbone(batch), model.backbone(batch)
        assert isinstance(expected, OrderedDict)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert found.keys() == expected.keys()


@pytest.mark.usefixtures('_narrow')
def test_the_steps_of_the_docs_do_what_their_comments_say(capsys):
    (block,) = blocks('docs/extending.md', 'In Python')
    model = torch.nn.Sequential()
    model.backbone = narrow_resnet()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        dense = model(images)
    rewards = []

    def reward(model):
        with torch.no_grad():
            rewards.append(-(model(images) - dense).abs().mean().item())
        return rewards[-1]

    block = block.replace("target='backbone',", f"target='backbone', reconstructor={SMALL},")
    names = run(block, dict(model=model, images=images, reward=reward))
    assert 'prunable groups in the ResNet' in capsys.readouterr().out
    task, found = names['task'], names['found']
    assert all(plan.width % 8 == 0 or plan.width == plan.num_channels for plan in found.plan.groups.values())
    assert task.summary(found.plan)['module_params']['ratio'] <= 0.7
    assert task.summary(found.plan)['module_flops']['ratio'] <= 0.8
    assert len(rewards) == 3  # one plan by itself, two episodes
    assert names['layers'].keys() <= {path for path, _ in model.backbone.named_modules()}
    with torch.no_grad():
        assert torch.equal(model(images), dense)


@pytest.mark.usefixtures('_narrow')
def test_the_frontier_of_the_docs_prunes_the_best_point_within_its_limit():
    (block,) = blocks('docs/extending.md', 'A frontier in Python')
    model, images = narrow_resnet(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        dense = model(images)
    task = api.PruningTask.build(model, '', images, reconstructor=SMALL)

    @torch.no_grad()
    def reward(model):
        return -(model(images) - dense).abs().mean().item()

    names = run(block.replace('num_points=21', 'num_points=4'), dict(task=task, reward=reward))
    points, choice = names['points'].points, names['choice']
    within = [point for point in points if point.cost('flops')['ratio'] <= 0.6]
    assert 0 < len(within) < len(points)
    assert choice.point.metric == max(point.metric for point in within) == reward(model)
    assert count(model) == choice.point.cost('params')['count']


def test_without_a_reward_the_allocated_plan_is_applied_and_nothing_else_is_needed():
    model = narrow_resnet()
    result = api.prune(model, constraint=0.6, target='', reconstructor=SMALL)
    assert result.search is None
    assert result.plan == result.task.allocated_plan()
    assert count(model) <= 0.6 * count(narrow_resnet())
    uniform = api.prune(narrow_resnet(), constraint=0.6, target='', reconstructor=dict(type='SimilarityReconstructor'))
    assert uniform.plan == uniform.task.uniform_plan()


def test_the_log_says_what_a_call_from_python_does_and_what_it_leaves_alone(caplog, monkeypatch):
    monkeypatch.setattr(MMLogger, 'get_current_instance', lambda: logging.getLogger('ours'))
    with caplog.at_level(logging.INFO, 'ours'):
        result = api.prune(narrow_resnet(), constraint=0.6, target='', reconstructor=SMALL)
    begun, limits, applied, done = (record.getMessage() for record in caplog.records)
    assert begun.startswith('channels that can be pruned are looked for')
    assert limits == result.task.describe()
    assert applied.startswith('the plan is applied')
    assert done == repr(result)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_a_result_can_be_copied_and_pickled_and_then_runs_its_own_model(copied):
    model = torch.nn.Sequential(OrderedDict(stem=torch.nn.Conv2d(3, 3, 1), backbone=narrow_resnet()))
    result = api.prune(model, constraint=0.6, reconstructor=SMALL)
    pruned = copy.deepcopy(model.state_dict())
    again = copied(result)
    for weight in model.parameters():
        weight.data.fill_(torch.nan)
    assert all(torch.equal(tensor, pruned[name]) for name, tensor in again.task.model.state_dict().items())
    again.restore()
    again.task.apply(again.plan, final=True)
    assert all(torch.equal(tensor, pruned[name]) for name, tensor in again.task.model.state_dict().items())


def test_several_parts_are_pruned_together():
    model, parts = narrow_resnet(), ['layer3', 'layer4']
    result = api.prune(model, constraint=0.6, target=parts, reconstructor=SMALL)
    assert result.task.target == 'layer3,layer4'
    assert {group.name.partition('.')[0] for group in result.task.groups} == set(parts)
    inside = lambda model: sum(count(model.get_submodule(part)) for part in parts)
    assert inside(model) <= 0.6 * inside(narrow_resnet())


def test_what_cannot_be_had_is_told_in_a_sentence():
    with pytest.raises(AutoDFPError, match='without an example_input it cannot be told; give one, or name the param'):
        api.prune(narrow_resnet(), constraint=dict(type='FlopBudget'), target='', reconstructor=SMALL)
    with pytest.raises(AutoDFPError, match='the ResNet has no such part; it has conv1, '):
        api.prune(narrow_resnet(), constraint=0.5)


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, 1], ids=['resnet50', 'faster_rcnn'])
def test_the_readmes_examples_run_at_full_width(index, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, 'prune', partial(api.prune, reconstructor=SMALL))
    block = blocks('README.md', 'From Python')[index]
    block = block.replace("weights='DEFAULT'", ['', 'weights=None, weights_backbone=None, min_size=128'][index])
    assert 0 < run(block)['result'].search.reward < float('inf') or index == 0


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(foo=1), 'prune was asked for foo, which it does not know; it knows .*num_episodes.*channel_divisor'),
        (dict(search_settings=dict(foo=1)), 'prune was asked for foo, which it does not know; it knows .*racing'),
        (dict(search_settings=5), 'prune was asked for search_settings=5'),
        (dict(num_episodes=0), 'prune was asked for num_episodes=0'),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence_before_anything_is_done(settings, message):
    with pytest.raises(AutoDFPError, match=message):
        api.prune(torch.nn.Linear(2, 2), lambda model: 0.0, **settings)
