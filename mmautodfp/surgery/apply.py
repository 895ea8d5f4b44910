"""Pruning a live model in place, as a plan says."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, Consumer, find_groups, outputs_first, phases
from mmautodfp.kernels import merge_input_channels
from mmautodfp.utils import AutoDFPError

from .plan import GroupPlan, PruningPlan
from .restore import OUTPUT_SIZES, Restore, set_sizes

if TYPE_CHECKING:
    from mmautodfp.reconstruction import Reconstruction, Reconstructor


@torch.no_grad()
def apply_plan(
    module: nn.Module,
    plan: PruningPlan,
    reconstructor: 'Reconstructor | None' = None,
    final: bool = False,
    model: nn.Module | None = None,
    groups: Sequence[ChannelGroup] | None = None,
) -> Restore:
    """Prune a module in place. No layer is replaced; a consumer without bias may get one, as a new state-dict key.

    Args:
        module (nn.Module): The dense module that the plan's group names are relative to.
        plan (PruningPlan): What to keep.
        reconstructor (Reconstructor | None): Compensates for the pruned channels; it is fitted to the dense module if
            it has not been. Defaults to None: no compensation.
        final (bool): Do the full pass (:meth:`Reconstructor.finalize`) instead of the recalibration of an episode
            (:meth:`Reconstructor.recalibrate`). Defaults to False.
        model (nn.Module | None): The model that the module is part of, see :meth:`Reconstructor.ensure_fitted`.
            Defaults to None.
        groups (Sequence[ChannelGroup] | None): Groups of the module, in forward order. Defaults to None: those of
            :func:`.find_groups`.

    Returns:
        Restore: Call it to get the dense module back.

    Raises:
        AutoDFPError: The plan names a group that the module lacks or that has another width there. After any error the
            module is dense.
    """
    steps = _match(module, plan, groups)
    if reconstructor is not None:
        reconstructor.ensure_fitted(module, model, groups)
    restore = Restore()
    try:
        for group, group_plan in steps:
            prune_group(module, group, group_plan, reconstructor, restore)
        if reconstructor is not None:
            (reconstructor.finalize if final else reconstructor.recalibrate)(module, plan, restore)
    except BaseException:
        restore()
        raise
    return restore


def _match(
    module: nn.Module, plan: PruningPlan, groups: Sequence[ChannelGroup] | None
) -> list[tuple[ChannelGroup, GroupPlan]]:
    known = {group.name: group for group in (find_groups(module) if groups is None else groups)}
    for name, group_plan in plan.groups.items():
        if name not in known:
            found = f'{len(known)} groups, {next(iter(known))} the first' if known else 'no prunable group'
            raise AutoDFPError(f'the plan prunes {name!r}, but the {type(module).__name__} has {found}')
        if known[name].num_channels != group_plan.num_channels:
            raise AutoDFPError(
                f'the plan was made for {group_plan.num_channels} channels in {name}, this {type(module).__name__} '
                f'has {known[name].num_channels}'
            )
    return [(known[name], plan.groups[name]) for name in known if name in plan.groups]


def prune_group(
    module: nn.Module, group: ChannelGroup, plan: GroupPlan, reconstructor: 'Reconstructor | None', restore: Restore
) -> 'Reconstruction | None':
    """Prune one group in place; all groups of a plan must share one ``restore``. Returns what the consumers got."""
    if plan.width == group.num_channels:
        return None
    device = module.get_submodule(group.name).weight.device
    keep = torch.tensor(plan.keep, device=device)
    reconstruction = None if reconstructor is None else reconstructor.reconstruct(group, keep, plan.lam)
    channels = group.channels(keep)
    for producer in group.producers:
        layer = restore.remember(module.get_submodule(producer.name))
        _keep_outputs(layer, producer.offset, group.width, channels, restore)
    for name in (*group.norms, *group.between):
        layer = restore.remember(module.get_submodule(name))
        _keep_outputs(layer, 0, group.width, channels, restore)
        sizes = _between_sizes(layer)
        set_sizes(layer, {size: value * len(channels) // group.width for size, value in sizes.items()})
    for name in group.followers:
        set_sizes(restore.remember(module.get_submodule(name)), dict(out_channels=len(channels)))
    for consumer in group.consumers:
        _hand_over(module, group, consumer, channels, reconstruction, restore)
    return reconstruction


def _between_sizes(layer: nn.Module) -> dict[str, int]:
    """Sizes of a grouped convolution or GroupNorm that fall with its channels, as its groups are pruned whole."""
    if isinstance(layer, nn.GroupNorm):
        return dict(num_groups=layer.num_groups)
    return dict(groups=layer.groups, in_channels=layer.in_channels) if getattr(layer, 'groups', 1) > 1 else {}


def _hand_over(
    module: nn.Module,
    group: ChannelGroup,
    consumer: Consumer,
    channels: Tensor,
    reconstruction: 'Reconstruction | None',
    restore: Restore,
) -> None:
    """Make a consumer read the retained channels only."""
    layer = restore.remember(module.get_submodule(consumer.name))
    weight = outputs_first(layer)
    total = weight.shape[1]
    size = consumer.num_inputs or total
    columns = size // group.width  # inputs per channel: several in a linear layer behind a flattened map
    start = int((restore.places(layer, 1, total) < consumer.offset).sum())
    before, own, after = weight[:, :start], weight[:, start : start + size], weight[:, start + size :]
    if reconstruction is None:
        own = own.unflatten(1, (group.width, columns))[:, channels].flatten(1, 2)
    else:
        own = _merged(module, consumer, own, reconstruction.for_consumer(consumer.key), restore)
    weight = torch.cat([before, own, after], 1)
    replace_weight(layer, weight)
    set_sizes(layer, dict(in_features=weight.shape[1], in_channels=weight.shape[1]))
    steps = gone_channels(group.width, channels)[:, None] * columns + torch.arange(columns)
    restore.take_out(layer, 1, total, consumer.offset + steps.flatten())


def _merged(
    module: nn.Module, consumer: Consumer, weight: Tensor, reconstruction: 'Reconstruction', restore: Restore
) -> Tensor:
    """A consumer's weight [M, N * columns, ...], merged into the retained channels; constants shift its outputs."""
    layer = module.get_submodule(consumer.name)
    if reconstruction.constant is not None:
        constant = reconstruction.constant
        per_channel = weight.flatten(1).unflatten(1, (len(constant), -1)).sum(-1)  # [M, N]
        shift_outputs(module, consumer, per_channel / phases(layer) @ constant.to(per_channel), restore)
    merged = merge_input_channels(weight, reconstruction.delivery)
    change = reconstruction.change
    if change is not None:
        # Some of the consumer's own outputs may be pruned already.
        rows = restore.places(layer, 0, len(merged)).to(merged.device)
        merged = merged * change.gain[rows].to(merged).view(-1, *[1] * (merged.ndim - 1))
        shift_outputs(module, consumer, change.shift[rows], restore)
    return merged


