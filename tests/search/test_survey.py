"""What a task is about, where a model cannot be run to find out."""

from dataclasses import dataclass

import pytest
import torch
from conftest import build_resnet, enliven
from torch import nn

from mmautodfp.reconstruction import PruneOnly
from mmautodfp.search import survey
from mmautodfp.search.survey import survey_target
from mmautodfp.search.task import PruningTask
from mmautodfp.surgery import Restore
from mmautodfp.surgery.proof import mask_group
from mmautodfp.utils import AutoDFPError


class WantsWords(nn.Module):
    """Does not take images alone."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        raise ValueError('no words were given')


def test_blocks_that_are_known_are_pruned_and_the_reason_for_no_more_is_told():
    found = survey_target(WantsWords(build_resnet(18)).eval(), 'model')
    assert len(found.groups) == 8
    (line,) = (line for line in found.left if 'no words were given' in line)
    assert line.endswith('all but the blocks that finders know')


def test_a_model_of_unknown_blocks_that_cannot_be_run_is_refused():
    with pytest.raises(AutoDFPError, match=r'cannot be run on images of .*\(no words were given\); give an example'):
        survey_target(WantsWords(nn.Conv2d(3, 8, 3)).eval(), 'model')


@pytest.mark.parametrize('name', ['layer2.0.conv1.weight', 'layer3.1.bn2.running_var'])
def test_what_is_no_finite_number_is_named(name):
    model = build_resnet(18)
    model.state_dict()[name].view(-1)[0] = float('inf')
    for target in ('model', ''):
        with pytest.raises(AutoDFPError, match=f'its {name} holds nan or infinite numbers'):
            survey_target(model, target)


def test_weights_without_values_are_told():
    with torch.device('meta'):
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    with pytest.raises(AutoDFPError, match=r'its 0\.weight is on the meta device, where it has no values; load the'):
        survey_target(model, '')


@pytest.mark.parametrize(
    ('model', 'example', 'target', 'reason'),
    [
        (
            nn.Sequential(nn.Conv1d(3, 16, 3), nn.ReLU(), nn.Conv1d(16, 8, 3)),
            torch.rand(2, 3, 16),
            '',
            'Conv1d layers, but no two-dimensional convolution and no linear layer that is called',
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), None, '1', 'no layers inside; name a part'),
        (nn.Sequential(nn.ReLU(), nn.Tanh()), None, '', 'no two-dimensional convolution'),
    ],
)
def test_where_nothing_can_be_pruned_what_is_there_is_told(model, example, target, reason):
    with pytest.raises(AutoDFPError, match=f"nothing to prune in the [A-Z]\\w+ '{target}', which has {reason}"):
        survey_target(model.eval(), target, example)


@pytest.mark.parametrize('example', [dict(y=torch.rand(2, 3, 8, 8)), (torch.rand(2, 3, 8, 8),) * 2])
def test_how_an_example_is_taken_is_told_where_it_does_not_fit(example):
    model = WantsWords(nn.Conv2d(3, 8, 3)).eval()
    with pytest.raises(AutoDFPError, match=r'give another one \(a dict holds named arguments, a tuple several\), or'):
        survey_target(model, 'model', example)


class BasicBlock(nn.Module):
    """A residual block with its norms in front, whose class has the name of one with its norms behind."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())


class Pyramid(nn.Module):
    """Reads what each layer of its chain gives."""

    def __init__(self):
        super().__init__()
        self.chain = nn.Sequential(*(nn.Conv2d(inputs, 8, 3, padding=1) for inputs in (3, 8, 8)))
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        maps = []
        for layer in self.chain:
            x = layer(x).relu()
            maps.append(x.mean(1, keepdim=True))
        return self.head(torch.cat(maps, 1))


