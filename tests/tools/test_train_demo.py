"""tools/train_demo.py: training in bfloat16."""

import pytest
import torch
from conftest import build_resnet
from in_process import load_tool
from torch import nn

from mmautodfp.utils import AutoDFPError


class Backbone(nn.Module):
    """What a detector has in front of its heads."""

    def __init__(self):
        super().__init__()
        self.backbone = build_resnet(norm_eval=False)

    def extract_feat(self, batch_inputs):
        return self.backbone(batch_inputs)


def test_features_are_those_of_bfloat16_while_training_and_those_of_float32_after_it():
    detector, images = Backbone(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    detector.train()
    expected = detector.extract_feat(images)
    load_tool('train_demo').train_in_bfloat16(detector)
    found = detector.extract_feat(images)
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in found)
    error = (found[0] - expected[0]).norm() / expected[0].norm()  # the last norms see too few values to be steady
    assert 0 < error < 0.05
    sum(x.sum() for x in found).backward()
    assert detector.backbone.conv1.weight.grad.dtype == torch.float32

    with pytest.raises(AutoDFPError, match='--bfloat16 is for detectors, but the config has a Linear; leave it out'):
        load_tool('train_demo').train_in_bfloat16(nn.Linear(2, 2))

    detector.eval()
    with torch.no_grad():
        for exact, after in zip(detector.backbone(images), detector.extract_feat(images), strict=True):
            assert (after - exact).abs().amax() < 1e-5 * exact.abs().amax()
