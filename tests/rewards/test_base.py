"""Rewards of a user's own: a plain function, and a subclass that says no more than it must."""

import functools

import pytest
import torch
from conftest import enliven
from torch import nn

from mmautodfp.api import PruningTask, search
from mmautodfp.rewards import Reward, SyntheticReward

AGENT = dict(type='RandomSearch')


@pytest.fixture
def task() -> PruningTask:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    model = enliven(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)))
    return PruningTask.build(model, '', None, 0.7, dict(type='SimilarityReconstructor'))


class Sureness(Reward):
    """Mean of the largest probability in each answer."""

    name = 'sureness'

    def prepare(self, model, dataloader, layers=()):
        self.samples = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def __call__(self, model):
        return model(self.samples).softmax(1).amax(1).mean().item()

    def one_batch(self):
        return dict(input=self.samples[:1])

    def held_out(self, model, dataloader):
        return None

    @property
    def images(self):
        return [f'image {number}' for number in range(len(self.samples))]


def test_a_subclass_that_says_no_more_than_it_must_rewards_a_search_with_and_without_a_race(task):
    reward = Sureness()
    reward.prepare(task.model, {})
    dense = reward(task.model)
    found = search(task, reward, 4, AGENT)
    assert task.evaluate(found.plan, reward) == pytest.approx(found.reward)
    assert found.image_evaluations == dict(done=20, without_racing=20)
    assert reward(task.model) == dense
    # There is one stage, after which all is known: there is no race.
    assert search(task, reward, 4, AGENT, racing=True).history.rewards == found.history.rewards


def test_whatever_can_be_called_rewards_the_same_search(task):
    reward = Sureness()
    reward.prepare(task.model, {})
    expected = search(task, reward, 3, AGENT)
    for own in (reward.__call__, lambda model: reward(model), functools.partial(Sureness.__call__, reward)):
        found = search(task, own, 3, AGENT)
        assert found.history.rewards == expected.history.rewards
        assert found.image_evaluations == {}


def test_a_reward_without_data_needs_no_runner(task):
    reward = SyntheticReward(dict(num_images=2, size=16, batch_size=2))
    reward.prepare(task.model)
    found = search(task, reward, 3, AGENT)
    assert found.reward < reward(task.model) == pytest.approx(1, abs=1e-6)
