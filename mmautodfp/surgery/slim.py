"""Building a pruned module from its config."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmautodfp.graph import find_groups
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import MODELS

from .apply import apply_plan
from .plan import GroupPlan, PruningPlan
from .restore import OUTPUT_SIZES, set_sizes, sizes_of


@MODELS.register_module()
def Slim(
    module: dict | nn.Module,
    layers: Mapping[str, Mapping[str, int | bool]] | None = None,
    widths: Mapping[str, int] | None = None,
) -> nn.Module:
    """Build a module and shrink it, so that a config can describe a pruned model.

    This is a function: it returns the module itself, with the class and the state-dict keys of the dense one; only keys
    of new biases are added. Changed layers have random weights, as torch initialises them; the pruned weights are to be
    loaded from the checkpoint.

    Args:
        module (dict | nn.Module): The dense module, or its config.
        layers (Mapping[str, Mapping[str, int | bool]] | None): Path of each changed layer to its new sizes, such as
            ``{'layer1.0.conv1': dict(out_channels=32)}``; ``bias=True`` gives it a bias. Defaults to None, which takes
            ``widths``.
        widths (Mapping[str, int] | None): What version 0.1 wrote instead: prunable group to the number of kept
            channels. Defaults to None.

    Returns:
        nn.Module: The slim module.

    Raises:
        AutoDFPError: Neither ``layers`` nor ``widths`` is given, a name is no layer or group of the module, or a size
            does not fit it.
    """
    if layers is None and widths is not None:
        layers = {}
    if not isinstance(layers, Mapping):
        raise AutoDFPError(f'Slim was asked for layers={layers!r}; it takes a dict of each changed layer to its sizes')
    if isinstance(module, dict):
        module = MODELS.build(module)
    for path, sizes in layers.items():
        _resize(module, path, sizes)
    if widths:
        _keep_first(module, widths)
    if getattr(module, 'init_cfg', None):
        module.init_cfg = None  # pretrained weights are of the dense shapes
    return module


@MODELS.register_module()
def SlimModel(
    slim_type: str | type,
    layers: Mapping[str, Mapping[str, int | bool]] | Sequence[Mapping[str, Mapping[str, int | bool]]],
    **config: Any,
) -> nn.Module:
    """Build a whole model and shrink it or parts of it, as :func:`Slim` does.

    All keys of the dense model's config stay in place, so that code which reads ``cfg.model.backbone`` or
    ``cfg.model.test_cfg`` still works.

    Args:
        slim_type (str | type): The dense model's ``type``.
        layers (Mapping[str, Mapping[str, int | bool]] | Sequence): As of :func:`Slim`; for a model that was pruned
            several times, the ``layers`` of each pruning in turn.
        **config (Any): The rest of the dense model's config.

    Raises:
        AutoDFPError: As of :func:`Slim`.
    """
    model = MODELS.build(dict(config, type=slim_type))
    for one in layers if isinstance(layers, list | tuple) else [layers]:
        model = Slim(model, one)
    return model


def _keep_first(module: nn.Module, widths: Mapping[str, int]) -> None:
    """Prune groups of a dense module to their first channels: only shapes matter, as weights are loaded later."""
    channels = {group.name: group.num_channels for group in find_groups(module)}
    for name, width in widths.items():
        if name in channels and not 1 <= width <= channels[name]:
            raise AutoDFPError(f'Slim was to keep {width} channels of {name}, which has {channels[name]}')
    plan = {name: GroupPlan(tuple(range(width)), channels.get(name, width)) for name, width in widths.items()}
    apply_plan(module, PruningPlan(plan))


def _resize(module: nn.Module, path: str, sizes: Mapping[str, int | bool]) -> None:
    """Change the sizes of a layer, and initialise its tensors anew in these sizes."""
    layer = _layer_to_resize(module, path, sizes)
    new = {name: sizes.get(name, value) for name, value in sizes_of(layer).items()}
    set_sizes(layer, new)
    for store in (layer._parameters, layer._buffers):
        for name, tensor in store.items():
            if tensor is not None and tensor.ndim and (shape := _shape(layer, tensor, new)) != tensor.shape:
                empty = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
                store[name] = nn.Parameter(empty, tensor.requires_grad) if store is layer._parameters else empty
    if sizes.get('bias') and layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), layer.weight.requires_grad)
    if hasattr(layer, 'reset_parameters'):
        layer.reset_parameters()


def _layer_to_resize(module: nn.Module, path: str, sizes: Mapping[str, int | bool]) -> nn.Module:
    """The layer at a path, if it is there and can have these sizes."""
    try:
        layer = module.get_submodule(path)
    except AttributeError:
        raise AutoDFPError(
            f'the pruned model has a layer {path!r}, but the {type(module).__name__} has none of that name; '
            'its config and this version of its code do not belong together'
        ) from None
    kind = type(layer).__name__
    if not isinstance(sizes, Mapping):
        raise AutoDFPError(f'{path} takes a dict of sizes, such as dict(out_channels=8), got {sizes!r}')
    unknown = sizes.keys() - sizes_of(layer).keys() - ({'bias'} if hasattr(layer, 'bias') else set())
    if unknown:
        raise AutoDFPError(f'{path} is a {kind}, which has no {", ".join(sorted(unknown))} to be changed')
    for name, value in sizes.items():
        if name == 'bias' and value is not True:
            raise AutoDFPError(f'{path} was to have bias={value!r}, but bias can only be True, which adds one')
        if name != 'bias' and (type(value) is not int or value < 1):
            raise AutoDFPError(f'{path} was to have {name}={value!r}, but a {kind} takes a whole number of 1 or more')
    return layer


def _shape(layer: nn.Module, tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that a tensor of a layer has with other sizes of the layer."""
    outputs = next((sizes[name] for name in OUTPUT_SIZES if name in sizes), len(tensor))
    if tensor.ndim == 1:
        return (outputs,)
    inputs = sizes.get('in_features') or sizes['in_channels']
    first, second = (inputs, outputs) if isinstance(layer, nn.ConvTranspose2d) else (outputs, inputs)
    return (first, second // sizes.get('groups', 1), *tensor.shape[2:])
