"""Channel numbers of the elements of tensors, followed through torch's operations.

An operation that moves elements moves their numbers. If elements are added or multiplied, their channels must be pruned
together. The channels that go into an unknown operation cannot be pruned.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNARY = _words("""
    hardswish hardtanh leaky_relu elu silu mish hardsigmoid softplus celu selu gelu prelu _prelu_kernel
    log_sigmoid_forward _to_copy clone detach alias lift_fresh native_dropout
""")
#: Elementwise operations that lack torch's tag ``pointwise``; most others have it.
POINTWISE = _UNARY | {f'{word}_' for word in _UNARY}
#: Operations that only move or copy elements.
MOVES = _words("""
    permute transpose t expand slice select unsqueeze squeeze cat stack split split_with_sizes unbind flip roll repeat
    pixel_shuffle pixel_unshuffle unfold narrow chunk
""")
PICKS = _words('index index_select')
WRITES = _words('index_put index_put_ copy_')
VIEWS = _words('view _unsafe_view reshape _reshape_alias')
#: Operations that mix positions within each channel, and nothing else.
SPATIAL = _words("""
    max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d
    _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d constant_pad_nd reflection_pad2d
    replication_pad2d roi_align
""")
REDUCTIONS = _words('mean sum amax amin max min linalg_vector_norm norm var std prod')
#: Along an axis, like reductions, but with outputs of the input's shape.
SCANS = _words('_softmax _log_softmax cummax cummin cumsum cumprod')
IGNORED = _words('new_zeros new_ones new_full new_empty zeros_like ones_like empty_like full_like rand_like')


class Numbers:
    """The channel numbers of all tensors' elements; -1 for elements of no channel.

    Attributes:
        count (int): How many numbers have been given out.
        together (list[Tensor]): [2, n] each, pairs of channels that must be pruned together.
        fixed (list[tuple[Tensor, str]]): Channels that cannot be pruned, and why.
        reads (Counter[int]): How often each tensor was read, by its ``id``.
    """

    def __init__(self):
        self.count = 0
        self.together: list[Tensor] = []
        self.fixed: list[tuple[Tensor, str]] = []
        self.reads: Counter[int] = Counter()
        # Tensors are kept, since the id of a freed one can be given to another one.
        self._read: list[Tensor] = []
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def __contains__(self, x: Tensor) -> bool:
        return id(x) in self._known

    def of(self, x: Tensor) -> Tensor | None:
        """The numbers of a tensor's elements, in its shape; None if no element belongs to a channel."""
        found = self._known.get(id(x))
        return None if found is None else found[1]

    def set(self, x: Tensor, numbers: Tensor) -> None:
        """Set the numbers of a tensor's elements."""
        self._known[id(x)] = (x, numbers)

    def read(self, x: Tensor) -> None:
        """Count that a tensor is read."""
        self.reads[id(x)] += 1
        self._read.append(x)

    def new(self, count: int) -> Tensor:
        """New numbers, [count]."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def join(self, first: Tensor, second: Tensor) -> None:
        """Note that channels [n] must be pruned together with other ones [n], pair by pair."""
        self.together.append(torch.stack([first, second]))

    def fix(self, x: Tensor, reason: str) -> None:
        """Note that the channels of a tensor cannot be pruned."""
        numbers = self.of(x)
        if numbers is not None:
            numbers = shrunk(numbers)
            self.fixed.append((numbers[numbers >= 0].unique(), reason))

    def keep_channels(self, x: Tensor, result: Tensor, name: str) -> None:
        """Number the result of an operation that keeps the channels on axis 1, such as a pooling or RoIAlign."""
        numbers = self.of(x)
        if numbers is None:
            return
        first = numbers[:1, :, :1, :1] if numbers.ndim == 4 else None
        if first is None or result.ndim != 4 or not (shrunk(numbers) == first).all():
            self.fix(x, f'feeds {name}, which does not read channel by channel')
        else:
            self.set(result, first.expand(result.shape))

    def follow(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Number the result of an operation, and note which channels must be pruned together, and which cannot be.

        Args:
            func (Any): The operation, as torch's dispatcher gives it.
            args (tuple): Its positional arguments.
            kwargs (dict): Its keyword arguments.
            result (Any): Its result.
        """
        tensors = tensors_in((args, tuple(kwargs.values())))
        given = [x for x in tensors if x in self]
        name = func.overloadpacket.__name__
        if not given or name in IGNORED:
            return
        for x in given:
            self.read(x)
        if name in VIEWS:
            self.set(result, _reshaped(self.of(args[0]), result.shape))
        elif name in MOVES:
            self._move(func, args, kwargs, result)
        elif name in PICKS:
            self._pick(func, args, kwargs, result)
        elif name in WRITES:
            self._write(func, args, kwargs, result)
        elif name == 'as_strided_' and result.shape[2:].numel() == 1 and result.shape == self.of(args[0]).shape:
            self.set(result, self.of(args[0]))  # a global average pooling, made channels-last
        elif name in SPATIAL:
            for part in tensors_in(result):  # max pooling also gives indices
                self.keep_channels(args[0], part, name)
        elif name in REDUCTIONS or name in SCANS:
            self._reduce(args[0], _argument('dim', func, args, kwargs), result, name)
        elif name in POINTWISE or torch.Tag.pointwise in func.tags:
            self._combine(tensors, result, name)
        else:
            for x in given:
                self.fix(x, f'feeds {name}, through which its channels cannot be followed')

    def _move(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Number the result by the same operation on the numbers."""

        def numbers(value: Any) -> Any:
            if isinstance(value, list | tuple):
                # A list of indices has no numbers; in a list of feature maps to concatenate, some may have none.
                mixed = any(isinstance(x, Tensor) and x in self for x in value)
                return type(value)(self._or_none(x) if mixed and isinstance(x, Tensor) else numbers(x) for x in value)
            if isinstance(value, Tensor) and value in self:
                return self.of(value)
            return value

        moved = func(*numbers(args), **{key: numbers(value) for key, value in kwargs.items()})
        for part, own in zip(tensors_in(result), tensors_in(moved), strict=True):
            self.set(part, own)

    def _pick(self, func: Any, args: tuple, kwargs: dict, result: Tensor) -> None:
        """Number picked elements; numbers of the indices, which say for example what boxes to keep, do not matter."""
        if args[0] not in self:
            return
        if result.numel():
            self.set(result, func(self.of(args[0]), *args[1:], **kwargs))
        else:
            self.fix(args[0], f'is picked at places by {func.overloadpacket.__name__}, none of which was chosen')

    def _write(self, func: Any, args: tuple, kwargs: dict, result: Tensor) -> None:
        """Number a tensor after elements of another one have replaced some of its own, or were added to them."""
        target = self._or_none(args[0]).clone()
        if func.overloadpacket.__name__ == 'copy_':
            self.set(result, target.copy_(self._or_none(args[1]).expand_as(target)))
            return
        given = self._or_none(args[2])
        written = func(target.clone(), args[1], given)
        if args[3] if len(args) > 3 else kwargs.get('accumulate'):
            written = torch.where(target >= 0, target, written)
            self._meet(torch.ops.aten.index(written, args[1]), given)
        self.set(result, written)

    def _or_none(self, x: Tensor) -> Tensor:
        numbers = self.of(x)
        return torch.full((), -1).expand(x.shape) if numbers is None else numbers

    def _reduce(self, x: Tensor, dims: Any, result: Any, name: str) -> None:
        numbers = self.of(x)
        if not numbers.numel():
            return
        dims = [dims] if isinstance(dims, int) else list(dims or range(x.ndim))
        few = shrunk(numbers)
        for dim in dims:
            if not (few == few.narrow(dim, 0, 1)).all():
                self.fix(x, f'feeds {name}, which mixes its channels')
                return
        if name not in SCANS:
            for dim in dims:
                numbers = numbers.narrow(dim, 0, 1)
        for part in tensors_in(result):
            self.set(part, numbers.reshape(part.shape))

    def _combine(self, parts: list[Tensor], result: Any, name: str) -> None:
        """Number an elementwise result; channels whose elements meet must be pruned together."""
        result = result[0] if isinstance(result, tuple) else result
        known = [(x, self.of(x)) for x in parts if x in self]
        try:
            aligned = [shrunk(torch.broadcast_to(numbers, result.shape)) for _, numbers in known]
        except RuntimeError:
            for x, _ in known:
                self.fix(x, f'feeds {name}, through which its channels cannot be followed')
            return
        merged = aligned[0]
        for other in aligned[1:]:
            self._meet(merged, other)
            merged = torch.maximum(merged, other)
        for x in parts:
            if x in self or not x.ndim:
                continue
            for back in range(1, x.ndim + 1):
                varies = back <= merged.ndim and (merged != merged.narrow(-back, 0, 1)).any()
                if x.shape[-back] > 1 and varies:
                    self.fixed.append((merged[merged >= 0], f'meets a tensor of fixed size in {name}'))
                    break
        self.set(result, torch.broadcast_to(merged, result.shape))

    def _meet(self, first: Tensor, second: Tensor) -> None:
        """Note that channels at the same places of two tensors of numbers must be pruned together."""
        first, second = torch.broadcast_tensors(first, second)
        met = (first >= 0) & (second >= 0) & (first != second)
        if met.any():
            self.join(*torch.unique(torch.stack([first[met], second[met]]), dim=1))


def _argument(name: str, func: Any, args: tuple, kwargs: dict) -> Any:
    """The argument of this name, passed by position or keyword; None if it was not passed."""
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False), **kwargs).get(name)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    return [x for item in value for x in tensors_in(item)] if isinstance(value, list | tuple) else []


def shrunk(numbers: Tensor) -> Tensor:
    """The numbers without the repetitions that ``expand`` made."""
    for axis, stride in enumerate(numbers.stride()):
        if stride == 0 and numbers.shape[axis] > 1:
            numbers = numbers.narrow(axis, 0, 1)
    return numbers


def along_axis(numbers: Tensor, x: Tensor, axis: int) -> Tensor:
    """Numbers [M] of the channels on an axis, expanded to the shape of ``x``, which takes no memory."""
    shape = [1] * x.ndim
    shape[axis] = len(numbers)
    return numbers.view(shape).expand(x.shape)


def _reshaped(numbers: Tensor, shape: Sequence[int]) -> Tensor:
    """The numbers in another shape; if they are expanded along the first axis, as for several images, they stay so."""
    if numbers.ndim and len(shape) and numbers.shape[0] == shape[0] and numbers.stride(0) == 0:
        return numbers[:1].reshape(1, *shape[1:]).expand(shape)
    return numbers.reshape(shape)
