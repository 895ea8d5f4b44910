"""The reward without data: what it says of models that are, and are not, like the dense one."""

import pytest
import torch
from conftest import build_resnet, random_plan
from torch import nn

from mmautodfp.graph import find_groups
from mmautodfp.reconstruction import PruneOnly, SimilarityReconstructor, batch_statistics
from mmautodfp.rewards import SyntheticReward
from mmautodfp.surgery import GroupPlan, PruningPlan, apply_plan
from mmautodfp.utils import AutoDFPError

IMAGES = dict(num_images=4, size=32, batch_size=2)


class Detector(nn.Module):
    """As much of a detector as the reward looks at."""

    def __init__(self):
        super().__init__()
        self.backbone = build_resnet()

    def extract_feat(self, images):
        return self.backbone(images)


@pytest.fixture(scope='module')
def detector():
    return Detector().eval()


def uniform(module, share):
    plans = {}
    for group in find_groups(module):
        plans[group.name] = GroupPlan(tuple(range(max(1, int(group.num_channels * share)))), group.num_channels)
    return PruningPlan(plans)


def test_a_model_that_takes_images_of_another_size_is_told_how_to_set_it():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 8 * 8, 4)).eval()
    SyntheticReward(IMAGES | dict(size=8)).prepare(model)
    message = r'of shape \[2, 3, 32, 32\] .* does not take them .*images=dict\(size=.*take the images of a data set'
    with pytest.raises(AutoDFPError, match=message):
        SyntheticReward(IMAGES).prepare(model)


@pytest.mark.parametrize('measure', ['error', 'cosine'])
def test_the_dense_model_is_worth_one_and_less_channels_are_worth_less(detector, measure):
    reward = SyntheticReward(IMAGES, measure)
    reward.prepare(detector)
    assert reward(detector) == pytest.approx(1, abs=1e-6)
    values = []
    for share in (0.95, 0.6, 0.2):
        with apply_plan(detector.backbone, uniform(detector.backbone, share), PruneOnly()):
            values.append(reward(detector))
    assert 1 > values[0] > values[1] > values[2]
    assert reward(detector) == pytest.approx(1, abs=1e-6)


def test_error_is_the_missed_share_of_the_variance(detector):
    reward = SyntheticReward(IMAGES)
    reward.prepare(detector)

    def features():
        with torch.no_grad(), batch_statistics(detector):
            return [detector.extract_feat(batch) for (batch,) in reward._batches]

    dense = features()
    with apply_plan(detector.backbone, random_plan(detector.backbone), SimilarityReconstructor()):
        found, value = features(), reward(detector)
    missed = []
    for level in range(len(dense[0])):
        pairs = [(a[level], b[level]) for a, b in zip(found, dense, strict=True)]
        variance = sum(((b - b.mean((0, 2, 3), keepdim=True)) ** 2).sum() for _, b in pairs)
        missed.append(sum(((a - b) ** 2).sum() for a, b in pairs) / variance)
    assert value == pytest.approx(1 - float(torch.stack(missed).mean()), abs=1e-4)


def test_it_leaves_norms_as_they_were(detector):
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    reward = SyntheticReward(IMAGES)
    reward.prepare(detector)
    reward(detector)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert not any('forward' in vars(layer) for layer in detector.modules())


def test_a_judge_draws_other_images(detector):
    reward = SyntheticReward(IMAGES, measure='cosine')
    reward.prepare(detector)
    judge = reward.judge(detector)
    assert len(judge.images) == len(reward.images)
    assert not set(judge.images) & set(reward.images)
    assert judge.measure == 'cosine'
    (ours,), (others,) = reward._batches[0], judge._batches[0]
    assert ours.shape == others.shape
    assert (ours - others).abs().flatten(1).mean(1).min() > 0.1
    assert judge(detector) == pytest.approx(1)
    with apply_plan(detector.backbone, uniform(detector.backbone, 0.5), PruneOnly()):
        assert judge(detector) == pytest.approx(reward(detector), abs=0.05)
        assert judge(detector) != reward(detector)


def test_a_classifier_is_compared_by_its_logits():
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    reward = SyntheticReward(IMAGES)
    reward.prepare(classifier)
    assert reward(classifier) == pytest.approx(1, abs=1e-6)
    classifier[4].weight.data *= -1
    assert reward(classifier) < 0


@pytest.mark.parametrize('measure', ['error', 'cosine'])
def test_a_model_that_gives_one_number_for_each_image_is_compared_too(measure):
    counter = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1), nn.Flatten(0))
    reward = SyntheticReward(IMAGES, measure)
    reward.prepare(counter)
    assert reward(counter) == pytest.approx(1, abs=1e-6)
    for weight in counter[3].parameters():
        weight.data *= -1
    assert reward(counter) < 0


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(measure='l1'), "measure='l1'; it must be 'error' or 'cosine'"),
        (dict(images=dict(kind='cats')), "kind='cats'"),
        (dict(images=dict(num_images=0)), 'num_images=0'),
        (dict(images=dict(sizes=3)), 'asked for sizes, which it does not know; it knows num_images'),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(AutoDFPError, match=message):
        SyntheticReward(**settings)
