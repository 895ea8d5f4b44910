"""What a task is about, where a model cannot be run to find out."""

import pytest
from conftest import build_resnet
from torch import nn

from mmautodfp.search.survey import survey_target
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
