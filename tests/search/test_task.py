"""What a task does with its model: it is pruned once at a time, and a reward only looks at it."""

import pytest
import torch
from chain import IMAGES, brightness, make_chain

from mmautodfp.api import PruningTask, frontier, prune, search
from mmautodfp.reconstruction import PruneOnly
from mmautodfp.utils import AutoDFPError

RANDOM = dict(type='RandomSearch')


def make_task(**settings) -> PruningTask:
    return PruningTask.build(make_chain(), '', constraint=0.6, reconstructor=PruneOnly(), **settings)


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
