"""A proof on the live model that groups of channels can be pruned."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from mmautodfp.graph import ChannelGroup, outputs_first
from mmautodfp.utils import in_one_line

from .apply import gone_channels, prune_group, replace_weight
from .plan import GroupPlan
from .restore import Restore

TOLERANCE = 1e-4
ROUNDING = 1e-6
# How often a group must fail if the model does not run in float64: where it sorts, rounding alone may change outputs.
TRIES = 3


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute in full float32 on a GPU for the block; by default, convolutions may round operands to TensorFloat-32."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision('highest')
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@torch.no_grad()
def prove_groups(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    run: Callable[[nn.Module], list[Tensor]],
    path: str = '',
) -> dict[str, str]:
    """Prune random channels of each group, and compare with the dense model whose consumers read zeros instead.

    All groups are tried together first. If that fails, halves of them are tried until the failing groups are found,
    on a copy of the model in float64 if it runs in that: where a model sorts, rounding alone can change its outputs.
    TensorFloat-32 is off during the proof, as its rounding would look like a difference.

    Args:
        model (nn.Module): Dense, in eval mode; the same afterwards.
        groups (Sequence[ChannelGroup]): In forward order.
        run (Callable): Runs the model, or its copy, on a fixed input in the precision of its weights, and returns the
            tensors to compare.
        path (str): Path in the model of the module that the groups' names are relative to. Defaults to '': the model.

    Returns:
        dict[str, str]: Names of the groups that must not be pruned, with the reason.
    """
    if not groups:
        return {}
    with full_float32():
        module = model.get_submodule(path)
        if _difference(module, groups, partial(run, model)) is None:
            return {}
        precise = _in_float64(model, run)
        if precise is None:
            return _to_blame(module, groups, partial(run, model), TRIES)
        return _to_blame(precise.get_submodule(path), groups, partial(run, precise), 1)


def _in_float64(model: nn.Module, run: Callable[[nn.Module], list[Tensor]]) -> nn.Module | None:
    """A copy of a model in float64; None if it cannot be copied, or does not run in float64.

    If a forward was replaced with a function bound to the original model, the copy still calls the original there.
    Outputs are then not in float64 and do not depend on what is pruned in the copy, so the result is None as well.
    """
    try:
        precise = copy.deepcopy(model).double()
        outputs = run(precise)
    except Exception:  # a model's own code may end with anything
        return None
    return precise if any(output.dtype == torch.float64 for output in outputs) else None


def _to_blame(
    module: nn.Module, groups: Sequence[ChannelGroup], run: Callable[[], list[Tensor]], tries: int
) -> dict[str, str]:
    """Names of the groups that fail in each of so many tries, with the reason."""
    reason = None
    for seed in range(tries):
        reason = _difference(module, groups, run, seed)
        if reason is None:
            return {}
    if len(groups) == 1:
        return {groups[0].name: f'does not come out the same without it: {reason}'}
    half = len(groups) // 2
    failed = _to_blame(module, groups[:half], run, tries) | _to_blame(module, groups[half:], run, tries)
    if not failed:  # they fail only together
        return {group.name: f'does not come out the same together with others: {reason}' for group in groups[half:]}
    left = [group for group in groups if group.name not in failed]
    return failed | (_to_blame(module, left, run, tries) if left else {})


def _difference(
    module: nn.Module, groups: Sequence[ChannelGroup], run: Callable[[], list[Tensor]], seed: int = 0
) -> str | None:
    """How the outputs of the pruned module differ from those of the masked one; None if they do not."""
    random = torch.Generator().manual_seed(seed)
    drawn = [_subsets(group.num_channels, random) for group in groups]
    for subsets in zip(*drawn, strict=True):
        plans = [GroupPlan(keep, group.num_channels) for group, keep in zip(groups, subsets, strict=True)]
        reason = _difference_of(plans, module, groups, run)
        if reason is not None:
            return reason
    return None


def _subsets(size: int, random: torch.Generator) -> list[tuple[int, ...]]:
    """Three subsets of so many channels: most of them, and two halves that have none in common.

    Of few channels, all may be 0 and hide what the groups before them do wrong. And code that looks at single channels,
    such as the first or the strongest, goes wrong only where these are pruned.
    """
    order, half = torch.randperm(size, generator=random), size // 2
    subsets = (order[: max(15 * size // 16, 1)], order[:half], order[half:])
    return [tuple((order if len(subset) == 0 else subset).sort().values.tolist()) for subset in subsets]


def _difference_of(
    plans: Sequence[GroupPlan], module: nn.Module, groups: Sequence[ChannelGroup], run: Callable[[], list[Tensor]]
) -> str | None:
    """The same for plans of the groups."""
    try:
        with Restore() as restore:
            for group, plan in zip(groups, plans, strict=True):
                mask_group(module, group, plan, restore)
            masked = run()
        with Restore() as restore:
            for group, plan in zip(groups, plans, strict=True):
                prune_group(module, group, plan, None, restore)
            slim = run()
    except Exception as error:  # a model's own code may end with anything if a width is not as it expects
        return in_one_line(error)
    for expected, found in zip(masked, slim, strict=True):
        if expected.shape != found.shape:
            return f'an output of shape {tuple(expected.shape)} becomes {tuple(found.shape)}'
        if not expected.numel():
            continue
        # The tolerance is relative to how much an output varies, since its values may be mostly a bias, as those of
        # scores that start out low. Rounding errors are relative to the values.
        scale, rounding = expected.std(correction=0), ROUNDING * expected.abs().amax()
        error = (expected - found).abs().amax()
        if not error <= TOLERANCE * scale + rounding:
            return f'an output that varies by {scale:.1e} differs by {error:.1e}'
    return None


def mask_group(module: nn.Module, group: ChannelGroup, plan: GroupPlan, restore: Restore) -> None:
    """Zero the weights with which consumers of a dense module read the channels that a plan prunes."""
    gone = gone_channels(group.width, group.channels(torch.tensor(plan.keep)))
    for consumer in group.consumers:
        layer = restore.remember(module.get_submodule(consumer.name))
        weight = outputs_first(layer).clone()
        size = consumer.num_inputs or weight.shape[1]
        own = weight[:, consumer.offset : consumer.offset + size].unflatten(1, (group.width, -1))
        own[:, gone] = 0  # a view of the cloned weight
        replace_weight(layer, weight)
