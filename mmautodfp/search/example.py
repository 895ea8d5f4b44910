"""Calling a model: with an example of its input, or with small images to follow its channels."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn

from mmautodfp.graph import (
    flat_tensors,
    hook_handles,
    is_detector,
    is_torchvision_detector,
    opaque_parts,
    run_model,
)
from mmautodfp.reconstruction import Stopped, SyntheticImages
from mmautodfp.utils import AutoDFPError, first_line

# Sides of the images, tried one after the other: some models reduce small ones to nothing.
SIZES = (128, 320, 512)

# Runs a model, or a copy of it in float64, on a small input; gives its outputs.
Run = Callable[[nn.Module], list[Tensor]]
Result = TypeVar('Result')


@torch.no_grad()
def call_model(model: nn.Module, example_input: Any) -> Any:
    """Call a model with an example: a tuple of arguments, a dict of named ones, or a single one."""
    if isinstance(example_input, Mapping):
        return model(**example_input)
    return model(*example_input) if isinstance(example_input, tuple) else model(example_input)


def call_whole(model: nn.Module, example_input: Any) -> Any:
    """As :func:`call_model`, but a detector that is called with named arguments makes its boxes too."""
    if is_detector(model) and isinstance(example_input, Mapping):
        example_input = dict(example_input, mode='predict')
    return call_model(model, example_input)


def run_small(model: nn.Module, example_input: Any, look: Callable[[Run], Result]) -> Result:
    """Call ``look`` with a function that runs a model on a small input; if it fails, with larger images.

    Args:
        model (nn.Module): In eval mode.
        example_input (Any): The input of a model that is no detector. Detectors get drawn images, and so does any
            model for None.
        look (Callable): From such a function to what is to be known.

    Raises:
        AutoDFPError: It failed with images of all sizes, or of ``look`` itself.
    """
    device = next((weight.device for weight in model.parameters()), torch.device('cpu'))
    problem: Exception | None = None
    pictures = is_detector(model) or is_torchvision_detector(model) or example_input is None
    for size in SIZES if pictures else SIZES[:1]:
        if pictures:
            (images,) = SyntheticImages(num_images=2, batch_size=2, size=size).normalized_as(model).batches(device)
            call = lambda model, images=images: run_model(model, *_as_precise(model, [images]))
        else:
            call = lambda model: call_model(model, _as_precise(model, example_input))
        run = lambda model, call=call: flat_tensors(call(model))
        try:
            with torch.no_grad():
                outputs = call(model)  # some things are made at the first call
                _require_plain(model, outputs)
                return look(run)
        except AutoDFPError:
            raise
        except Exception as error:  # a model's own code may end with anything
            problem = error
    given = f'images of {SIZES} pixels' if pictures else 'the example_input'
    advice = 'give an example_input' if pictures else 'give another one (a dict holds named arguments, a tuple several)'
    raise AutoDFPError(
        f'the channels of the {type(model).__name__} were to be followed from layer to layer, but it cannot be run on '
        f'{given} ({first_line(problem)}); {advice}, or prune a part that finders know'
    ) from problem


def _require_plain(model: nn.Module, outputs: Any) -> None:
    """Refuse outputs that may hide tensors, which could not be compared with the dense model's."""
    hidden = next(opaque_parts(outputs), None)
    if hidden is not None and not is_detector(model):
        raise AutoDFPError(
            f'the {type(model).__name__} was to be run to see whether its outputs stay what they are, but it gives a '
            f'{type(hidden).__name__}, in which they cannot be looked up; let its forward give tensors, in lists, '
            'tuples, dicts or dataclasses if there are several'
        )


def _as_precise(model: nn.Module, inputs: Any) -> Any:
    """Inputs in float64 if a model's weights are; otherwise as they are."""
    if all(weight.dtype != torch.float64 for weight in model.parameters()):
        return inputs
    is_float = lambda value: isinstance(value, Tensor) and value.is_floating_point()
    return apply_to(inputs, is_float, Tensor.double)


def outputs_within(path: str, run: Run, model: nn.Module) -> list[Tensor]:
    """What the part at a path gives while ``run`` runs the model; nothing if the part itself is never called."""
    if not path:
        return run(model)
    seen: list[Tensor] = []

    def stop(_, __, output):
        seen.extend(flat_tensors(output))
        raise Stopped

    with hook_handles() as handles, suppress(Stopped):
        handles.append(model.get_submodule(path).register_forward_hook(stop))
        run(model)
    return seen
