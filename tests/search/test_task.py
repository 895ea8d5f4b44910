"""A task and its model: what it is made of, that it is pruned once at a time, and that a reward only looks at it."""

from contextlib import suppress

import pytest
import torch
from chain import IMAGES, brightness, make_chain
from conftest import enliven
from test_run import make_task
from torch import nn

from mmautodfp.api import PruningTask, frontier, prune, search
from mmautodfp.costs import ParamBudget
from mmautodfp.reconstruction import SimilarityReconstructor
from mmautodfp.search.undisturbed import undisturbed
from mmautodfp.surgery import apply_plan
from mmautodfp.utils import AutoDFPError

RANDOM = dict(type='RandomSearch')


def train_on(model):
    model.train()
    model(IMAGES)
    return 0.5


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(IMAGES).sum().backward()
    optimizer.step()
    return 0.5


def halve(model):
    model.half()
    return 0.5


@pytest.mark.parametrize(
    ('example', 'said'),
    [
        (IMAGES[:, :1], 'RuntimeError: Given groups=1, weight of size'),
        (IMAGES.double(), 'RuntimeError: '),
        (IMAGES.numpy(), 'TypeError: '),
        (list(IMAGES), 'TypeError: '),
        ('images', 'TypeError: '),
        (dict(images=IMAGES), r'TypeError: .*unexpected keyword'),
    ],
)
def test_an_example_that_the_model_does_not_take_is_told(example, said):
    with pytest.raises(AutoDFPError, match=rf'^the Sequential was to be called with the example_input.*\({said}'):
        make_task(example_input=example)


@pytest.mark.parametrize(
    ('reward', 'changed'), [(train_on, r'1\.num_batches_tracked'), (step, r'0\.weight'), (halve, r'0\.weight')]
)
def test_a_reward_that_changes_the_model_is_told(reward, changed):
    with pytest.raises(AutoDFPError, match=f'the reward changed {changed} of the Sequential'):
        search(make_task(), reward, 2, RANDOM)
    with pytest.raises(AutoDFPError, match=f'the reward changed {changed} of the Sequential'):
        frontier(make_task(), reward, num_points=2)


def test_a_reward_finds_the_model_in_eval_mode_whatever_the_last_one_left():
    task = make_task()
    expected = task.evaluate(task.uniform_plan(), brightness)
    task.model.train()
    assert task.evaluate(task.uniform_plan(), brightness) == expected


def test_a_model_is_in_eval_mode_after_a_reward_that_was_stopped():
    model = make_task().model
    with suppress(KeyError), undisturbed(model):
        model.train()
        raise KeyError
    assert not model.training


def test_a_plan_is_applied_in_eval_mode_whatever_the_last_reward_left(monkeypatch):
    task, modes = make_task(), []
    monkeypatch.setattr(
        'mmautodfp.search.task.apply_plan',
        lambda module, *args, **kwargs: modes.append(task.model.training) or apply_plan(module, *args, **kwargs),
    )

    def leave_in_train_mode(model):
        value = brightness(model)
        model.train()
        return value

    search(task, leave_in_train_mode, 3, RANDOM)
    assert modes
    assert not any(modes)


def test_a_model_that_is_pruned_at_the_moment_is_not_pruned_once_more():
    task = make_task()
    dense = task.evaluate(None, brightness)
    restore = task.apply(task.uniform_plan())
    for use in (
        lambda: task.apply(task.uniform_plan()),
        lambda: search(task, brightness, 2, RANDOM),
        lambda: frontier(task, brightness, num_points=2),
    ):
        with pytest.raises(
            AutoDFPError, match=r'the Sequential is pruned at the moment: 0 has \d outputs; call restore'
        ):
            use()
    restore()
    assert task.evaluate(None, brightness) == dense


def test_no_uniform_plan_keeps_more_than_the_largest_share():
    task = make_task(p_max=0.5)
    assert list(task.uniform_plan().widths.values()) == [4, 6, 5]
    assert max(make_task().uniform_plan().widths.values()) > 6


def test_a_model_can_be_pruned_where_nothing_is_learned():
    settings = dict(type='SyntheticLeastSquares', images=dict(num_images=4, size=16), recalibration=4)
    expected, found = make_chain(), make_chain()
    prune(expected, target='', constraint=0.6, reconstructor=settings)
    with torch.inference_mode():
        prune(found, target='', constraint=0.6, reconstructor=settings)
    assert torch.equal(found(IMAGES), expected(IMAGES))


def test_a_folder_is_no_place_for_a_search(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(AutoDFPError, match='that is a folder; name a file in it'):
        search(make_task(), brightness, 2, RANDOM, checkpoint=tmp_path)
    with pytest.raises(AutoDFPError, match='that is a folder; name a file in it'):
        frontier(make_task(), brightness, num_points=2, file=tmp_path)
    assert (tmp_path / 'notes.txt').read_text() == 'mine'


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(channel_divisor=0), 'a pruning task was asked for channel_divisor=0'),
        (dict(channel_divisor=1.5), 'a pruning task was asked for channel_divisor=1.5'),
        (dict(clustering=dict(radius=1)), 'clustering was asked for radius'),
        (dict(clustering=dict(eps=-1)), 'clustering was asked for eps=-1'),
        (dict(bias_threshold='high'), "bias_threshold='high'"),
        (dict(bias_threshold=-0.5), 'bias_threshold=-0.5; it must be greater than or equal to 0'),
        (dict(share='much'), "constraint of 'much' was asked for, which does not say of what"),
        (dict(example=3), 'example'),
    ],
)
def test_wrong_settings_of_a_task_are_told_in_a_sentence(settings, message):
    with pytest.raises(AutoDFPError, match=message) as caught:
        make_task(**settings)
    assert '\n' not in str(caught.value)


def test_a_limit_serves_two_tasks_and_so_does_a_compensation():
    limit, compensation = ParamBudget(0.6), SimilarityReconstructor()

    def build(width):
        net = enliven(nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 1)))
        return PruningTask.build(net, '', None, limit, compensation)

    small, large = build(8), build(64)
    assert small.constraint.budgets[0].limit < large.constraint.budgets[0].limit
    assert limit.cost is None
    for task in (small, large, small):
        with task.apply(task.uniform_plan()):
            assert task.module[0].out_channels == task.uniform_plan().widths['0']


def test_several_limits_are_given_as_objects_or_configs():
    limits = [ParamBudget(0.6), dict(type='ParamBudget', preserve_ratio=0.7)]
    told = make_task(share=limits).constraint.describe()
    assert [limit['preserve_ratio'] for limit in told] == [0.6, 0.7]
    assert limits[0].cost is None  # the task has a copy


def test_a_share_in_words_is_one_of_the_parameters():
    words, number = make_task(share='60%'), make_task(share=0.6)
    assert words.constraint.budgets[0].limit == number.constraint.budgets[0].limit
    assert words.identity['constraint'] == number.identity['constraint'] == ['ParamBudget', 0.6, 'module']
