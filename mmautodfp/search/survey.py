"""Which channels of a model, or of a part of it, can be pruned."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from mmautodfp.graph import (
    ChannelGroup,
    GroupSurvey,
    groups_of,
    layers_with_tied_weights,
    survey_groups,
    trace_channels,
)
from mmautodfp.surgery import prove_groups
from mmautodfp.utils import AutoDFPError

from .example import Run, outputs_within, run_small

NOT_RUN = 'is not run when the model predicts, and may miss channels if a training or another input runs it'
PRODUCING = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Survey:
    """What can be pruned of a model.

    Attributes:
        target (str): What was asked for; the parts of a list joined with commas.
        module (nn.Module): The module that the groups' paths start from.
        path (str): Its path in the model; '' for the model itself.
        parts (tuple[str, ...]): Paths in the module of what is pruned; '' for all of it.
        groups (list[ChannelGroup]): In forward order.
        left (list[str]): What cannot be pruned, a line for each reason.
    """

    target: str
    module: nn.Module
    path: str
    parts: tuple[str, ...]
    groups: list[ChannelGroup]
    left: list[str]


def survey_target(
    model: nn.Module, target: str | Sequence[str], example_input: Any = None, residual_streams: bool | None = None
) -> Survey:
    """Find the channel groups of a part of a model, of several parts, or of all of it.

    In a single part, finders look for blocks that they know by name. Where they find none, where what they say is not
    true of the part, and for all other targets, the model is run once and its channels are traced. All groups are
    proven on the live model, if it can be run.

    Args:
        model (nn.Module): In eval mode.
        target (str | Sequence[str]): Path of the part; 'model' or a list of parts for groups that go from one part to
            another too; '' for all of a model that finders know.
        example_input (Any): What a model that is no detector is called with, see :func:`.call_model`. Defaults to
            None: images.
        residual_streams (bool | None): Also prune what the blocks of a backbone (of any other model, its blocks) add
            up. Defaults to None: if the target is 'model' or a list.

    Raises:
        AutoDFPError: There is no such part, nothing to prune in it, the model cannot be run to find out, torch
            compiled or scripted it, or a weight or a norm's statistic is nan, infinite or without a value.
    """
    _require_sound(model)
    several = not isinstance(target, str)
    across = several or (target == 'model' and not hasattr(model, 'model'))  # groups go from part to part
    parts = tuple(target) if several else ('',)
    if not parts:
        raise AutoDFPError("a list of parts was to be pruned, but it is empty; name at least one, such as 'backbone'")
    path = '' if across else target
    module = find_module(model, path)
    for part in parts:
        find_module(module, part)
    streams = across if residual_streams is None else residual_streams
    known_by_name = not (across or streams)  # else there is more to prune than the inside of blocks
    known, wrong = survey_groups(module), {}
    if known_by_name:
        wrong = _disprove(model, path, known, example_input)
        known = GroupSurvey([group for group in known.groups if group.name not in wrong], known.left)
    found = known
    if wrong or not (known_by_name and known.groups):
        found = _traced(model, path, parts, known, example_input, streams)
        made = {producer.name for group in found.groups for producer in group.producers}
        found.left.update({name: why for name, why in wrong.items() if name not in made | found.left.keys()})
    if not found.groups:
        reasons = '; '.join(found.describe_left()) or _why_nothing(module)
        named = ', '.join(parts) if several else target
        raise AutoDFPError(f'there is nothing to prune in the {type(module).__name__} {named!r}, which has {reasons}')
    return Survey(','.join(parts) if several else target, module, path, parts, found.groups, found.describe_left())


def _why_nothing(module: nn.Module) -> str:
    """What a module has in place of layers that can be pruned, none of which was seen."""
    if not any(True for _ in module.children()):
        return 'no layers inside; name a part that has several'
    kinds = sorted({type(layer).__name__ for layer in module.modules() if isinstance(layer, PRODUCING)})
    has = f'{" and ".join(kinds)} layers, but ' if kinds else ''
    return f'{has}no two-dimensional convolution and no linear layer that is called when the model predicts'


def _require_sound(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, '_orig_mod'):
        raise AutoDFPError(
            f'a {type(model).__name__} was to be pruned, which torch.jit or torch.compile made of a model; prune that '
            'model, and make it anew'
        )
    # Of the buffers only the norms' statistics: a mask may be infinite.
    statistics = [(name, buffer) for name, buffer in model.named_buffers() if '.running_' in f'.{name}']
    for name, weight in (*model.named_parameters(), *statistics):
        if weight.is_meta:
            raise AutoDFPError(
                f'a {type(model).__name__} was to be pruned, but its {name} is on the meta device, where it has no '
                'values; load the weights first'
            )
        if not weight.isfinite().all():
            raise AutoDFPError(
                f'a {type(model).__name__} was to be pruned, but its {name} holds nan or infinite numbers; look for '
                'them in the checkpoint, or load one'
            )


def _disprove(model: nn.Module, path: str, known: GroupSurvey, example_input: Any) -> dict[str, str]:
    """The groups of a part that are not what finders say, by name, with the reason: classes of one name may differ.

    There are none if the model cannot be run to find out.
    """

    def look(run: Run) -> dict[str, str]:
        run_part = partial(outputs_within, path, run)
        if not run_part(model):
            kind = type(model.get_submodule(path)).__name__
            return {group.name: f'is in a {kind} that is not called itself' for group in known.groups}
        return prove_groups(model, known.groups, run_part, path)

    try:
        return run_small(model, example_input, look)
    except AutoDFPError:
        return {}


def _traced(
    model: nn.Module, path: str, parts: Sequence[str], known: GroupSurvey, example_input: Any, streams: bool
) -> GroupSurvey:
    """The groups of a module found by tracing; those of the finders (``known``) if the model cannot be run."""
    try:
        run, trace = run_small(model, example_input, lambda run: (run, trace_channels(model, partial(run, model))))
    except AutoDFPError as error:
        if known.groups:
            return GroupSurvey(known.groups, known.left | {'all but the blocks that finders know': str(error)})
        raise
    survey = groups_of(trace)
    prefix = f'{path}.' if path else ''
    by_name = {group.name: group for group in known.groups}
    tied = layers_with_tied_weights(model)
    left = survey.left | dict.fromkeys(trace.unrun, NOT_RUN)
    left = {name.removeprefix(prefix): why for name, why in left.items() if name.startswith(prefix)}
    inside = []
    for group in survey.groups:
        reason = _why_not(model, group, path, parts, trace.unrun, tied, streams)
        if reason is not None:
            own = (producer.name for producer in group.producers)
            left |= {name.removeprefix(prefix): reason for name in own if name.startswith(prefix)}
            continue
        group = _relative(group, prefix)
        same = by_name.get(group.name)
        if same is not None and set(same.layers) == set(group.layers):
            group = replace(group, activation=same.activation)  # which finders alone know
        inside.append(group)
    if not any(output.numel() for output in run(model)):  # as where a detector finds nothing
        run = partial(outputs_within, path, run)
        if inside and not any(output.numel() for output in run(model)):
            raise AutoDFPError(
                f'the {type(model).__name__} was to be run to see whether its outputs stay what they are, but it gives '
                'no floating-point number; give an example_input in which it finds something, and let it give scores '
                'where it gives the decision alone'
            )
    bad = prove_groups(model, inside, run, path)
    return GroupSurvey([group for group in inside if group.name not in bad], left | bad)


def _why_not(
    model: nn.Module,
    group: ChannelGroup,
    path: str,
    parts: Sequence[str],
    unrun: Sequence[str],
    tied: Collection[nn.Module],
    streams: bool,
) -> str | None:
    """Why a traced group cannot be pruned; None if it can."""
    prefix = f'{path}.' if path else ''
    layers = {name.removeprefix(prefix): model.get_submodule(name) for name in group.layers}
    for name, layer in layers.items():
        if layer in tied:
            return f'the weights of {name} are those of another layer too'
    for name, layer in layers.items():
        if isinstance(layer, PRODUCING) and 'weight' not in layer._parameters:
            return f'{name} makes its weight anew at each call, as weight_norm does'
    if not all(_within(name, (path,) if path else parts) for name in group.layers):
        return f'goes beyond {repr(path) if path else ", ".join(parts)}'
    if (part := _unseen_reader(group, unrun)) is not None:
        return f'may feed {part}, which was not run, so what it reads is not known'
    if not streams and _is_stream(model, group):
        return 'is added to or multiplied with other channels; residual_streams=True prunes such layers too'
    return None


def _within(name: str, parts: Sequence[str]) -> bool:
    return any(not part or name == part or name.startswith(f'{part}.') for part in parts)


def _unseen_reader(group: ChannelGroup, unrun: Sequence[str]) -> str | None:
    """A part of a second stage that was not run, but may read a group's channels: it stands beside their readers.

    It has the same input as they have. Outside of second stages, only what a training needs is not run.
    """
    for part in unrun:
        around = part.rpartition('.')[0] + '.'
        if part.startswith('roi_head.') and any(consumer.name.startswith(around) for consumer in group.consumers):
            inside = [name.removeprefix(around).partition('.')[0] for name in group.layers if name.startswith(around)]
            if len(inside) < len(group.layers) or len(set(inside)) > 1:
                return part
    return None


def _is_stream(model: nn.Module, group: ChannelGroup) -> bool:
    """Whether the channels are a sum of what several layers of the backbone (of the model, if it has none) give."""
    names = [producer.name for producer in group.producers]
    if hasattr(model, 'backbone'):
        names = [name for name in names if name.startswith('backbone.')]
    return len(names) > 1


def _relative(group: ChannelGroup, prefix: str) -> ChannelGroup:
    """The same group, its paths without a prefix."""
    cut = lambda name: None if name is None else name.removeprefix(prefix)
    cut_both = lambda layer: replace(layer, name=cut(layer.name), norm=cut(layer.norm))
    return replace(
        cut_both(group),
        consumers=tuple(map(cut_both, group.consumers)),
        between=tuple(map(cut, group.between)),
        others=tuple(map(cut_both, group.others)),
        followers=tuple(map(cut, group.followers)),
    )


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The submodule at a path; an :class:`AutoDFPError` names what is there if it is not."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        children = ', '.join(name for name, _ in model.named_children())
        raise AutoDFPError(
            f'module {path!r} was to be pruned, but the {type(model).__name__} has no such part; it has {children}'
        ) from None