def _keep_outputs(layer: nn.Module, offset: int, width: int, channels: Tensor, restore: Restore) -> None:
    """Keep ``channels`` of a group's ``width`` outputs of a layer, from ``offset`` on, and all outputs of others."""
    tensors = _own_outputs(layer)
    total = next(map(len, tensors.values()), offset + width)  # a norm may have no tensors
    stay = restore.take_out(layer, 0, total, offset + gone_channels(width, channels)).to(channels.device)
    for name, tensor in tensors.items():
        if name == 'weight':
            replace_weight(layer, tensor[stay])
        else:
            replace_tensor(layer, name, tensor[stay])
    set_sizes(layer, dict.fromkeys(OUTPUT_SIZES, len(stay)))


def gone_channels(width: int, channels: Tensor) -> Tensor:
    """Those of ``width`` channels that are not in ``channels``, ascending."""
    return torch.ones(width, dtype=torch.bool).index_fill(0, channels.cpu(), False).nonzero().flatten()


def _own_outputs(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's tensors with a row for each output; ``num_batches_tracked`` has none."""
    tensors = {**layer._parameters, **layer._buffers}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.ndim}
    return tensors | dict(weight=outputs_first(layer)) if 'weight' in tensors else tensors


def shift_outputs(module: nn.Module, consumer: Consumer, shift: Tensor, restore: Restore) -> None:
    """Add ``shift`` [M] to a consumer's outputs, by its norm's running mean or its bias.

    mmcv's DeformConv2d takes no bias. Without a norm its outputs miss the shift, and no layer behind it can make up for
    that: behind an activation, the shift is no constant.
    """
    layer = restore.remember(module.get_submodule(consumer.name))
    shift = shift.to(layer.weight)
    if consumer.norm is not None:
        norm = restore.remember(module.get_submodule(consumer.norm))
        replace_tensor(norm, 'running_mean', norm.running_mean - shift)
    elif hasattr(layer, 'bias'):
        replace_tensor(layer, 'bias', shift if layer.bias is None else layer.bias + shift)


def replace_weight(layer: nn.Module, weight: Tensor) -> None:
    """Replace a layer's weight with one laid out as that of :func:`mmautodfp.graph.outputs_first`."""
    replace_tensor(layer, 'weight', weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight)


def replace_tensor(layer: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer with a copy of ``tensor``; the old one stays untouched for :class:`Restore`."""
    # contiguous() would keep the strides of a merged 1x1 kernel, which torch takes for channels-last: the convolution's
    # outputs would have that layout, but mmcv's RoIAlign reads memory as channels-first.
    tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    if name in layer._buffers:
        layer._buffers[name] = tensor
    else:
        old = layer._parameters.get(name)
        like = layer.weight if old is None else old  # a new bias is frozen if the weight is
        layer._parameters[name] = nn.Parameter(tensor, like.requires_grad)
