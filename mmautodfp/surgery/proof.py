"""Showing on the live model that a group of channels can be taken out."""

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
# Where a model that cannot do with float64 sorts on its way, rounding changes what comes out, but hardly each time.
TRIES = 3


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 with all of its bits on a GPU, where torch lets convolutions round their operands to TensorFloat-32."""
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
    seed: int = 0,
) -> dict[str, str]:
    """Take out random channels of each group, and compare with the dense model whose consumers read zeros instead.

    All groups are tried together first. If that fails, halves of them, until those that are to blame are found: on a
    copy in float64 if the model runs in it, as where a model sorts on its way, rounding alone can change what comes
    out. TensorFloat-32, whose rounding would look like a difference, is off meanwhile.

    Args:
        model (nn.Module): Dense, in eval mode; the same afterwards.
        groups (Sequence[ChannelGroup]): In forward order.
        run (Callable): Runs the model, or its copy, on a fixed input in the precision of its weights; the tensors that
            it gives are compared.
        path (str): Of the module in the model that the groups' names are relative to. Defaults to '', the model.
        seed (int): Of the channels. Defaults to 0.

    Returns:
        dict[str, str]: Names of the groups that must not be pruned, with the reason.
    """
    if not groups:
        return {}
    with full_float32():
        module = model.get_submodule(path)
        if _difference(module, groups, partial(run, model), seed) is None:
            return {}
        precise = _in_float64(model, run)
        if precise is None:
            return _to_blame(module, groups, partial(run, model), seed, TRIES)
        return _to_blame(precise.get_submodule(path), groups, partial(run, precise), seed, 1)


def _in_float64(model: nn.Module, run: Callable[[nn.Module], list[Tensor]]) -> nn.Module | None:
    """A copy of a model in float64; None if it cannot be copied, or does not run so.

    A function that was put in place of a forward runs the model that it was made for, in a copy too: what it gives is
    not in float64, and would be the same whatever is taken out of the copy.
    """
    try:
        precise = copy.deepcopy(model).double()
        outputs = run(precise)
    except Exception:  # a model's own code may end with anything
        return None
    return precise if any(output.dtype == torch.float64 for output in outputs) else None


def _to_blame(
    module: nn.Module, groups: Sequence[ChannelGroup], run: Callable[[], list[Tensor]], seed: int, tries: int
) -> dict[str, str]:
    """The groups that fail each of some tries, by name, with the reason."""
    reason = None
    for one in range(tries):
        reason = _difference(module, groups, run, seed + one)
        if reason is None:
            return {}
    if len(groups) == 1:
        return {groups[0].name: f'does not come out the same without it: {reason}'}
    half = len(groups) // 2
    failed = _to_blame(module, groups[:half], run, seed, tries) | _to_blame(module, groups[half:], run, seed, tries)
    if not failed:  # only together
        return {group.name: f'does not come out the same together with others: {reason}' for group in groups[half:]}
    left = [group for group in groups if group.name not in failed]
    return failed | (_to_blame(module, left, run, seed, tries) if left else {})


def _difference(
    module: nn.Module, groups: Sequence[ChannelGroup], run: Callable[[], list[Tensor]], seed: int
) -> str | None:
    """How the slim module's outputs differ from those of the dense one with zeros; None if they do not."""
    random = torch.Generator().manual_seed(seed)
    plans = []
    for group in groups:
        width = int(torch.randint(1, group.num_channels + 1, (), generator=random))
        if width == group.num_channels and width > 1:
            width -= 1  # one that loses nothing proves nothing
        keep = torch.randperm(group.num_channels, generator=random)[:width].sort().values
        plans.append(GroupPlan(tuple(keep.tolist()), group.num_channels))
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
        # By how much an output varies: most of it may be a bias, as of scores that start out low. What rounding does
        # goes with its size.
        scale, rounding = expected.std(correction=0), ROUNDING * expected.abs().amax()
        error = (expected - found).abs().amax()
        if not error <= TOLERANCE * scale + rounding:
            return f'an output that varies by {scale:.1e} differs by {error:.1e}'
    return None


def mask_group(module: nn.Module, group: ChannelGroup, plan: GroupPlan, restore: Restore) -> None:
    """Let the consumers of a dense module read zeros in place of the channels that a plan takes out."""
    gone = gone_channels(group.width, group.channels(torch.tensor(plan.keep)))
    for consumer in group.consumers:
        layer = restore.remember(module.get_submodule(consumer.name))
        weight = outputs_first(layer).clone()
        size = consumer.num_inputs or weight.shape[1]
        own = weight[:, consumer.offset : consumer.offset + size].unflatten(1, (group.width, -1))
        own[:, gone] = 0  # a view of the copy
        replace_weight(layer, weight)
