"""Running again what a change reaches: the outputs are those of an ordinary run, and nothing else is run."""

import pytest
import torch
import torch.nn.functional as F
from conftest import build_resnet, enliven
from mmdet.registry import MODELS
from torch import nn

from mmautodfp.graph import Rerun
from mmautodfp.reconstruction import batch_statistics


class Branches(nn.Module):
    """Two branches, one of which works in place, and a layer that is called twice with something else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(inplace=True))
        self.right = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
        self.shared = nn.Conv2d(4, 2, 1)

    def forward(self, x, scale=1.0):
        left = self.left(x)
        right = self.right(x)
        right *= scale  # in place, after the branch has given it
        levels = [self.shared(level) for level in (left, F.avg_pool2d(right, 2))]
        levels.append(left + right)
        return levels


@torch.no_grad()
def counted(module: nn.Module, call) -> tuple[list[torch.Tensor], list[str]]:
    """What a call gives, and which convolutions it runs."""
    ran, before = [], F.conv2d
    names = {id(layer.weight): name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}

    def conv2d(x, weight, *args, **kwargs):
        ran.append(names[id(weight)])
        return before(x, weight, *args, **kwargs)

    F.conv2d = conv2d
    try:
        return call(), ran
    finally:
        F.conv2d = before


@pytest.fixture
def model():
    return Branches().eval()


@pytest.mark.parametrize(
    ('changed', 'expected'),
    [
        ('left.0', ['left.0', 'shared', 'shared']),  # what the second call reads is made anew from the right branch
        ('right.0', ['right.0', 'shared']),
        ('shared', ['shared', 'shared']),
        (None, []),
    ],
)
def test_only_what_changed_or_reads_something_else_is_run_again(model, changed, expected):
    images = torch.randn(2, 3, 8, 8)
    run = lambda: model(images, scale=2.0)
    with torch.no_grad():
        rerun = Rerun(model, run)
        for once in (rerun.outputs, run()):
            assert all(map(torch.equal, once, run()))
        if changed:
            model.get_submodule(changed).weight.data.mul_(1.5)
        found, ran = counted(model, lambda: rerun.again([model.get_submodule(changed)] if changed else []))
        assert ran == expected
        assert all(map(torch.equal, found, run()))
        # A second time nothing is left of the first.
        assert all(map(torch.equal, rerun.again([model.get_submodule(changed)] if changed else []), run()))


def test_other_arguments_are_another_call(model):
    images, scale = torch.randn(2, 3, 8, 8), [1.0]
    outer = nn.ModuleDict(dict(inner=model)).eval()
    run = lambda: outer['inner'](images, scale=scale[0])
    with torch.no_grad():
        rerun = Rerun(outer, run)
        scale[0] = 3.0
        assert all(map(torch.equal, rerun.again([]), run()))


class Levels(nn.Module):
    """A part that writes into the list that it is given, as HRNet's modules do, and one whose list is written into."""

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))

        def forward(self, levels):
            for index, conv in enumerate(self.convs):
                levels[index] = conv(levels[index])
            levels.append(levels[0] + levels[1])
            return levels

    class Pair(nn.Module):
        def forward(self, x):
            return [x, 2 * x]

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.pair, self.first, self.second = self.Pair(), self.Split(), self.Split()

    def forward(self, x):
        levels = self.pair(x)
        levels.reverse()
        self.first(levels)
        return self.second(levels[:2])


def build_hrnet() -> nn.Module:
    stage = lambda modules, branches: dict(
        num_modules=modules,
        num_branches=branches,
        block='BASIC',
        num_blocks=(1,) * branches,
        num_channels=tuple(4 * 2**i for i in range(branches)),
    )
    first = dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(4,))
    stages = dict(stage1=first, stage2=stage(1, 2), stage3=stage(2, 3), stage4=stage(2, 4))
    return enliven(MODELS.build(dict(type='mmdet.HRNet', extra=stages)), 0)


@pytest.mark.parametrize('build', [Levels, build_hrnet])
def test_lists_that_parts_write_into_are_not_taken_for_what_they_were(build):
    model = build()
    model.eval()  # mmdet's HRNet returns nothing here
    images = torch.randn(2, 3, 32, 32)
    run = lambda: model(images)
    with torch.no_grad():
        rerun = Rerun(model, run)
        for path, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d):
                before = layer.weight.data
                layer.weight.data = before * 1.5
                assert all(map(torch.equal, rerun.again([layer]), run())), path
                layer.weight.data = before


def test_a_run_that_fails_leaves_the_model_as_it_was(model):
    images = torch.randn(2, 3, 8, 8)
    rerun = Rerun(model, lambda: model(images))
    for call in (lambda: Rerun(model, lambda: model('no image')), lambda: rerun.again(None)):
        with pytest.raises(TypeError):
            call()
    assert not any('forward' in part.__dict__ for part in model.modules())
    assert model.left[2].inplace


def test_norms_with_the_statistics_of_the_batch_are_rerun_as_such():
    resnet = build_resnet(18)
    images = torch.randn(2, 3, 32, 32)
    layer = resnet.layer2[0].conv2
    with torch.no_grad(), batch_statistics(resnet):
        rerun = Rerun(resnet, lambda: resnet(images))
        layer.weight.data *= torch.linspace(0.5, 2, len(layer.weight)).view(-1, 1, 1, 1).flip(1)
        resnet.layer2[0].bn2.weight.data *= 2
        found = rerun.again([layer, resnet.layer2[0].bn2])
        assert all(map(torch.equal, found, resnet(images)))
        norms = [norm for norm in resnet.modules() if isinstance(norm, nn.BatchNorm2d)]
        assert all('forward' in norm.__dict__ for norm in norms)  # still those of the batch
    assert not any(torch.equal(a, b) for a, b in zip(found, resnet(images), strict=True))


def test_each_layer_of_a_resnet_may_change_and_the_model_is_left_as_it_was():
    resnet = build_resnet(18)
    images = torch.randn(2, 3, 32, 32)
    activations = [part for part in resnet.modules() if getattr(part, 'inplace', False)]
    run = lambda: resnet(images)
    with torch.no_grad():
        rerun = Rerun(resnet, run)
        assert all(map(torch.equal, rerun.outputs, run()))
        work = []
        for path, layer in resnet.named_modules():
            if isinstance(layer, nn.Conv2d):
                before = layer.weight.data
                layer.weight.data = before * 1.5
                found, ran = counted(resnet, lambda layer=layer: rerun.again([layer]))
                assert all(map(torch.equal, found, run())), path
                layer.weight.data = before
                work.append(len(ran))
    assert work[0] == len(work)
    assert work[-1] <= 3
    assert sorted(work, reverse=True)[: len(work) // 2] == work[: len(work) // 2]
    assert activations
    assert all(part.inplace for part in activations)
    assert not any('forward' in part.__dict__ for part in resnet.modules())
