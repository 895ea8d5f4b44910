"""Following channels through a model while it runs, whatever its classes are called.

Every element of every tensor carries the number of the channel that it belongs to. A layer gives its outputs new
numbers and notes which ones it reads; what only moves elements moves their numbers; where elements are added or
multiplied, their channels must go together. Torch-Pruning's dependency graph finds much the same from the graph of
autograd, one index at a time, but ends at layers that autograd does not know, such as RoIAlign.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from .forward import flat_tensors
from .units import is_batch_norm

# Names of layers as torch, mmcv and mmdet call them. Other subclasses may compute their weights from all channels.
CONVS = ('Conv2d', 'Conv2dAdaptivePadding')
DEFORMABLE = ('DeformConv2d', 'DeformConv2dPack', 'ModulatedDeformConv2d', 'ModulatedDeformConv2dPack')


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNARY = _words("""
    hardswish hardtanh leaky_relu elu silu mish hardsigmoid softplus celu selu gelu prelu _prelu_kernel
    log_sigmoid_forward _to_copy clone detach alias lift_fresh native_dropout
""")
#: One element in, one element out; most other such operations tell it with a tag.
POINTWISE = _UNARY | {f'{word}_' for word in _UNARY}
#: Only move elements, or copy them.
MOVES = _words("""
    permute transpose t expand slice select unsqueeze squeeze cat stack split split_with_sizes unbind index
    index_select flip roll repeat pixel_shuffle pixel_unshuffle unfold index_put_ index_put copy_ narrow chunk
""")
PICKS = _words('index index_select')
VIEWS = _words('view _unsafe_view reshape _reshape_alias')
#: Mix the positions of a channel, and nothing else.
SPATIAL = _words("""
    max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d
    _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d constant_pad_nd reflection_pad2d
    replication_pad2d roi_align
