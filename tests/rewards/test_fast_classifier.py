"""The classifiers' stand-in against the models that it stands in for."""

import pytest
import torch
from conftest import enliven, random_plan
from mmengine.structures import BaseDataElement
from reward_data import warnings_told
from torch import nn

from mmautodfp.reconstruction import SimilarityReconstructor
from mmautodfp.rewards import AccuracyReward
from mmautodfp.rewards.fast.classifier import FastClassifier
from mmautodfp.rewards.fast.model import TOLERANCE
from mmautodfp.surgery import apply_plan
from mmautodfp.utils.registry import MODELS
from mmautodfp.zoo import ImageClassifier

DIGITS = dict(batch_size=40, dataset=dict(type='mmautodfp.SklearnDigits', split='val'))
NETWORKS = {
    'vgg': dict(type='mmautodfp.VGG', depth=11),
    'resnet': dict(type='mmautodfp.CifarResNet', depth=8),
    'mobilenet_v1': dict(type='mmautodfp.MobileNetV1'),
    'mobilenet_v2': dict(type='mmautodfp.MobileNetV2'),
}


def classifier(network: dict | nn.Module) -> ImageClassifier:
    torch.manual_seed(0)
    network = MODELS.build(network) if isinstance(network, dict) else network
    return ImageClassifier(enliven(network)).eval()


@pytest.fixture(params=NETWORKS)
def model(request):
    return classifier(NETWORKS[request.param])


def test_it_answers_as_the_model_does_through_plans_and_back(model):
    images = torch.rand(4, 3, 32, 32)
    stand_in = FastClassifier(model)
    assert stand_in._norm_of  # norms are folded
    with torch.no_grad():
        dense = model(images)
    assert torch.allclose(stand_in.predict(images), dense, rtol=1e-3, atol=1e-4 * dense.abs().max())
    reconstructor = SimilarityReconstructor()
    reconstructor.ensure_fitted(model.network)
    for seed in range(2):
        with apply_plan(model.network, random_plan(model.network, seed), reconstructor), torch.no_grad():
            stand_in.update(model)
            expected = model(images)
            found = stand_in.predict(images)
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
        assert not torch.allclose(expected, dense, rtol=1e-2)
    stand_in.update(model)
    assert torch.allclose(stand_in.predict(images), dense, rtol=1e-3, atol=1e-4 * dense.abs().max())


def test_bfloat16_stays_near_and_linear_layers_keep_float32():
    model = classifier(NETWORKS['resnet'])
    images = torch.rand(4, 3, 32, 32)
    stand_in = FastClassifier(model, 'bfloat16')
    assert stand_in.disagrees(model, images) is None
    with torch.no_grad():
        exact = model(images)
    error = ((stand_in.predict(images) - exact).norm() / exact.norm()).item()
    assert 1e-4 < error < TOLERANCE[torch.bfloat16]
    types = {type(layer): layer.weight.dtype for layer in stand_in._copy.modules() if hasattr(layer, 'weight')}
    assert types == {nn.Conv2d: torch.bfloat16, nn.Linear: torch.float32}


class NormFirst(nn.Module):
    """The norm stands behind the conv and runs before it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(256, 10)

    def forward(self, x):
        return self.fc(self.conv(self.norm(self.stem(x))).flatten(1))


class NotLogits(ImageClassifier):
    """Its forward gives no logits; only its predictions can be asked for."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        answer = super().forward(inputs, data_samples, mode)
        return dict(scores=answer) if mode == 'tensor' else answer


def test_a_network_that_runs_in_another_order_or_gives_no_logits_is_evaluated_as_it_is():
    for model, reason in (
        (classifier(NormFirst()), 'the logits differ'),
        (NotLogits(enliven(NormFirst())).eval(), 'no logits'),
    ):
        model.data_preprocessor = MODELS.build(dict(type='ImgDataPreprocessor', mean=[77.8], std=[95.9]))
        fast, plain = (AccuracyReward(100, fast=choice, precision='bfloat16') for choice in (True, False))
        fast.prepare(model, DIGITS)
        plain.prepare(model, DIGITS)
        assert reason in FastClassifier(model).disagrees(model, fast._batches[0]['inputs'])
        assert fast.stand_in is None
        assert fast.identity == plain.identity == 'top1, float32, stages (0.25, 0.5, 1)'
        assert list(fast.evaluate(model)) == list(plain.evaluate(model))


class LooksAtItsNorm(NormFirst):
    """It wants more of its norm than an answer; the stand-in has none."""

    def forward(self, x):
        assert self.norm.num_features
        return super().forward(x)


def test_why_a_network_is_evaluated_as_it_is_is_told_once():
    model = classifier(LooksAtItsNorm())
    model.data_preprocessor = MODELS.build(dict(type='ImgDataPreprocessor', mean=[77.8], std=[95.9]))
    reward = AccuracyReward(50)
    with warnings_told() as told:
        reward.prepare(model, DIGITS)
        held_out = reward.held_out(model, DIGITS)
    assert reward.stand_in is held_out.stand_in is None
    assert told == [
        'episodes are evaluated by the model itself, not faster: '
        "AttributeError: 'Identity' object has no attribute 'num_features'"
    ]


def test_predictions_of_the_model_itself_do_not_pile_up_in_the_samples():
    model = classifier(NormFirst())
    model.data_preprocessor = MODELS.build(dict(type='ImgDataPreprocessor', mean=[77.8], std=[95.9]))
    reward = AccuracyReward(50, fast=False)
    reward.prepare(model, DIGITS)
    reward(model)
    assert all('pred_label' not in sample for batch in reward._batches.cache for sample in batch['data_samples'])
    assert isinstance(reward._batches.cache[0]['data_samples'][0], BaseDataElement)


def test_the_dense_model_is_left_as_it_is(model):
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    stand_in = FastClassifier(model, 'bfloat16')
    stand_in.predict(torch.rand(2, 3, 32, 32))
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is tensor and torch.equal(tensor, copied) for name, (tensor, copied) in before.items())
    assert not any(layer._forward_pre_hooks for layer in model.modules())
