"""Carrying out a plan on a live model, in place."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmautodfp.graph import Consumer, PrunableUnit, survey_units
from mmautodfp.kernels import merge_input_channels
from mmautodfp.utils import AutoDFPError

from .plan import PruningPlan, UnitPlan
from .restore import Restore, set_sizes

if TYPE_CHECKING:
    from mmautodfp.reconstruction import Reconstruction, Reconstructor


@torch.no_grad()
def apply_plan(
    module: nn.Module,
    plan: PruningPlan,
    reconstructor: 'Reconstructor | None' = None,
    final: bool = False,
    model: nn.Module | None = None,
) -> Restore:
    """Prune a module in place. Only shapes change: no module moves, so state-dict keys stay as they were.

    Args:
        module (nn.Module): The dense module that the plan's unit names are relative to.
        plan (PruningPlan): What to keep.
        reconstructor (Reconstructor | None): Hands the pruned channels' work on; fitted to the dense module here if it
            has not been. Defaults to None, which prunes without compensation.
        final (bool): Let the reconstructor finalize the plan as one that stays, in place of the recalibration of an
            episode. Defaults to False.
        model (nn.Module | None): What the module is a part of, see :meth:`Reconstructor.ensure_fitted`. Defaults to
            None.

    Returns:
        Restore: Call it to get the dense module back.

    Raises:
        AutoDFPError: The plan names a unit that the module lacks, or one of another width. The module is unchanged.
    """
    steps = _match(module, plan)
    if reconstructor is not None:
        reconstructor.ensure_fitted(module, model)
    restore = Restore()
    try:
        for unit, unit_plan in steps:
            prune_unit(module, unit, unit_plan, reconstructor, restore)
        if reconstructor is not None:
            (reconstructor.finalize if final else reconstructor.recalibrate)(module, plan, restore)
    except BaseException:
        restore()
        raise
    return restore


def _match(module: nn.Module, plan: PruningPlan) -> list[tuple[PrunableUnit, UnitPlan]]:
    units = {unit.name: unit for unit in survey_units(module).units}
    for name, unit_plan in plan.units.items():
        if name not in units:
            found = f'{len(units)} units, {next(iter(units))} the first' if units else 'no prunable unit'
            raise AutoDFPError(f'the plan prunes {name!r}, but the {type(module).__name__} has {found}')
        if units[name].num_channels != unit_plan.num_channels:
            raise AutoDFPError(
                f'the plan was made for {unit_plan.num_channels} channels in {name}, this {type(module).__name__} '
                f'has {units[name].num_channels}'
            )
    return [(units[name], plan.units[name]) for name in units if name in plan.units]


def prune_unit(
    module: nn.Module, unit: PrunableUnit, plan: UnitPlan, reconstructor: 'Reconstructor | None', restore: Restore
) -> None:
    """Prune one unit in place; units must be pruned in forward order."""
    if plan.width == unit.num_channels:
        return
    producer = restore.remember(module.get_submodule(unit.name))
    keep = torch.tensor(plan.keep, device=producer.weight.device)
    reconstruction = None if reconstructor is None else reconstructor.reconstruct(unit, keep, plan.lam)
    for name in (unit.name, unit.norm, *unit.between):
        if name is not None:
            _keep_channels(restore.remember(module.get_submodule(name)), keep)
    for consumer in unit.consumers:
        layer = restore.remember(module.get_submodule(consumer.name))
        if reconstruction is None:
            columns = layer.weight.unflatten(1, (unit.num_channels, -1))[:, keep]
            replace_tensor(layer, 'weight', columns.flatten(1, 2))
        else:
            _hand_over(module, consumer, reconstruction, restore)
        _count_inputs(layer)


def _hand_over(module: nn.Module, consumer: Consumer, reconstruction: 'Reconstruction', restore: Restore) -> None:
    """Let a consumer read the retained channels in place of all."""
    layer = module.get_submodule(consumer.name)
    if reconstruction.constant is not None:
        _absorb_constant(module, consumer, reconstruction.constant, restore)
    weight = merge_input_channels(layer.weight, reconstruction.delivery)
    change = reconstruction.changes.get(consumer.name)
    if change is not None:
        weight = weight * change.gain.to(weight).view(-1, *[1] * (weight.ndim - 1))
        shift_outputs(module, consumer, change.shift, restore)
    replace_tensor(layer, 'weight', weight)


def _keep_channels(layer: nn.Module, keep: Tensor) -> None:
    """Slice the outputs of a conv, linear, depthwise conv or norm."""
    for store in (layer._parameters, layer._buffers):
        for name, tensor in store.items():
            if tensor is not None and tensor.ndim:  # num_batches_tracked has no channels
                replace_tensor(layer, name, tensor[keep])
    sizes = dict(num_features=len(keep), out_features=len(keep), out_channels=len(keep))
    if getattr(layer, 'groups', 1) > 1:  # depthwise: every channel is a group of its own
        sizes |= dict(groups=len(keep), in_channels=len(keep))
    set_sizes(layer, sizes)


def _absorb_constant(module: nn.Module, consumer: Consumer, constant: Tensor, restore: Restore) -> None:
    """Put what channels [N] of constant value contribute to a consumer into its norm's running mean or its bias."""
    layer = module.get_submodule(consumer.name)
    per_channel = layer.weight.flatten(1).unflatten(1, (len(constant), -1)).sum(-1)  # [M, N]
    shift_outputs(module, consumer, per_channel @ constant.to(per_channel), restore)


def shift_outputs(module: nn.Module, consumer: Consumer, shift: Tensor, restore: Restore) -> None:
    """Add ``shift`` [M] to a consumer's outputs, in its norm's running mean or its bias."""
    layer = restore.remember(module.get_submodule(consumer.name))
    shift = shift.to(layer.weight)
    if consumer.norm is not None:
        norm = restore.remember(module.get_submodule(consumer.norm))
        replace_tensor(norm, 'running_mean', norm.running_mean - shift)
    else:
        replace_tensor(layer, 'bias', shift if layer.bias is None else layer.bias + shift)


def _count_inputs(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        layer.in_features = layer.weight.shape[1]
    else:
        layer.in_channels = layer.weight.shape[1]


def replace_tensor(layer: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a new tensor in place of an old one, which stays untouched for :class:`Restore`."""
    # contiguous() would keep the strides of a merged 1x1 kernel, which torch reads as channels-last: the convolution
    # would answer in that layout, and mmcv's RoIAlign takes its input's memory for channels-first.
    tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    if name in layer._buffers:
        layer._buffers[name] = tensor
    else:
        old = layer._parameters.get(name)
        layer._parameters[name] = nn.Parameter(tensor, requires_grad=old is None or old.requires_grad)
