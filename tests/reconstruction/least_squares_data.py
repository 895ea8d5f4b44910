"""What the tests of least squares on synthetic images share."""

import pytest
import torch
from conftest import build_resnet

from mmautodfp.graph import find_groups
from mmautodfp.surgery import GroupPlan, PruningPlan

IMAGES = dict(num_images=12, size=32, batch_size=4)


def uniform(module, share, reconstructor=None):
    """A plan that keeps the same share everywhere, of the channels that a reconstructor ranks first."""
    plans = {}
    for group in find_groups(module):
        order = reconstructor.ranking(group) if reconstructor else None
        order = torch.arange(group.num_channels) if order is None else order
        keep = order[: max(1, int(group.num_channels * share))].sort().values.tolist()
        plans[group.name] = GroupPlan(tuple(keep), group.num_channels)
    return PruningPlan(plans)


def snapshot(module):
    """A copy of a state dict."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(module, before):
    """A module's state dict is that of a snapshot."""
    state = module.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.fixture(name='resnet')
def frozen_resnet():
    """A detector's backbone as it is in training: a frozen stage, norms in eval mode."""
    return build_resnet(depth=50, frozen_stages=1, norm_eval=True)
