"""Latency of a model at given widths: its layers are measured at a few widths and interpolated in between."""

import hashlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmautodfp.graph import ChannelGroup, hook_handles, is_batch_norm, outputs_first
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_json, save_json
from mmautodfp.utils.timing import describe_machine, median_in_turns, wait_for_gpu

from .budgets import LatencyBudget
from .counts import Cost, Shares, group_roles, shares, size_of
from .widths import allowed_widths


def step_of(parts: Shares) -> int:
    """The step of a side (outputs or inputs): its size is a multiple of it at all widths."""
    return gcd(*(each for _, each in parts))


def fixed_part(parts: Shares) -> int:
    """The part of a side that belongs to no group, in steps."""
    return sum(each for group, each in parts if group is None) // step_of(parts)


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer whose size depends on a plan.

    Attributes:
        layer (nn.Module): Convolution, linear layer or batch norm.
        shape (tuple[int, ...]): Shape of its input in the dense model, [B, C, ...].
        outputs (Shares): What its outputs consist of.
        inputs (Shares): What its inputs consist of; ``[(None, 1)]`` if there are always as many as outputs.
    """

    layer: nn.Module
    shape: tuple[int, ...]
    outputs: Shares
    inputs: Shares

    @property
    def key(self) -> str:
        """A text that is the same for calls that take equally long at equal widths."""
        layer = self.layer
        words = [type(layer).__name__ if is_batch_norm(layer) else layer.extra_repr()]
        if isinstance(layer, nn.ConvTranspose2d):
            words.append('transposed')  # its extra_repr() does not say so
        words += [f'input {list(self.shape)}']
        words += [f'steps of {step_of(side)} from {fixed_part(side)}' for side in (self.outputs, self.inputs)]
        return ', '.join([*words, *map(str, _placement(layer))])

    def at(self, outputs: int, inputs: int) -> Callable[[], Any]:
        """A function that makes the call with so many steps of outputs and inputs, on random values."""
        layer, outputs = self.layer, outputs * step_of(self.outputs)
        inputs = outputs if _has_equal_sides(layer) else inputs * step_of(self.inputs)
        device, dtype = _placement(layer)
        if isinstance(layer, nn.Linear):
            shape = [*self.shape[:-1], inputs]
            new = nn.Linear(inputs, outputs, layer.bias is not None)
        else:
            shape = [self.shape[0], inputs, *self.shape[2:]]
            new = type(layer)(outputs) if is_batch_norm(layer) else _conv(layer, inputs, outputs)
        new = new.to(device=device, dtype=dtype)
        new.eval()
        values = torch.rand(shape, device=device, dtype=dtype)
        return lambda: new(values)


def _has_equal_sides(layer: nn.Module) -> bool:
    """Whether a layer has as many inputs as outputs at all widths: norms and grouped convolutions."""
    return is_batch_norm(layer) or getattr(layer, 'groups', 1) > 1


def _placement(layer: nn.Module) -> tuple[torch.device, torch.dtype]:
    tensor = next((t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()), torch.empty(0))
    return tensor.device, tensor.dtype


def _conv(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A new convolution with the settings of ``layer``, which may be grouped or transposed, and other widths."""
    groups = max(1, layer.groups * inputs // layer.in_channels) if layer.groups > 1 else 1
    transposed = isinstance(layer, nn.ConvTranspose2d)
    settings = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation, bias=layer.bias is not None)
    settings |= dict(output_padding=layer.output_padding) if transposed else {}
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    return kind(inputs, outputs, layer.kernel_size, groups=groups, **settings)


@dataclass
class LatencyTable:
    """Nanoseconds of a call, measured at a few widths.

    Attributes:
        outputs (list[int]): [P], numbers of outputs in steps, ascending, the dense one last.
        inputs (list[int]): [Q], numbers of inputs likewise.
        nanoseconds (list[list[int]]): [P, Q].
    """

    outputs: list[int]
    inputs: list[int]
    nanoseconds: list[list[int]]

    def scaled_to(self, dense: int) -> 'LatencyTable':
        """A copy, scaled so that :attr:`lookup` has ``dense`` nanoseconds at the dense widths."""
        factor = dense / max(1, max(max(row) for row in self.nanoseconds))
        scaled = [[round(value * factor) for value in row] for row in self.nanoseconds]
        return LatencyTable(self.outputs, self.inputs, scaled)

    @cached_property
    def lookup(self) -> np.ndarray:
        """Nanoseconds for all numbers of outputs and inputs in steps, [N + 1, M + 1], never falling as these grow.

        Below the smallest measured number, the nanoseconds are those at that number.
        """
        # No layer counts as faster than a narrower one, since a Cost must never fall.
        rising = np.maximum.accumulate(np.maximum.accumulate(np.array(self.nanoseconds, float), 0), 1)
        widths_out, widths_in = np.arange(self.outputs[-1] + 1), np.arange(self.inputs[-1] + 1)
        columns = np.stack([np.interp(widths_out, self.outputs, column) for column in rising.T], 1)
        return np.stack([np.interp(widths_in, self.inputs, row) for row in columns]).round().astype(np.int64)


