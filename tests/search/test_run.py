"""A search from beginning to end, on a chain of small convolutions, with a plain function as reward."""

import logging
import re

import mmcv
import numpy as np
import pytest
import torch
from chain import IMAGES, brightness, make_chain
from torch import nn

from mmautodfp.reconstruction import PruneOnly
from mmautodfp.rewards import SyntheticReward
from mmautodfp.search.run import search
from mmautodfp.search.task import PruningTask
from mmautodfp.utils import AutoDFPError

AGENT = dict(type='SAC', warmup_episodes=5, batch_size=8, hidden_sizes=(16,), buffer_episodes=5)


class Listed(PruneOnly):
    """Keeps channels in the order of their numbers, or in the opposite one, which also shares them out otherwise."""

    def __init__(self, backwards=False):
        super().__init__()
        self._backwards = backwards  # no setting: two runs of the same search may still differ in it

    def ranking(self, group):
        order = torch.arange(group.num_channels)
        return order.flip(0) if self._backwards else order

    def error_curve(self, group, ranking):
        left = torch.linspace(1, 0, group.num_channels + 1)
        return left * group.num_channels if self._backwards else left**2


def make_task(backwards=False, seed=0, share=0.6, **settings) -> PruningTask:
    return PruningTask.build(make_chain(seed), '', constraint=share, reconstructor=Listed(backwards), **settings)


class Counted:
    """A metric that counts its calls and is killed before one of them; its name is the same each time."""

    def __init__(self, metric, until=None):
        self.metric, self.until, self.calls = metric, until, 0

    def __call__(self, model):
        if self.calls == self.until:
            raise KeyboardInterrupt
        self.calls += 1
        return self.metric(model)


class Staged:
    """The same in three steps, an image more in each of the first two."""

    images = ('a.png', 'b.png', 'c.png', 'd.png')
    stages = (1, 2, 4)

    def __call__(self, model):
        return brightness(model)

    @torch.no_grad()
    def evaluate(self, model):
        for count in self.stages:
            yield model(IMAGES[:count]).mean().item()


def run(task, episodes=9, reward=brightness, **settings):
    return search(task, reward, episodes, **dict(agent=AGENT) | settings)


def episodes_of(result):
    return result.history.rewards, result.history.widths, result.history.lams, result.history.stages


def test_the_best_plan_comes_with_its_reward_and_the_model_stays_dense():
    task, told = make_task(), []
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    result = run(task, on_episode=told.append)
    assert result.reward == max(result.history.rewards) == task.evaluate(result.plan, brightness)
    assert len(set(result.history.rewards)) > 5
    assert [progress.episode for progress in told] == list(range(9))
    assert result.image_evaluations == {}
    after = task.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_allocated_plan_is_played_first_and_with_objectives_the_uniform_ones_then():
    task = make_task()
    uniform = list(task.uniform_plan().widths.values())
    assert task.allocation != uniform
    history = run(task, 4).history
    assert history.widths[0] == task.allocation
    assert history.lams[0] == [0.5] * 3
    assert history.lams[1:] != [[0.0] * 3, [0.5] * 3, [1.0] * 3]
    history = run(make_task(), 4, lambda model: 0.5, objectives=dict(metric=1, params=1)).history
    assert history.widths == [task.allocation, uniform, uniform, uniform]
    assert history.lams == [[0.5] * 3, [0.0] * 3, [0.5] * 3, [1.0] * 3]
    history = run(make_task(allocate=False), 2, opening_lams=[0.25]).history
    assert (history.widths[0], history.lams[0]) == (uniform, [0.25] * 3)
    assert history.lams[1] != [0.25] * 3
    history = run(make_task(allocate=False), 4).history
    assert history.widths[:3] == [uniform] * 3
    assert history.lams[:3] == [[lam] * 3 for lam in (0.0, 0.5, 1.0)]


def test_an_agent_starts_from_the_allocated_plan_or_else_from_the_uniform_one():
    assert make_task().agent_spec().uniform_action == (0.5, 0.5)  # an action of 0.5 stands for its widths
    task = make_task(allocate=False)
    assert task.agent_spec().uniform_action == (task.ratios.to_action(task.constraint.uniform_ratio()), 0.5)


