"""A pruned module built from its config."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmautodfp.graph import find_units
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import MODELS

from .apply import apply_plan
from .plan import PruningPlan, UnitPlan
from .restore import set_sizes, sizes_of


@MODELS.register_module()
def Slim(
    module: dict | nn.Module,
    layers: Mapping[str, Mapping[str, int | bool]] | None = None,
    widths: Mapping[str, int] | None = None,
) -> nn.Module:
    """Build a module and shrink it, so that a config can describe a pruned model.

    It is a function: what it returns is the module itself, with the dense one's class and state-dict keys. Where the
    shapes changed its weights are random, as torch makes them: those of the plan come from the checkpoint.

    Args:
        module (dict | nn.Module): The dense module, or its config.
        layers (Mapping[str, Mapping[str, int | bool]] | None): Path of each changed layer to what it is built with
            instead, such as ``{'layer1.0.conv1': dict(out_channels=32)}``; ``bias=True`` gives it a bias.
        widths (Mapping[str, int] | None): As version 0.1 wrote it: prunable unit to the number of channels that stay.

    Returns:
        nn.Module: The slim module.

    Raises:
        AutoDFPError: A name is no layer of the module, or a size does not fit it.
    """
    if isinstance(module, dict):
        module = MODELS.build(module)
    for path, sizes in (layers or {}).items():
        _resize(module, path, sizes)
    if widths:
        shrink(module, widths)
    if getattr(module, 'init_cfg', None):
        module.init_cfg = None  # pretrained weights are of the dense shapes
    return module


@MODELS.register_module()
def SlimModel(
    slim_type: str | type,
    layers: Mapping[str, Mapping[str, int | bool]] | Sequence[Mapping[str, Mapping[str, int | bool]]],
    **config: Any,
) -> nn.Module:
    """Build a whole model and shrink it, as :func:`Slim` does a part of it.

    Every key of the dense model's config stays in its place, so that whatever reads ``cfg.model.backbone`` or
    ``cfg.model.test_cfg`` goes on working.

    Args:
        slim_type (str | type): The dense model's ``type``.
        layers (Mapping[str, Mapping[str, int | bool]] | Sequence): As of :func:`Slim`; several, one after the other, of
            a model that was pruned several times.
        **config: The rest of the dense model's config.

    Raises:
        AutoDFPError: As of :func:`Slim`.
    """
    model = dict(config, type=slim_type)
    for one in layers if isinstance(layers, list | tuple) else [layers]:
        model = Slim(model, one)
    return model


def shrink(module: nn.Module, widths: Mapping[str, int]) -> None:
    """Cut a dense module's units down to their first channels, for its shapes: the weights are not those of a plan.

    Args:
        module (nn.Module): Changed in place.
        widths (Mapping[str, int]): Unit name to the number of channels that stay. Units that are absent stay whole.

    Raises:
        AutoDFPError: A name is no unit of the module, or a width is not in 1..N.
    """
    channels = {unit.name: unit.num_channels for unit in find_units(module)}
    for name, width in widths.items():
        if name in channels and not 1 <= width <= channels[name]:
            raise AutoDFPError(f'Slim was to keep {width} channels of {name}, which has {channels[name]}')
    plan = {name: UnitPlan(tuple(range(width)), channels.get(name, width)) for name, width in widths.items()}
    apply_plan(module, PruningPlan(plan))


def _resize(module: nn.Module, path: str, sizes: Mapping[str, int | bool]) -> None:
    """Give a layer other sizes, and tensors of those sizes."""
    try:
        layer = module.get_submodule(path)
    except AttributeError:
        raise AutoDFPError(
            f'the pruned model has a layer {path!r}, but the {type(module).__name__} has none of that name; '
            'its config and this version of its code do not belong together'
        ) from None
    dense, kind = sizes_of(layer), type(layer).__name__
    if not isinstance(sizes, Mapping):
        raise AutoDFPError(f'{path} takes a dict of sizes, such as dict(out_channels=8), got {sizes!r}')
    unknown = sizes.keys() - dense.keys() - ({'bias'} if hasattr(layer, 'bias') else set())
    if unknown:
        raise AutoDFPError(f'{path} is a {kind}, which has no {", ".join(sorted(unknown))} to be changed')
    for name, value in sizes.items():
        if type(value) is not (bool if name == 'bias' else int) or value < 1:
            raise AutoDFPError(f'{path} was to have {name}={value!r}, but a {kind} takes a whole number of 1 or more')
    new = {name: sizes.get(name, value) for name, value in dense.items()}
    set_sizes(layer, new)
    outputs = {'out_channels', 'num_features', 'out_features', 'num_channels'}
    transposed = isinstance(layer, nn.ConvTranspose2d)
    for store in (layer._parameters, layer._buffers):
        for name, tensor in store.items():
            if tensor is None or not tensor.ndim:
                continue
            shape = list(tensor.shape)
            shape[0] = next((new[key] for key in new if key in outputs), shape[0])
            if tensor.ndim > 1:
                shape[1] = new.get('in_features') or new['in_channels'] // new.get('groups', 1)
            if tensor.ndim > 1 and transposed:
                shape[0], shape[1] = new['in_channels'], new['out_channels'] // new['groups']
            if shape != list(tensor.shape):
                empty = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
                store[name] = nn.Parameter(empty, tensor.requires_grad) if store is layer._parameters else empty
    if sizes.get('bias') and layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), layer.weight.requires_grad)
    if hasattr(layer, 'reset_parameters'):
        layer.reset_parameters()
