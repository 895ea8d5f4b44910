"""Which outputs of a model are of one kind."""

import pytest
import torch
from torch import nn

from mmautodfp.graph import outputs_by_kind, run_model
from mmautodfp.utils import AutoDFPError


class _Says(nn.Module):
    """A model that gives what it is made with."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def forward(self, x):
        return self.said


def test_levels_of_a_pyramid_are_of_one_kind_in_lists_and_tuples():
    classes = [torch.zeros(2, 3, size, size) for size in (8, 4, 2)]
    boxes = [torch.zeros(2, 4, size, size) for size in (8, 4, 2)]
    for said in ((classes, boxes), (tuple(classes), tuple(boxes)), [tuple(classes), boxes]):
        assert [len(kind) for kind in outputs_by_kind(_Says(said), torch.zeros(1))] == [3, 3]


def test_answers_of_several_kinds_stay_apart():
    classes, boxes, logits = torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 8, 8), torch.zeros(2, 4)
    sides = torch.zeros(2, 9, 5), torch.zeros(2, 9, 4)
    for said in ((classes, boxes), (boxes, boxes.clone()), (logits, logits.clone()), dict(a=classes, b=classes), sides):
        assert [len(kind) for kind in outputs_by_kind(_Says(said), torch.zeros(1))] == [1, 1]


def test_indices_are_no_kind():
    logits = torch.rand(2, 4)
    (kind,) = outputs_by_kind(_Says((logits, logits.argmax(1), [logits.argmax(0)])), torch.zeros(1))
    assert kind[0] is logits


def test_a_model_that_takes_images_is_not_run_without():
    model = nn.Identity()
    model.extract_feat = lambda images: images
    with pytest.raises(AutoDFPError, match='the Identity was to be run without images; give it a batch'):
        run_model(model)