class Chain(nn.Module):
    """Three convolutions one after the other."""

    def __init__(self, between: nn.Module | None = None, read: int = 8):
        super().__init__()
        self.between = between or nn.Identity()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(read, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.last(self.second(self.between(self.first(x).relu())).relu())


def test_a_block_that_is_not_what_its_name_says_is_followed_instead():
    model = enliven(nn.Sequential(nn.Conv2d(3, 8, 3), BasicBlock(8), nn.Conv2d(8, 4, 1)))
    found = survey_target(model, '')
    assert [(group.name, group.norm) for group in found.groups] == [('1.conv1', '1.bn2')]


def test_what_was_disproven_stays_where_channels_cannot_be_followed_either(monkeypatch):
    def fail(*_):
        raise ValueError('a new kind of tensor')

    monkeypatch.setattr(survey, 'trace_channels', fail)
    model = enliven(nn.Sequential(nn.Conv2d(3, 8, 3), BasicBlock(8), nn.Conv2d(8, 4, 1)))
    with pytest.raises(AutoDFPError, match=r'cannot be run on images of .*a new kind of tensor'):
        survey_target(model, '')


def test_a_chain_whose_layers_are_read_one_by_one_is_left_alone():
    with pytest.raises(AutoDFPError, match=r"nothing to prune in the Sequential 'chain', which has 3 x feeds mean"):
        survey_target(Pyramid().eval(), 'chain')
    assert len(survey_target(Pyramid().eval().chain, '').groups) == 2


def test_layers_of_one_weight_stay_and_their_readers_go():
    model = Chain().eval()
    model.second.weight = model.last.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
    model.last.bias = nn.Parameter(torch.zeros(8))
    model.further = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    model.forward = lambda x: model.further(Chain.forward(model, x))
    found = survey_target(model, 'model')
    assert [group.name for group in found.groups] == ['further.0']
    assert any('the weights of second are those of another layer too' in line for line in found.left)


def test_a_layer_that_makes_its_weight_anew_stays_and_is_left_as_it_was():
    model, images = Chain().eval(), torch.randn(1, 3, 8, 8)
    nn.utils.weight_norm(model.second)
    before = model(images)
    with pytest.raises(AutoDFPError, match='second makes its weight anew at each call'):
        survey_target(model, 'model')
    assert torch.equal(model(images), before)


def test_places_that_become_channels_of_a_convolution_stay():
    found = survey_target(Chain(nn.PixelUnshuffle(2), read=32).eval(), 'model')
    assert [group.name for group in found.groups] == ['second']
    assert any('several channels for each' in line for line in found.left)


@pytest.mark.parametrize(
    'norm', [nn.GroupNorm(4, 8, affine=False), nn.BatchNorm2d(8, affine=False, track_running_stats=False)]
)
def test_norms_that_hold_nothing_are_sliced_too(norm):
    model, images = Chain(norm).eval(), torch.rand(4, 3, 8, 8)
    task = PruningTask.build(model, 'model', constraint=0.6, reconstructor=PruneOnly())
    assert [(group.name, group.between) for group in task.groups] == [('first', ('between',)), ('second', ())]
    plan = task.uniform_plan()
    with Restore() as restore:
        for group in task.groups:
            mask_group(model, group, plan.groups[group.name], restore)
        masked = model(images)
    with task.apply(plan):
        assert model.first.out_channels < 8
        torch.testing.assert_close(model(images), masked)


@dataclass
class Answer:
    scores: torch.Tensor
    features: torch.Tensor


class Answers:
    def __init__(self, scores, features):
        self.scores, self.features = scores, features


class Tells(Chain):
    """Gives a feature map beside its scores."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        return self.answer(self.last(x), x)


def test_what_is_given_in_a_dataclass_stays():
    found = survey_target(Tells(Answer).eval(), '')
    assert [group.name for group in found.groups] == ['first']
    assert found.left == ['2 x gives an output of the model: second, last']


@pytest.mark.parametrize(
    ('answer', 'message'),
    [
        (Answers, r'the Tells .* gives a Answers, in which they cannot be looked up; let its forward give tensors'),
        (lambda *_: None, r'the Tells .* gives no floating-point number; give an example_input'),
        (lambda scores, _: scores.argmax(1), r'the Tells .* gives no floating-point number.* let it give scores'),
        (lambda scores, _: scores[scores > 1e9], r'the Tells .* gives no floating-point number'),
    ],
    ids=['object', 'nothing', 'decision', 'nothing found'],
)
def test_a_model_whose_outputs_cannot_be_compared_is_refused(answer, message):
    with pytest.raises(AutoDFPError, match=message):
        survey_target(Tells(answer).eval(), '')


def test_a_part_of_a_model_that_finds_nothing_is_proven_by_its_own_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(Chain(), nn.Conv2d(4, 2, 1)).eval()
    model[0].between = Width()
    model.forward = lambda x: nn.Sequential.forward(model, x)[:0]
    found = survey_target(model, '0')
    assert [group.name for group in found.groups] == ['second']
    assert any('does not come out the same without it' in line for line in found.left)


class Width(nn.Module):
    def forward(self, x):
        return x / x.shape[1]


@pytest.mark.parametrize('compiled', [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(1, 3, 8, 8))])
def test_a_model_that_torch_has_compiled_is_refused(compiled):
    with pytest.raises(AutoDFPError, match=r'which torch.jit or torch.compile made of a model; prune that model'):
        survey_target(compiled(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)).eval()), '')


def test_a_model_without_weights_has_nothing_to_prune():
    with pytest.raises(AutoDFPError, match='nothing to prune'):
        survey_target(nn.ReLU(), '')