""")
REDUCTIONS = _words('mean sum amax amin max min linalg_vector_norm norm var std prod')
#: Along an axis too, but of the same shape as what they are given.
SCANS = _words('_softmax _log_softmax cummax cummin cumsum cumprod')
IGNORED = _words('new_zeros new_ones new_full new_empty zeros_like ones_like empty_like full_like rand_like')


@dataclass
class Call:
    """A layer that was called, for the first time or again.

    Attributes:
        path (str): Of the layer.
        layer (nn.Module): It.
        outputs (Tensor): [M], numbers of its output channels.
        inputs (Tensor | None): [C], of its inputs; None where these are the outputs (norms).
        norm (str | None): Path of the BatchNorm that reads its outputs and is the only one to do so.
    """

    path: str
    layer: nn.Module
    outputs: Tensor
    inputs: Tensor | None
    norm: str | None = None


@dataclass
class Trace:
    """What was found out in one forward pass.

    Attributes:
        layers (dict[str, Call]): By path, in the order in which they were called first.
        count (int): Numbers given.
        together (list[Tensor]): [2, n] each, pairs of channels that must go together.
        fixed (list[tuple[Tensor, str]]): Channels that must stay, and why.
        extractors (list[tuple[str, Tensor]]): Parts whose ``out_channels`` says how many channels they give, with
            the numbers of these.
    """

    layers: dict[str, Call] = field(default_factory=dict)
    count: int = 0
    together: list[Tensor] = field(default_factory=list)
    fixed: list[tuple[Tensor, str]] = field(default_factory=list)
    extractors: list[tuple[str, Tensor]] = field(default_factory=list)


@torch.no_grad()
def trace_channels(model: nn.Module, run: Callable[[], Any]) -> Trace:
    """Run a model once and follow its channels.

    Args:
        model (nn.Module): In eval mode.
        run (Callable): Runs it on a small input and returns its outputs, whose channels stay.
    """
    tracer = _Tracer(model)
    try:
        with tracer:
            said = run()
    finally:
        tracer.close()
    for tensor in flat_tensors(said):
        tracer.fix(tensor, 'gives an output of the model')
    tracer.find_norms()
    return tracer.trace


class _Tracer(TorchDispatchMode):
    """Numbers of the elements of all tensors, -1 for those of no channel."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.trace = Trace()
        self.numbers: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # by identity; the tensor is held, or it would be given anew
        self.reads: Counter[int] = Counter()
        self.inside = 0  # how many layers deep
        self.calls: dict[str, list[tuple[int, int]]] = {}  # identities of inputs and outputs
        self.handles = []
        for path, layer in model.named_modules():
            if _is_layer(layer):
                self.handles.append(layer.register_forward_pre_hook(self._enter))
                self.handles.append(layer.register_forward_hook(self._leave_with(path)))
            elif type(layer).__name__ == 'SingleRoIExtractor':
                self.handles.append(layer.register_forward_pre_hook(self._enter))
                self.handles.append(layer.register_forward_hook(self._extracted(path)))
            elif type(layer).__name__ == 'RoIAlign':  # mmcv's, which is no operation that torch sees
                self.handles.append(layer.register_forward_pre_hook(self._enter))
                self.handles.append(layer.register_forward_hook(self._aligned))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    # What layers do.

    def _enter(self, *_: Any) -> None:
        self.inside += 1

    def _leave_with(self, path: str) -> Callable:
        def leave(layer: nn.Module, args: tuple, output: Tensor) -> None:
            self.inside -= 1
            x = args[0]
            self.reads[id(x)] += 1
            self.calls.setdefault(path, []).append((id(x), id(output)))
            axis = -1 if isinstance(layer, nn.Linear) else 1
            call = self.trace.layers.get(path)
            if call is None:
                call = self.trace.layers[path] = self._new_call(path, layer, x.shape[axis], output.shape[axis])
            self._read(call, x, axis)
            self._set(output, _along(call.outputs, output, axis))

        return leave

    def _new_call(self, path: str, layer: nn.Module, inputs: int, outputs: int) -> Call:
        call = Call(path, layer, self._new(outputs), None if _is_norm(layer) else self._new(inputs))
        groups = getattr(layer, 'num_groups', getattr(layer, 'groups', 1))
        if groups > 1:  # channels of a group go together, with what it gives
            sides = [call.outputs] if call.inputs is None else [call.outputs, call.inputs]
            for members in torch.cat([side.view(groups, -1) for side in sides], 1):
                self._join(members[:1].expand(len(members) - 1), members[1:])
        if getattr(layer, 'deform_groups', 1) > 1:
            self.trace.fixed.append((call.inputs, f'feeds {path}, which shares its samples out among channels'))
        return call

    def _read(self, call: Call, x: Tensor, axis: int) -> None:
        """Note which channels a layer reads."""
        numbers = self.numbers_of(x)
        if numbers is None:
            return
        moved = numbers.movedim(axis, 0).flatten(1)
        read = moved[:, 0]
        if not (moved == read[:, None]).all():
            self.fix(x, f'feeds {call.path}, which does not read channel by channel')
            return
        known = read >= 0
        own = call.outputs if call.inputs is None else call.inputs
        self._join(own[known], read[known])
        if not known.all():
            self.trace.fixed.append((read[known], f'feeds {call.path} together with what is no channel'))

    def _aligned(self, _: nn.Module, args: tuple, output: Tensor) -> None:
        self.inside -= 1
        self.reads[id(args[0])] += 1
        self._keep_channels(args[0], output, 'a RoIAlign')

    def _extracted(self, path: str) -> Callable:
        """Regions are cut from whichever level suits them, so the levels' channels go together."""

        def leave(_: nn.Module, args: tuple, output: Tensor) -> None:
            self.inside -= 1
            levels = [self.numbers_of(level) for level in args[0]]
            if any(numbers is None for numbers in levels):
                for level in args[0]:
                    self.fix(level, f'feeds {path} together with what is no channel')
                return
            self._keep_channels(args[0][0], output, path)
            first = self.numbers_of(output)
            for level, numbers in zip(args[0], levels, strict=True):
                self.reads[id(level)] += 1
                self._join(first[0, :, 0, 0], numbers[0, :, 0, 0])
            self.trace.extractors.append((path, first[0, :, 0, 0]))

        return leave

    def find_norms(self) -> None:
        """Which layers have a BatchNorm of their own right behind them."""
        gave = {output: path for path, calls in self.calls.items() for _, output in calls}
        for path, calls in self.calls.items():
            if not is_batch_norm(self.trace.layers[path].layer):
                continue
            before = {gave.get(x) for x, _ in calls}
            (source,) = before if len(before) == 1 else (None,)
            call = self.trace.layers.get(source)
            if call is None or _is_norm(call.layer) or len(self.calls[source]) != len(calls):
                continue
            if all(self.reads[output] == 1 for _, output in self.calls[source]):
                call.norm = path

    # What operations do.

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            self._follow(func, args, kwargs or {}, result)
        return result

    def _follow(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        given = [x for x in _tensors((args, tuple(kwargs.values()))) if id(x) in self.numbers]
        name = func.overloadpacket.__name__
        if not given or name in IGNORED:
            return
        for x in given:
            self.reads[id(x)] += 1
        if name in VIEWS:
            self._set(result, self.numbers_of(args[0]).reshape(result.shape))
        elif name in MOVES:
            self._move(func, args, kwargs, result)
        elif name in SPATIAL:
            self._keep_channels(args[0], result[0] if isinstance(result, tuple) else result, name)
        elif name in REDUCTIONS or name in SCANS:
            self._reduce(args[0], args[1] if len(args) > 1 else kwargs.get('dim'), result, name)
        elif name in POINTWISE or torch.Tag.pointwise in func.tags:
            self._combine(list(_tensors((args, tuple(kwargs.values())))), result, name)
        else:
            for x in given:
                self.fix(x, f'feeds {name}, through which its channels cannot be followed')

    def _move(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """The same operation on the numbers."""

        def numbers(value: Any) -> Any:
            if isinstance(value, list | tuple):
                # Indices hold no channels; of maps that are put together, some may have none.
                mixed = any(isinstance(x, Tensor) and id(x) in self.numbers for x in value)
                return type(value)(self._or_none(x) if mixed and isinstance(x, Tensor) else numbers(x) for x in value)
            if isinstance(value, Tensor) and id(value) in self.numbers:
                return self.numbers_of(value)
            return value

        name = func.overloadpacket.__name__
        if name.endswith('_') or name == 'index_put':
            target = self._or_none(args[0]).clone()
            source = self._or_none(args[-1]) if name == 'copy_' else self._or_none(args[2])
            moved = target.copy_(source.expand_as(target)) if name == 'copy_' else func(target, args[1], source)
            self._set(result, moved)
            return
        if name in PICKS:  # where to look may come from channels too, as which boxes to keep does
            if id(args[0]) in self.numbers and not result.numel():
                self.fix(args[0], f'is picked at places by {name}, none of which was chosen')
            elif id(args[0]) in self.numbers:
                self._set(result, func(self.numbers_of(args[0]), *args[1:], **kwargs))
            return
        moved = func(*numbers(args), **{key: numbers(value) for key, value in kwargs.items()})
        if isinstance(result, Tensor):
            self._set(result, moved)
        else:
            for part, own in zip(result, moved, strict=True):
                self._set(part, own)

    def _or_none(self, x: Tensor) -> Tensor:
        numbers = self.numbers_of(x)
        return torch.full((), -1).expand(x.shape) if numbers is None else numbers

    def _keep_channels(self, x: Tensor, result: Tensor, name: str) -> None:
        """Of an operation that keeps the first two axes, or gives rows for places in images."""
        numbers = self.numbers_of(x)
        if numbers is None:
            return
        first = numbers[:1, :, :1, :1] if numbers.ndim == 4 else None
        if first is None or result.ndim != 4 or not (numbers == first).all():
            self.fix(x, f'feeds {name}, which does not read channel by channel')
        else:
            self._set(result, first.expand(result.shape))

    def _reduce(self, x: Tensor, dims: Any, result: Any, name: str) -> None:
        numbers = self.numbers_of(x)
        dims = [dims] if isinstance(dims, int) else list(dims or range(x.ndim))
        for dim in dims:
            if not (numbers == numbers.narrow(dim, 0, 1)).all():
                self.fix(x, f'feeds {name}, which mixes its channels')
                return
        for part in [result] if isinstance(result, Tensor) else result:
            kept = numbers
            if name not in SCANS:
                for dim in dims:
                    kept = kept.narrow(dim, 0, 1)
            if kept.numel() == part.numel():
                self._set(part, kept.reshape(part.shape))
            else:
                self._set(part, numbers.expand(part.shape))

    def _combine(self, parts: list[Tensor], result: Any, name: str) -> None:
        """Elements that meet go together."""
        result = result[0] if isinstance(result, tuple) else result
        known = [(x, self.numbers_of(x)) for x in parts if id(x) in self.numbers]
        try:
            aligned = [_shrunk(torch.broadcast_to(numbers, result.shape)) for _, numbers in known]
        except RuntimeError:
            for x, _ in known:
                self.fix(x, f'feeds {name}, through which its channels cannot be followed')
            return
        merged = aligned[0]
        for other in aligned[1:]:
            both = torch.broadcast_tensors(merged, other)
            met = (both[0] >= 0) & (both[1] >= 0) & (both[0] != both[1])
            if met.any():
                self._join(*torch.unique(torch.stack([both[0][met], both[1][met]]), dim=1))
            merged = torch.maximum(*both)
        for x in parts:
            if id(x) in self.numbers or not x.ndim:
                continue
            for back in range(1, x.ndim + 1):
                varies = back <= merged.ndim and (merged != merged.narrow(-back, 0, 1)).any()
                if x.shape[-back] > 1 and varies:
                    self.trace.fixed.append((merged[merged >= 0], f'meets a tensor of fixed size in {name}'))
                    break
        self._set(result, torch.broadcast_to(merged, result.shape))

    # Numbers.

    def _new(self, count: int) -> Tensor:
        self.trace.count += count
        return torch.arange(self.trace.count - count, self.trace.count)

    def numbers_of(self, x: Tensor) -> Tensor | None:
        """Of the elements of a tensor; None if none is of a channel."""
        found = self.numbers.get(id(x))
        return None if found is None else found[1]

    def _set(self, x: Tensor, numbers: Tensor) -> None:
        self.numbers[id(x)] = (x, numbers)

    def _join(self, first: Tensor, second: Tensor) -> None:
        self.trace.together.append(torch.stack([first, second]))

    def fix(self, x: Tensor, reason: str) -> None:
        """Let all channels of a tensor stay."""
        numbers = self.numbers_of(x)
        if numbers is not None:
            numbers = _shrunk(numbers)
            self.trace.fixed.append((numbers[numbers >= 0].unique(), reason))


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for item in value for x in _tensors(item)] if isinstance(value, list | tuple) else []


def _along(numbers: Tensor, x: Tensor, axis: int) -> Tensor:
    """[M] for each element of a tensor whose channels lie on an axis; it takes no memory."""
    shape = [1] * x.ndim
    shape[axis] = len(numbers)
    return numbers.view(shape).expand(x.shape)


def _shrunk(numbers: Tensor) -> Tensor:
    """The same numbers without those that are only repeated in memory."""
    for axis, stride in enumerate(numbers.stride()):
        if stride == 0 and numbers.shape[axis] > 1:
            numbers = numbers.narrow(axis, 0, 1)
    return numbers


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.GroupNorm) or is_batch_norm(layer) or isinstance(layer, _BatchNorm)


def _is_layer(layer: nn.Module) -> bool:
    """Whether a module is a layer whose channels can be told; of the others, operations are followed."""
    kind = type(layer).__name__
    if isinstance(layer, nn.Conv2d):
        return kind in CONVS
    if isinstance(layer, nn.ConvTranspose2d):
        return kind == 'ConvTranspose2d' and layer.groups == 1
    if kind in DEFORMABLE:
        return layer.groups == 1
    return _is_norm(layer) or (isinstance(layer, nn.Linear) and kind == 'Linear')