@pytest.mark.parametrize('stopped_after', [1, 3, 7])
@pytest.mark.parametrize('backwards', [False, True])
def test_a_resumed_search_goes_on_bit_for_bit_with_the_channels_that_were_kept(tmp_path, stopped_after, backwards):
    """Even where rankings and allocation come out otherwise when they are computed anew."""
    path = tmp_path / 'search.pth'
    whole, first, again = make_task(), make_task(), make_task(backwards)
    expected = run(whole)
    run(first, stopped_after, checkpoint=path)
    assert (again.allocation == first.allocation) != backwards
    result = run(again, checkpoint=path, resume=True)
    assert episodes_of(result) == episodes_of(expected)
    assert result.plan == expected.plan
    assert again.allocation == whole.allocation
    assert all(torch.equal(one, other) for one, other in zip(again.rankings, whole.rankings, strict=True))
    assert again.evaluate(result.plan, brightness) == result.reward


@pytest.mark.parametrize(
    'bad', [float('nan'), float('-inf'), None, 'much', torch.zeros(2), pytest.param(10**400, id='too large')]
)
def test_a_reward_that_is_not_finite_ends_in_a_sentence(tmp_path, bad):
    task, path, rewards = make_task(), tmp_path / 'search.pth', iter([0.25, 0.5, bad])
    dense = brightness(task.model)
    with pytest.raises(
        AutoDFPError, match=f'^episode 2 was rewarded with {re.escape(str(bad))}, but a reward is a finite number; '
    ):
        run(task, reward=lambda model: next(rewards), checkpoint=path)
    assert torch.load(path)['history']['rewards'].tolist() == [0.25, 0.5]
    assert brightness(task.model) == dense


def test_an_earlier_search_is_put_aside(tmp_path, caplog):
    path = tmp_path / 'search.pth'
    run(make_task(), 3, checkpoint=path)
    earlier = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        run(make_task(), 2, checkpoint=path, logger=logging.getLogger('search'))
    (previous,) = set(tmp_path.iterdir()) - {path}
    assert previous.read_bytes() == earlier
    assert f'an earlier search, which is not resumed; it is now {previous}' in caplog.text
    assert len(torch.load(path)['history']['rewards']) == 2


def other_reward(model) -> float:
    return 0.0


@pytest.mark.parametrize(
    ('task', 'settings', 'name'),
    [
        (dict(), dict(seed=1), 'seed'),
        (dict(), dict(reward=other_reward), 'reward'),
        (dict(), dict(opening_lams=(0.5,)), 'opening_lams'),
        (dict(), dict(identity=dict(data='b')), 'data'),
        (dict(), dict(agent=dict(AGENT, batch_size=4)), 'batch_size'),
        (dict(), dict(agent=dict(type='RandomSearch')), 'type'),
        (dict(share=0.7), dict(), 'constraint'),
        (dict(allocate=False), dict(), 'allocate'),
        (dict(p_min=0.3), dict(), 'ratios'),
        (dict(channel_divisor=2), dict(), 'channel_divisor'),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_a_resumed_search_does_not_share_is_named(tmp_path, task, settings, name):
    path, common = tmp_path / 'search.pth', dict(identity=dict(data='a'))
    run(make_task(), 2, checkpoint=path, **common)
    with pytest.raises(AutoDFPError, match=rf' to resume was saved with {name}=.*, but {name}=.* is asked for; '):
        run(make_task(**task), 4, checkpoint=path, resume=True, **common | settings)


def test_what_is_compared_by_a_checksum_is_named_without_it(tmp_path):
    def go(name, seed=0, **resumed):
        pictures = dict(type='SyntheticLeastSquares', images=dict(num_images=2, size=16, folder=str(tmp_path / name)))
        task = PruningTask.build(make_chain(seed), '', constraint=0.6, reconstructor=pictures)
        run(task, 2, checkpoint=tmp_path / 'search.pth', **resumed)

    for name in 'ab':
        mmcv.imwrite(np.zeros((16, 16, 3), np.uint8), str(tmp_path / name / f'{name}.png'))
    go('a')
    for changed, what in (
        (dict(name='b'), r"pictures in the reconstructor's folder \(--images\)"),
        (dict(name='a', seed=1), 'weights of the dense model'),
    ):
        with pytest.raises(AutoDFPError, match=f'the search to resume was saved with other {what} than there are now'):
            go(**changed, resume=True)


def test_a_config_may_be_written_in_another_order_and_what_differs_in_it_is_named(tmp_path):
    path = tmp_path / 'search.pth'
    config = dict(type='Net', head=dict(type='Head', loss=dict(weight=1.0), levels=(1, 2)))
    run(make_task(), 2, checkpoint=path, identity=dict(model=repr(config)))
    config = dict(head=dict(levels=(1, 2), loss=dict(weight=1.0), type='Head'), type='Net')
    assert len(run(make_task(), 3, checkpoint=path, resume=True, identity=dict(model=repr(config))).history) == 3
    config['head']['loss']['weight'] = 0.5
    message = r'saved with model\.head\.loss\.weight=1\.0, but model\.head\.loss\.weight=0\.5 is asked for; '
    with pytest.raises(AutoDFPError, match=message):
        run(make_task(), 4, checkpoint=path, resume=True, identity=dict(model=repr(config)))


def test_of_a_long_setting_the_place_that_differs_is_told(tmp_path):
    path = tmp_path / 'search.pth'
    names = [f'Images({", ".join(f"setting_{i}={i}" for i in range(90))}, seed={seed})' for seed in (1, 2)]
    run(make_task(), 2, checkpoint=path, identity=dict(images=names[0]))
    message = r"saved with images=\.\.\.seed=1\)', but images=\.\.\.seed=2\)' is asked for; "
    with pytest.raises(AutoDFPError, match=message):
        run(make_task(), 4, checkpoint=path, resume=True, identity=dict(images=names[1]))


def test_a_search_of_version_0_1_is_refused_by_name(tmp_path):
    path = tmp_path / 'search.pth'
    history = dict(rewards=torch.zeros(1), widths=torch.ones(1, 3))
    torch.save(dict(format=2, identity=dict(module='backbone', racing=None), agent={}, history=history), path)
    content = path.read_bytes()
    message = rf'^{path} holds a search of format 2, which .* goes on with format 4 alone; .* or start a new search$'
    with pytest.raises(AutoDFPError, match=message):
        run(make_task(), checkpoint=path, resume=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(resume=True), 'no checkpoint is named'),
        (dict(num_episodes='many'), "a search was asked for num_episodes='many'; it must be a whole number"),
        (dict(num_episodes=0), 'num_episodes=0; it must be greater than or equal to 1'),
        (dict(opening_lams=[0.5, 2.0]), 'item 2 of it must be less than or equal to 1'),
        (dict(opening_lams=0.5), r'opening_lams=0\.5; it must be a list'),
        (dict(racing='fast'), "racing='fast'; it must be .* a dict, True or False"),
        (dict(racing=dict(speed=3)), 'speed, which it does not know; it knows risk, warmup, refresh'),
        (dict(agent=dict(type='PPO')), "agent type 'PPO' is not known"),
        (dict(seed=-1), 'seed=-1'),
        (dict(reward=3), 'reward=3; it must be callable'),
    ],
)
def test_bad_requests_end_in_a_sentence(settings, message):
    with pytest.raises(AutoDFPError, match=message) as caught:
        search(make_task(), **dict(reward=brightness, num_episodes=2) | settings)
    assert '\n' not in str(caught.value)


