"""The full pass over a plan that stays: patches, shortcuts, paths, on small networks."""

import copy

import pytest
import torch
from conftest import build_resnet, enliven, random_plan
from least_squares_data import IMAGES, assert_same, frozen_resnet, snapshot, uniform  # noqa: F401, a fixture
from torch import nn

from mmautodfp.graph import ChannelGroup, Consumer, find_groups
from mmautodfp.reconstruction import Refinement, SyntheticImages, SyntheticLeastSquares
from mmautodfp.reconstruction.patches import patches_of
from mmautodfp.reconstruction.paths import Paths, Seen, Watched, watch_layers
from mmautodfp.surgery import GroupPlan, PruningPlan, apply_plan
from mmautodfp.utils import AutoDFPError
from mmautodfp.zoo import CifarResNet


def test_a_finished_plan_is_the_same_each_time_and_can_be_taken_back(resnet):
    before = snapshot(resnet)
    reconstructor = SyntheticLeastSquares(IMAGES, refinement=dict(groups_per_pass=16))
    states = []
    for _ in range(2):
        restore = apply_plan(resnet, random_plan(resnet), reconstructor, final=True)
        states.append(snapshot(resnet))
        restore.swap()
        assert_same(resnet, before)
        restore.swap()
        assert_same(resnet, states[-1])
        restore()
        assert_same(resnet, before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_finishing_a_plan_that_keeps_all_changes_nothing(resnet):
    before = snapshot(resnet)
    apply_plan(resnet, uniform(resnet, 1.0), SyntheticLeastSquares(IMAGES), final=True)
    assert_same(resnet, before)


def test_a_model_whose_copy_runs_the_model_itself_gets_no_full_pass():
    module = enliven(CifarResNet(depth=8))
    module.forward = lambda x: CifarResNet.forward(module, x)
    before = snapshot(module)
    with pytest.raises(AutoDFPError, match=r'a copy of the CifarResNet, but layer1.0.conv2 of the copy is not run'):
        apply_plan(module, uniform(module, 0.5), SyntheticLeastSquares(IMAGES), final=True)
    assert_same(module, before)
    apply_plan(module, uniform(module, 0.5), SyntheticLeastSquares(IMAGES, refinement=False), final=True)
    assert module.layer1[0].conv2.in_channels == module.layer1[0].conv2.out_channels // 2


def test_a_layer_that_misses_nothing_keeps_its_weights_in_the_full_pass(resnet):
    first, *_, last = find_groups(resnet)
    plan = PruningPlan({first.name: GroupPlan(tuple(range(4)), first.num_channels)})
    before = snapshot(resnet)
    with apply_plan(resnet, plan, SyntheticLeastSquares(IMAGES), final=True):
        reader, other = (f'{group.consumers[0].name}.weight' for group in (first, last))
        assert resnet.get_parameter(reader).shape != before[reader].shape
        assert torch.equal(resnet.get_parameter(other), before[other])
    assert_same(resnet, before)


def test_a_full_pass_computes_each_groups_reconstruction_once_for_all_its_readers(monkeypatch):
    class Fan(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.readers = nn.Conv2d(3, 8, 3), nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(4))

        def forward(self, x):
            x = self.a(x).relu()
            return [reader(x) for reader in self.readers]

    calls, original = [], SyntheticLeastSquares.reconstruct
    monkeypatch.setattr(
        SyntheticLeastSquares, 'reconstruct', lambda self, *args: calls.append(args[0].name) or original(self, *args)
    )
    group = ChannelGroup('a', 8, None, tuple(Consumer(f'readers.{index}') for index in range(4)))
    plan = PruningPlan({'a': GroupPlan((0, 1, 2), 8)})
    apply_plan(Fan().eval(), plan, SyntheticLeastSquares(IMAGES), final=True, groups=[group])
    assert calls == ['a', 'a']  # for the module, and for the pruned path


@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(6, 5, 3, padding=1, bias=False),
        nn.Conv2d(6, 5, (3, 1), stride=2, padding=(1, 0), dilation=2, bias=False),
        nn.Conv2d(6, 5, 1, bias=False),
        nn.Conv2d(6, 5, 1, stride=2, bias=False),
        nn.Conv2d(6, 5, 3, padding='same', bias=False),
        nn.Conv2d(6, 5, (4, 2), padding='same', dilation=(1, 2), bias=False),
        nn.Conv2d(6, 5, 3, padding='valid', bias=False),
        nn.Conv2d(6, 5, 3, padding=(2, 1), padding_mode='reflect', bias=False),
        nn.Conv2d(6, 5, 3, padding=1, stride=2, padding_mode='circular', bias=False),
        nn.Conv2d(6, 5, 3, padding='same', padding_mode='replicate', bias=False),
        nn.Conv2d(6, 5, 1, padding='same', bias=False),
        nn.Linear(6, 5, bias=False),
    ],
)
def test_patches_times_weight_are_the_layers_outputs(layer):
    x = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 9, 8)
    with torch.no_grad():
        output = layer(x)
        found = patches_of(layer, x) @ layer.weight.flatten(1).T
    expected = output if output.ndim == 2 else output.permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    some = torch.randperm(len(expected))[:7]
    assert torch.equal(patches_of(layer, x, some), patches_of(layer, x)[some])


