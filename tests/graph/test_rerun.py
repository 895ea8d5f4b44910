"""Running again what a change reaches: the outputs are those of an ordinary run, and nothing else is run."""

import pytest
import torch
import torch.nn.functional as F
from conftest import build_resnet
from torch import nn

from mmautodfp.graph import Rerun


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