def test_something_else_than_a_task_is_refused():
    with pytest.raises(AutoDFPError, match=r'task=.*; it must be an instance of PruningTask'):
        search(nn.Identity(), brightness)


def test_a_search_that_is_all_warmup_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        run(make_task(), 5, logger=logging.getLogger('search'))
    assert 'all 5 episodes are warm-up' in caplog.text


class Own(nn.Module):
    """A reward with things of its own under the names that ours have."""

    def __init__(self):
        super().__init__()
        self.images, self.stages, self.identity = IMAGES, 'early', nn.Identity()

    @torch.no_grad()
    def forward(self, model):
        return self.identity(model(self.images)).mean().item()


def test_a_callable_may_have_images_stages_and_an_identity_that_mean_something_else(tmp_path):
    path = tmp_path / 'search.pth'
    search(make_task(), Own(), 2, AGENT, racing=True, checkpoint=path)
    found = search(make_task(), Own(), 3, AGENT, racing=True, checkpoint=path, resume=True)
    assert found.history.rewards == search(make_task(), brightness, 3, AGENT).history.rewards
    assert found.image_evaluations == {}


@pytest.mark.parametrize('agent', [AGENT, dict(type='CMAES', sigma=np.float64(0.2))], ids=['SAC', 'CMAES'])
def test_a_search_with_settings_from_numpy_is_kept_so_that_it_can_be_read(tmp_path, agent):
    def make():
        return make_task(share=dict(preserve_ratio=np.float64(0.6)), bias_threshold=np.float64(0.5), allocate=False)

    settings = dict(opening_lams=list(np.linspace(0, 1, 3)), agent=agent, identity=dict(scale=np.float64(0.5)))
    whole, path = run(make(), 5, **settings), tmp_path / 'search.pth'
    run(make(), 2, checkpoint=path, **settings)
    assert episodes_of(run(make(), 5, checkpoint=path, resume=True, **settings)) == episodes_of(whole)


def test_a_reward_of_ours_that_is_not_prepared_is_told_in_a_sentence():
    with pytest.raises(AutoDFPError, match=r'a SyntheticReward that is not prepared .* prepare\(model,'):
        search(make_task(), SyntheticReward(), 3)