@dataclass
class LatencyCost(Cost):
    """Nanoseconds as a function of the groups' widths: ``constant`` plus what the tables of all calls say.

    Attributes:
        dense (list[int]): [L], the groups' dense widths N.
        constant (int): Time of all that does not depend on a plan, or was not measured at several widths.
        terms (list[tuple[LatencyTable, Shares, Shares]]): For T calls, the table, and what outputs and inputs are.
    """

    dense: list[int]
    constant: int
    terms: list[tuple[LatencyTable, Shares, Shares]]

    @cached_property
    def _steps(self) -> np.ndarray:
        """[2, T, L + 1], for outputs and inputs of each call: steps per channel of each group, then the fixed steps."""
        found = np.zeros((2, len(self.terms), len(self.dense) + 1), np.int64)
        for place, (_, *sides) in enumerate(self.terms):
            for side, parts in enumerate(sides):
                for group, each in parts:
                    found[side, place, -1 if group is None else group] += each // step_of(parts)
        return found

    @cached_property
    def _lookups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The values of all tables in one array; where each table begins [T], and the length of its rows [T]."""
        tables = [table.lookup for table, _, _ in self.terms]
        ends = np.cumsum([table.size for table in tables], dtype=np.int64)
        columns = np.array([table.shape[1] for table in tables], np.int64)
        return np.concatenate([np.zeros(0, np.int64), *map(np.ravel, tables)]), np.append(0, ends)[:-1], columns

    def __call__(self, widths: Sequence[int]) -> int:
        """Nanoseconds at ``widths`` [L]."""
        outputs, inputs = self._steps @ [*widths, 1]
        values, begins, columns = self._lookups
        return self.constant + int(values[begins + outputs * columns + inputs].sum())


def measure_latency_costs(
    model: nn.Module,
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    run: Callable[[], Any],
    budget: LatencyBudget,
    channel_divisor: int = 1,
    cache: str | os.PathLike | None = None,
    parts: Sequence[nn.Module] | None = None,
) -> dict[str, LatencyCost]:
    """Measure the latency of a dense model, and of its layers at several widths, on the device where it is.

    Convs, linear layers and norms whose widths a plan changes are measured one by one at several widths, with random
    values. Each table is then scaled to the time that the call takes inside the dense model. The rest of the dense
    model's time, which is measured in the same rounds, counts as constant. What was measured before on the same kind of
    machine is read from the cache.

    Args:
        model (nn.Module): The whole model.
        module (nn.Module): What the groups' paths are relative to.
        groups (Sequence[ChannelGroup]): Its groups, L of them.
        run (Callable): Runs the model on one input.
        budget (LatencyBudget): Says how many widths are measured, and how often.
        channel_divisor (int): Measured widths are multiples of it or the full width. Defaults to 1.
        cache (str | os.PathLike | None): Folder of the cache. Defaults to None: ``mmautodfp/latency`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``.
        parts (Sequence[nn.Module] | None): Parts of the model that the scope 'module' covers. Defaults to None: the
            module.

    Returns:
        dict[str, LatencyCost]: By scope, 'module' and 'model'.

    Raises:
        AutoDFPError: ``run`` does not call the module itself, but at most layers of it.
    """
    calls = _record(module, groups, run)
    machine = describe_machine() | dict(points=budget.points, repeat=budget.repeat, channel_divisor=channel_divisor)
    path = Path(cache or _default_cache()) / f'{_digest(machine)}.json'
    known = _read(path, machine)
    tables, dense = {}, [group.num_channels for group in groups]
    for call in calls:
        if call.key not in tables:
            tables[call.key] = known['tables'].get(call.key) or _measure(call, dense, budget, channel_divisor)
    # Times in place are cached by the layers and their input shapes, as the values of weights do not change them.
    parts, paths = parts or [module], {layer: path for path, layer in module.named_modules()}
    name = _digest([repr(model), *map(repr, parts), [(paths[call.layer], call.key) for call in calls]])
    places = known['totals'].get(name) or time_in_place(parts, [call.layer for call in calls], run, budget.repeat)
    known['tables'] |= tables
    known['totals'][name] = places
    save_json(known, path)
    terms = [
        (LatencyTable(**tables[call.key]).scaled_to(own), call.outputs, call.inputs)
        for call, own in zip(calls, places['calls'], strict=True)
    ]
    rest = {scope: max(0, places[scope] - sum(places['calls'])) for scope in ('module', 'model')}
    return {scope: LatencyCost(dense, constant, terms) for scope, constant in rest.items()}


@torch.inference_mode()
def time_in_place(
    parts: Sequence[nn.Module], layers: Sequence[nn.Module], run: Callable[[], Any], repeat: int
) -> dict[str, Any]:
    """Measure how long calls of layers take inside a running model.

    Args:
        parts (Sequence[nn.Module]): Parts of the model, none inside another.
        layers (Sequence[nn.Module]): Layers of the C calls to measure, in the order of the calls.
        run (Callable): Runs the model.
        repeat (int): Measurements, of which the median is taken.

    Returns:
        dict[str, Any]: Nanoseconds: ``calls`` [C]; ``module``, of all calls of the parts; ``model``, of the whole run.
    """
    begun: dict[nn.Module, int] = {}
    spans: list[tuple[nn.Module, int]] = []

    def begin(layer: nn.Module, *_: Any) -> None:
        wait_for_gpu()
        begun[layer] = time.perf_counter_ns()

    def end(layer: nn.Module, *_: Any) -> None:
        wait_for_gpu()
        spans.append((layer, time.perf_counter_ns() - begun[layer]))

    known = set(layers)
    rounds = []
    with hook_handles() as handles:
        for layer in {*parts, *known}:
            handles += [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
        for _ in range(repeat + 3):
            spans.clear()
            start = time.perf_counter_ns()
            run()
            wait_for_gpu()
            whole = time.perf_counter_ns() - start
            own = [span for layer, span in spans if layer in known]
            rounds.append([sum(span for layer, span in spans if layer in parts), whole, *own])
    middle = [round(statistics.median(values)) for values in zip(*rounds[3:], strict=True)]  # the first are slower
    return dict(module=middle[0], model=middle[1], calls=middle[2:])


@torch.inference_mode()
def _record(module: nn.Module, groups: Sequence[ChannelGroup], run: Callable[[], Any]) -> list[LayerCall]:
    """Run a model and list the calls of layers whose sizes depend on a plan, in order."""
    roles, calls, seen = group_roles(module, groups), [], set()
    dense = [group.num_channels for group in groups]

    def record(layer: nn.Module, args: tuple, _: Any) -> None:
        seen.add(layer)
        if layer in roles:
            role, weight = roles[layer], layer.running_mean if is_batch_norm(layer) else outputs_first(layer)
            outputs = shares(len(weight), role.outputs, dense)
            inputs = [(None, 1)] if _has_equal_sides(layer) else shares(weight.shape[1], role.inputs, dense)
            calls.append(LayerCall(layer, tuple(args[0].shape), outputs, inputs))

    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    measurable = [layer for layer in roles if isinstance(layer, kinds) or is_batch_norm(layer)]
    with hook_handles() as handles:
        handles += [layer.register_forward_hook(record) for layer in {*measurable, module}]
        run()
    if module not in seen:
        raise AutoDFPError(
            f'a latency budget was asked for, but the {type(module).__name__} to prune is not called itself, so its '
            'time cannot be taken; use a FlopBudget'
        )
    return calls


def _measure(call: LayerCall, dense: Sequence[int], budget: LatencyBudget, divisor: int) -> dict[str, Any]:
    outputs, inputs = (_points(side, dense, budget.points, divisor) for side in (call.outputs, call.inputs))
    seconds = median_in_turns({(i, j): call.at(i, j) for i in outputs for j in inputs}, budget.repeat)
    nanoseconds = [[round(1e9 * seconds[i, j]) for j in inputs] for i in outputs]
    return dict(outputs=outputs, inputs=inputs, nanoseconds=nanoseconds)


def _points(parts: Shares, dense: Sequence[int], count: int, divisor: int) -> list[int]:
    """Up to ``count`` allowed sizes of a side in steps, evenly spread from the least to the dense one."""
    least, most = fixed_part(parts), size_of(parts, dense) // step_of(parts)
    allowed = allowed_widths(most, divisor // gcd(divisor, step_of(parts)))
    allowed = [width for width in allowed if width > least] or [most]
    return sorted({allowed[round(place)] for place in np.linspace(0, len(allowed) - 1, count)})


def _read(path: Path, machine: dict[str, Any]) -> dict[str, Any]:
    if path.is_file():
        try:
            known = load_json(path, 'the table of latencies')
            if known['machine'] == machine and isinstance(known['tables'], dict) and isinstance(known['totals'], dict):
                return known
        except (AutoDFPError, KeyError, TypeError):
            pass  # a damaged cache is measured again and overwritten
    return dict(machine=machine, tables={}, totals={})


def _default_cache() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmautodfp' / 'latency'


def _digest(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]
