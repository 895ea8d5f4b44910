"""Calling a model with an example of its input."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmautodfp.graph import is_detector


@torch.no_grad()
def call_model(model: nn.Module, example_input: Any) -> Any:
    """Call a model with an example: a tuple of arguments, a dict of named ones, or a single one."""
    if isinstance(example_input, Mapping):
        return model(**example_input)
    return model(*example_input) if isinstance(example_input, tuple) else model(example_input)


def call_whole(model: nn.Module, example_input: Any) -> Any:
    """The same with all that a model does: of a detector, which is called with named arguments, boxes are made too."""
    if is_detector(model) and isinstance(example_input, Mapping):
        example_input = dict(example_input, mode='predict')
    return call_model(model, example_input)