@pytest.mark.parametrize('padding', [dict(padding='same'), dict(padding=1, padding_mode='reflect')])
def test_the_full_pass_minds_how_a_consumer_pads(padding):
    """Doubled channels cost nothing, at the border either."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3, **padding)).eval()
    module[0].weight.data[4:], module[0].bias.data[4:] = module[0].weight.data[:4] * 2, module[0].bias.data[:4] * 2
    images = torch.cat(list(SyntheticImages(**IMAGES).batches()))
    plan = PruningPlan({'0': GroupPlan((0, 1, 2, 3), 8)})
    reconstructor = SyntheticLeastSquares(IMAGES, refinement=dict(patch_ridge=1e-9))
    with torch.no_grad():
        dense = module(images)
        with apply_plan(module, plan, reconstructor, final=True):
            torch.testing.assert_close(module(images), dense, rtol=1e-3, atol=1e-3)


def test_what_a_residual_block_adds_is_found_whatever_the_block():
    for module, path, norm in (
        (build_resnet(), 'layer1.1.conv3', 'layer1.1.bn3'),
        (build_resnet(), 'layer2.0.conv3', 'layer2.0.bn3'),
        (enliven(CifarResNet(depth=14)), 'layer1.1.conv2', 'layer1.1.bn2'),
    ):
        block = module.get_submodule(path.rpartition('.')[0])
        inputs = []
        handle = block.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0].clone()))
        images = torch.randn(2, 3, 32, 32)
        (seen,) = watch_layers(module, (images,), {path: Watched(norm)})[path]
        handle.remove()
        assert isinstance(seen, Seen)
        x = inputs[0].relu()  # what the CIFAR networks begin a block with; behind mmdet's blocks it changes nothing
        with torch.no_grad():
            expected = x if block.downsample is None else block.downsample(x)
        torch.testing.assert_close(seen.shortcut, expected)


def test_a_layer_in_no_residual_block_has_no_shortcut():
    seen = watch_layers(build_resnet(), (torch.randn(2, 3, 32, 32),), {'layer1.0.conv2': Watched('layer1.0.bn2')})
    assert seen['layer1.0.conv2'][0].shortcut is None


@pytest.mark.parametrize('shape', [(), (8, 1, 1)])
def test_numbers_that_are_added_to_channels_are_no_shortcut(shape):
    block = nn.Sequential(nn.Conv2d(3, 8, 1))
    block.forward = lambda x: block[0](x) + torch.ones(shape)
    module = nn.Sequential(block, nn.Conv2d(8, 4, 1))
    seen = watch_layers(module, (torch.randn(2, 3, 8, 8),), {'0.0': Watched()})
    assert seen['0.0'][0].shortcut is None


@pytest.mark.parametrize('written_out', [False, True])
def test_a_shortcut_is_scaled_as_its_sum_scales_it(written_out):
    block = nn.Sequential(nn.Conv2d(3, 3, 1))
    block.forward = lambda x: block[0](x) + 0.5 * x if written_out else torch.add(block[0](x), x, alpha=0.5)
    images = torch.randn(2, 3, 8, 8)
    (seen,) = watch_layers(nn.Sequential(block, nn.Conv2d(3, 4, 1)), (images,), {'0.0': Watched()})['0.0']
    torch.testing.assert_close(seen.shortcut, 0.5 * images)


@pytest.mark.parametrize('activate', [nn.ReLU(inplace=True), nn.SiLU(inplace=True), torch.relu_, lambda x: x.mul_(2)])
def test_a_layer_whose_outputs_are_changed_in_place_before_the_sum_has_no_shortcut(activate):
    block = nn.Sequential(nn.Conv2d(3, 3, 1))
    block.forward = lambda x: activate(block[0](x)) + x
    module = nn.Sequential(block, nn.Conv2d(3, 4, 1))
    (seen,) = watch_layers(module, (torch.randn(2, 3, 8, 8),), {'0.0': Watched()})['0.0']
    assert seen.shortcut is None


@pytest.mark.parametrize('add', [torch.add, torch.sub])
def test_a_layer_whose_outputs_are_scaled_or_subtracted_in_a_sum_has_no_shortcut(add):
    block = nn.Sequential(nn.Conv2d(3, 3, 1))
    block.forward = lambda x: add(x, block[0](x), alpha=0.5)
    module = nn.Sequential(block, nn.Conv2d(3, 4, 1))
    seen = watch_layers(module, (torch.randn(2, 3, 8, 8),), {'0.0': Watched()})
    assert seen['0.0'][0].shortcut is None


def test_a_refinement_can_be_left_out(resnet):
    reconstructor = SyntheticLeastSquares(IMAGES, refinement=False)
    plan = uniform(resnet, 0.5)
    with apply_plan(resnet, plan, reconstructor):
        episode = snapshot(resnet)
    with apply_plan(resnet, plan, reconstructor, final=True):
        assert_same(resnet, episode)
    assert reconstructor.refinement is None
    assert Refinement() == SyntheticLeastSquares().refinement
    assert copy.deepcopy(reconstructor._consumers).keys() == {group.name for group in find_groups(resnet)}


def test_the_pruned_path_is_run_as_far_as_it_must_be():
    resnet = build_resnet()
    paths = Paths(resnet, copy.deepcopy(resnet), lambda: iter([(torch.randn(2, 3, 32, 32),)]), 1.0)
    paths.enter('layer1.0', {f'layer1.0.conv{i}': f'layer1.0.bn{i}' for i in (1, 2, 3)}, True)
    for number, added in ((1, None), (2, None), (3, True)):
        name = f'layer1.0.conv{number}'
        ((dense, pruned),) = paths.watch([name])
        assert torch.equal(dense[name][0].input, pruned[name][0].input)
        assert (pruned[name][0].output is None) == (added is None)
        for seen in (dense[name][0], pruned[name][0]):
            assert (seen.shortcut is None) == (added is None)


@pytest.mark.parametrize('build', [lambda: build_resnet(), lambda: enliven(CifarResNet(depth=14))])
def test_carrying_on_from_block_to_block_gives_what_starting_at_the_images_gives(build):
    module = build()
    states = []
    for cache_gb in (2.0, 0.0):
        reconstructor = SyntheticLeastSquares(IMAGES, refinement=dict(cache_gb=cache_gb))
        with apply_plan(module, random_plan(module), reconstructor, final=True):
            states.append(snapshot(module))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=1e-4)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x, scale=1.0, *, shift=0.0):
        return scale * self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + shift


class TwoBlocks(nn.Module):
    def __init__(self, between, **named):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), Block(), Block()
        self.between, self.named = between, named

    def forward(self, x):
        return self.b(self.between(self.a(self.stem(x), **self.named)))


@pytest.mark.parametrize(
    ('between', 'named'),
    [
        (nn.ReLU(), {}),
        (nn.ReLU(inplace=True), {}),
        (nn.Sequential(nn.ReLU(inplace=True)), {}),
        (lambda x: x.add_(1), {}),
        (nn.Identity(), dict(scale=5.0, shift=1.0)),
    ],
)
def test_carrying_on_misses_neither_what_is_done_in_place_between_blocks_nor_arguments_by_name(between, named):
    torch.manual_seed(0)
    module, found = enliven(TwoBlocks(between, **named)), []
    groups = [
        ChannelGroup(f'{block}.conv1', 8, f'{block}.bn1', (Consumer(f'{block}.conv2', f'{block}.bn2'),))
        for block in 'ab'
    ]
    plan = PruningPlan({group.name: GroupPlan((0, 1, 2, 3), 8) for group in groups})
    for cache_gb in (2.0, 0.0):
        reconstructor = SyntheticLeastSquares(IMAGES, refinement=dict(cache_gb=cache_gb))
        with apply_plan(module, plan, reconstructor, final=True, groups=groups):
            found.append(snapshot(module))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_paths_know_which_block_follows_which():
    resnet, images = build_resnet(), torch.randn(2, 3, 32, 32)
    paths = Paths(resnet, copy.deepcopy(resnet), lambda: iter([(images,)]), 1.0)

    def watch(block):
        paths.enter(block, {f'{block}.conv2': f'{block}.bn2'}, True)
        return list(paths.watch([f'{block}.conv2']))

    watch('layer1.0')
    assert (paths.census.follows['layer1.1'], paths.census.follows['layer2.0']) == ('layer1.0', 'layer1.2')
    assert 'layer2.0.downsample' in paths.census.follows
    calls = []
    resnet.conv1.register_forward_pre_hook(lambda *_: calls.append('from the images'))
    found = {block: watch(block) for block in ('layer1.1', 'layer1.2', 'layer2.0', 'layer3.0')}  # not all that are
    assert calls == []
    for block, ((dense, pruned),) in found.items():
        path = f'{block}.conv2'
        seen = watch_layers(resnet, (images,), {path: Watched()})[path][0].input
        assert torch.equal(dense[path][0].input, seen)
        assert torch.equal(pruned[path][0].input, seen)
    calls.clear()
    watch('layer2.1')  # which comes before
    assert calls == ['from the images']


@pytest.mark.parametrize(('room', 'again'), [(3.5, 0), (1.5, 2), (0.5, 3)])
def test_as_much_of_the_dense_path_is_kept_as_there_is_room_for(room, again):
    resnet, batches, path = build_resnet(), [(torch.randn(2, 3, 32, 32),) for _ in range(3)], 'layer1.0.conv2'
    seen = [watch_layers(resnet, batch, {path: Watched()})[path][0] for batch in batches]
    paths = Paths(resnet, copy.deepcopy(resnet), lambda: iter(batches), room * seen[0].size / 1e9)
    paths.enter('', {path: None}, False)  # what enters takes no room: it is the images
    calls = []
    resnet.conv1.register_forward_pre_hook(lambda *_: calls.append('run again'))
    found = [dense[path][0] for dense, _ in paths.watch([path])]
    assert len(calls) == again
    assert all(torch.equal(one.output, other.output) for one, other in zip(found, seen, strict=True))
