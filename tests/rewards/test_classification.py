from collections import Counter

import pytest
import torch
from conftest import REPO
from mmengine.config import Config

from mmautodfp.rewards import AccuracyReward
from mmautodfp.rewards.classification import choose_balanced
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import MODELS, REWARDS, build
from mmautodfp.zoo import SklearnDigits

LOADER = dict(batch_size=32, dataset=dict(type='mmautodfp.SklearnDigits', split='val'))


@pytest.fixture(scope='module')
def model():
    cfg = Config.fromfile(REPO / 'configs/demo/vgg_digits.py')
    model = MODELS.build(cfg.model)
    model.load_state_dict(torch.load(REPO / 'configs/demo/vgg_digits.pth', weights_only=True)['state_dict'])
    return model.eval()


def prepared(model, **settings) -> AccuracyReward:
    reward = build(REWARDS, dict(type='AccuracyReward', **settings))
    reward.prepare(model, LOADER)
    return reward


@torch.no_grad()
def slow_probabilities(model, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of images of val, one at a time and normalised here: the classes' probabilities [N, 10]; and the classes [N]."""
    data = SklearnDigits('val')
    places = [data.names.index(name) for name in names]
    logits = [model.network((data.image(place)[None].float() - 77.8) / 95.9) for place in places]
    return torch.cat(logits).softmax(1), torch.tensor([data.labels[place] for place in places])


def slow_accuracy(model, names: list[str]) -> float:
    found, classes = slow_probabilities(model, names)
    return (found.argmax(1) == classes).double().mean().item()


def slow_probability(model, names: list[str]) -> float:
    """Mean probability of the right class."""
    found, classes = slow_probabilities(model, names)
    return found.gather(1, classes[:, None]).mean().item()


@pytest.mark.parametrize('settings', [dict(num_images=70), dict(num_images=None), dict(num_images=50, cache_gb=0)])
def test_it_is_the_share_of_right_answers_on_its_images(model, settings):
    reward = prepared(model, **settings)
    assert len(reward.images) == (settings['num_images'] or 300)
    expected = slow_accuracy(model, reward.images)
    assert reward(model) == pytest.approx(expected)
    assert reward(model) == pytest.approx(expected)  # what is cached is not used up


# 70 images of 8 x 8 are 18 kB as float32, 4.5 kB as uint8; three batches.
@pytest.mark.parametrize('fast', [True, False])
@pytest.mark.parametrize(('cache_gb', 'kept'), [(1e-5, 3), (3e-6, 1)])
def test_images_that_do_not_fit_are_kept_as_uint8_or_read_again(model, cache_gb, kept, fast):
    reward = prepared(model, num_images=70, cache_gb=cache_gb, fast=fast, stages=())
    assert len(reward._batches.cache) == kept
    assert {image.dtype for batch in reward._batches.cache for image in batch['inputs']} == {torch.uint8}
    expected = slow_accuracy(model, reward.images)
    assert [reward(model), reward(model)] == pytest.approx([expected] * 2)


@pytest.mark.parametrize('fast', [True, False])
def test_the_probability_of_the_right_class_may_reward_a_search_but_is_not_what_is_held_out(model, fast):
    reward = prepared(model, metric='probability', num_images=60, fast=fast)
    expected = [slow_probability(model, reward.images[:end]) for end in reward.stages]
    assert list(reward.evaluate(model)) == pytest.approx(expected, abs=1e-5)
    assert reward.identity != prepared(model, num_images=60, fast=fast).identity
    other = reward.held_out(model, LOADER)
    assert other.name == reward.reported_name == 'top1'
    assert other(model) == pytest.approx(slow_accuracy(model, other.images))


def test_the_stages_are_balanced_and_the_last_one_is_the_whole(model):
    reward = prepared(model, num_images=100)
    found = list(reward.evaluate(model))
    assert reward.stages == [25, 50, 100]
    assert found == [pytest.approx(slow_accuracy(model, reward.images[:end])) for end in (25, 50, 100)]
    assert found[-1] == reward(model)
    labels = dict(zip(SklearnDigits('val').names, SklearnDigits('val').labels, strict=True))
    assert set(Counter(labels[name] for name in reward.images[:50]).values()) == {5}
    with pytest.raises(AutoDFPError, match='must ascend'):
        AccuracyReward(stages=(0.5, 0.25))


def test_a_worse_model_is_worth_less(model):
    reward = prepared(model, num_images=100)
    broken = MODELS.build(Config.fromfile(REPO / 'configs/demo/vgg_digits.py').model).eval()
    assert reward(broken) < 0.4 < 0.9 < reward(model)


def test_as_many_images_of_each_class_as_possible_by_the_seed(model):
    reward = prepared(model, num_images=105, seed=3)
    labels = dict(zip(SklearnDigits('val').names, SklearnDigits('val').labels, strict=True))
    counts = Counter(labels[name] for name in reward.images)
    assert sorted(counts.values()) == [10] * 5 + [11] * 5
    assert prepared(model, num_images=105, seed=3).images == reward.images
    assert prepared(model, num_images=105, seed=4).images != reward.images


def test_a_class_that_is_short_is_taken_whole():
    labels = {image: 0 if image < 3 else 1 for image in range(20)}
    chosen = choose_balanced(labels, 12, seed=0)
    assert len(set(chosen)) == 12
    assert {0, 1, 2} <= set(chosen)
    assert sorted(choose_balanced(labels, None, seed=0)) == list(range(20))


def test_what_is_held_out_is_the_rest(model):
    reward = prepared(model, num_images=100)
    other = reward.held_out(model, LOADER)
    assert not set(other.images) & set(reward.images)
    assert len(other.images) == 200
    assert other(model) == pytest.approx(slow_accuracy(model, other.images))
    assert prepared(model, num_images=None).held_out(model, LOADER) is None


def test_a_judge_has_the_metric_of_the_reward_on_as_many_other_images(model):
    reward = prepared(model, num_images=100, metric='probability')
    judge = reward.judge(model, LOADER, dict(dataset=dict(type='mmautodfp.SklearnDigits', split='test')))
    assert (judge.name, len(judge.images)) == ('probability', 100)
    assert not set(judge.images) & set(reward.images)
    assert judge(model) == pytest.approx(slow_probability(model, judge.images), abs=1e-5)
    assert len(prepared(model, num_images=200).judge(model, LOADER).images) == 100  # nothing is reported


class Wrong(AccuracyReward):
    """Share of wrong answers."""

    def __call__(self, model):
        return 1 - super().__call__(model)


def test_a_subclass_judges_and_reports_with_its_own_metric(model):
    reward = Wrong(100)
    reward.prepare(model, LOADER)
    for other in (reward.judge(model, LOADER), reward.held_out(model, LOADER)):
        assert other(model) == pytest.approx(1 - slow_accuracy(model, other.images))


def test_one_batch_holds_one_preprocessed_image(model):
    batch = prepared(model).one_batch()
    assert batch['inputs'].shape == (1, 1, 8, 8)
    assert batch['inputs'].min() == pytest.approx(-77.8 / 95.9, abs=1e-5)
    assert model(**batch).shape == (1, 10)


def test_wrong_settings_and_data_without_labels_are_refused(model):
    with pytest.raises(AutoDFPError, match="metric='top5'; it must be 'top1' or 'probability'"):
        AccuracyReward(metric='top5')
    with pytest.raises(AutoDFPError, match='num_images=0'):
        AccuracyReward(num_images=0)
    detection = dict(dataset=dict(type='mmdet.CocoDataset', ann_file='', lazy_init=True))
    with pytest.raises(AutoDFPError, match='images in val_dataloader and test_dataloader, found a CocoDataset'):
        AccuracyReward().prepare(model, detection)
