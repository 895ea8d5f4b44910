"""Channel groups from the trace of a model."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from .groups import ChannelGroup, Consumer, GroupSurvey, Producer
from .tracing import Call, Trace

Places = dict[tuple[str, str], np.ndarray]  # (layer's path, 'in' or 'out') to the places [N, c] of N channels


def groups_of(trace: Trace) -> GroupSurvey:
    """The channel groups of a traced model; that they can be pruned is still to be proven (:func:`.prove_groups`).

    Args:
        trace (Trace): Of the model.

    Returns:
        GroupSurvey: Groups in forward order, and the other convolutions and linear layers, with the reason.
    """
    component = _components(trace)
    reasons: dict[int, str] = {}
    for numbers, reason in trace.fixed:
        for one in np.unique(component[numbers.numpy()]):
            reasons.setdefault(int(one), reason)
    groups, left = [], {}
    for members, places in _alike(trace, component):
        outputs = [path for path, side in places if side == 'out' and _is_producer(trace.layers[path])]
        if not outputs:
            continue
        reason = next((reasons[one] for one in members if one in reasons), None)
        found = reason or _describe(trace, places, component, members)
        if isinstance(found, ChannelGroup):
            groups.append(found)
        else:
            left |= {path: found for path in outputs if path not in left}
    order = {path: index for index, path in enumerate(trace.layers)}
    groups.sort(key=lambda group: order[group.name])
    for group in groups:
        for producer in group.producers:
            left.pop(producer.name, None)
    return GroupSurvey(groups, left)


def _components(trace: Trace) -> np.ndarray:
    """[count], for each number that of its component: channels of a component must be pruned together."""
    pairs = torch.cat([torch.zeros(2, 0, dtype=torch.long), *trace.together], 1).numpy()
    graph = coo_matrix((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(trace.count, trace.count))
    return connected_components(graph, directed=False)[1]


def _alike(trace: Trace, component: np.ndarray) -> Iterator[tuple[list[int], Places]]:
    """Yield lists of components that have equally many places in the same layers, with these places."""
    found: dict[int, dict[tuple[str, str], list[int]]] = defaultdict(lambda: defaultdict(list))
    for path, call in trace.layers.items():
        for side, numbers in (('out', call.outputs), ('in', call.inputs)):
            if numbers is not None:
                for place, one in enumerate(component[numbers.numpy()].tolist()):
                    found[one][path, side].append(place)
    alike: dict[tuple, list[int]] = defaultdict(list)
    for one, places in found.items():
        alike[tuple(sorted((key, len(rows)) for key, rows in places.items()))].append(one)
    for signature, ones in alike.items():
        yield ones, {key: np.array([found[one][key] for one in ones]) for key, _ in signature}


def _describe(trace: Trace, places: Places, component: np.ndarray, members: Sequence[int]) -> ChannelGroup | str:
    """The group of the channels at these places, or why there is none."""
    order = {path: index for index, path in enumerate(trace.layers)}
    keys = sorted(places, key=lambda key: order[key[0]])
    first = next(places[path, side] for path, side in keys if side == 'out' and _is_producer(trace.layers[path]))
    num_channels, block = first.shape
    turn = first[:, 0].argsort()  # forward order of the first producer's channels
    producers, consumers, between = [], [], []
    for path, side in keys:
        call, rows = trace.layers[path], places[path, side][turn]
        if side == 'in' and _is_producer(call):
            found = _read_as(rows, call, block)
            if isinstance(found, str):
                return found
            consumers += found
        elif rows.shape != first.shape or (rows.ravel() != rows[0, 0] + np.arange(rows.size)).any():
            return f'takes places of {path} in an order that is not known'
        elif side == 'out' and _is_producer(call):
            producers.append(Producer(path, call.norm, int(rows[0, 0])))
        elif rows.size != _width(call, side):
            return f'shares {path} with other channels'
        elif side == 'out':
            between.append(path)
    if not consumers:
        return 'feeds no layer that could make up for its channels'
    own_norms = [producer.norm for producer in producers]
    ones = set(members)
    return ChannelGroup(
        name=producers[0].name,
        num_channels=num_channels,
        norm=producers[0].norm,
        consumers=tuple(consumers),
        between=tuple(path for path in between if path not in own_norms),
        activation=None,
        others=tuple(producers[1:]),
        block=block,
        followers=tuple(
            path for path, numbers in trace.extractors if ones.issuperset(component[numbers.numpy()].tolist())
        ),
        offset=producers[0].offset,
    )


def _read_as(rows: np.ndarray, call: Call, block: int) -> list[Consumer] | str:
    """A layer as consumer of channels at places [N, c] of its inputs, once for each copy of them; or why it is none."""
    starts = _starts(rows, block)
    if starts is None or (len(starts) > 1 and isinstance(call.layer, nn.ConvTranspose2d)):
        return f'feeds {call.path} in an order that is not known'
    if not isinstance(call.layer, nn.Linear) and rows.shape[1] > len(starts) * block:
        return f'feeds {call.path} several channels for each, as pixel_unshuffle makes'
    size = None if len(starts) == 1 and rows.size == len(call.inputs) else rows.size // len(starts)
    return [Consumer(call.path, call.norm, offset, size) for offset in starts]


def _starts(rows: np.ndarray, block: int) -> list[int] | None:
    """Where channels at places [N, c] begin in a layer's inputs: once, or once per copy; None for an unknown order."""
    count, size = rows.shape
    steps = np.arange(count)[:, None]
    if size % block:
        return None
    if (rows == rows[0, 0] + steps * size + np.arange(size)).all():
        return [int(rows[0, 0])]
    starts = rows[0, ::block]
    expected = np.concatenate([start + steps * block + np.arange(block) for start in starts], 1)
    return starts.tolist() if (rows == expected).all() else None


def _is_producer(call: Call) -> bool:
    """Whether a layer mixes all its input channels; norms and grouped convolutions do not."""
    return call.inputs is not None and getattr(call.layer, 'groups', 1) == 1


def _width(call: Call, side: str) -> int:
    return len(call.outputs if side == 'out' or call.inputs is None else call.inputs)
