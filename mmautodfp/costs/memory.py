"""Memory of inference as a function of the groups' widths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from mmautodfp.graph import ChannelGroup, hook_handles, outputs_first
from mmautodfp.graph.numbering import Numbers, along_axis, shrunk, tensors_in

from .counts import Cost, CostModel, Role, group_roles, layers_by_scope, shares, tensor_terms


@dataclass
class MemoryCost(Cost):
    """Bytes of the weights, and of the activations at the moment when most bytes of them are held.

    The size of a tensor is linear in the widths of the groups whose channels it carries, and so are the bytes held at
    any moment. Moments that never hold more than another one are left out.

    Attributes:
        dense (list[int]): [L], the groups' dense widths N.
        weights (CostModel): Parameters and buffers.
        constants (np.ndarray): [K], int64, bytes that are held at each of K moments whatever the widths.
        slopes (np.ndarray): [K, L], int64, bytes that are held there per channel of each group.
    """

    dense: list[int]
    weights: CostModel
    constants: np.ndarray
    slopes: np.ndarray

    def activations(self, widths: Sequence[int]) -> int:
        """The most bytes of activations that are held at once at ``widths`` [L]."""
        return int((self.constants + self.slopes @ np.asarray(widths, np.int64)).max())

    def __call__(self, widths: Sequence[int]) -> int:
        """Bytes at ``widths`` [L]."""
        return self.weights(widths) + self.activations(widths)


@torch.no_grad()
def measure_memory_costs(
    model: nn.Module,
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    run: Callable[[], Any],
    moves_constants: Callable[[ChannelGroup], bool] | None = None,
    parts: Sequence[nn.Module] | None = None,
) -> dict[str, MemoryCost]:
    """Run a dense model once and record from when to when each of its tensors is held.

    What counts are the tensors that torch's operations take or return on the device of the model's weights: the input,
    which the caller holds, activations, and temporary results while they live. Memory that an operation needs only
    while it works (the columns of a convolution, what oneDNN and cuDNN reorder) does not count, nor does what an
    allocator rounds up or keeps. A tensor whose channels cannot be followed counts with its dense size, and a second
    stage with as many regions as in this run.

    Args:
        model (nn.Module): The whole model, in eval mode.
        module (nn.Module): What the groups' paths are relative to.
        groups (Sequence[ChannelGroup]): Its groups, L of them.
        run (Callable): Runs the model on one input.
        moves_constants (Callable | None): As of :func:`.model_costs`. Defaults to None.
        parts (Sequence[nn.Module] | None): Parts of the model that the scope 'module' covers. Defaults to None: the
            module.

    Returns:
        dict[str, MemoryCost]: By scope: 'model'; and 'module', what the parts would take by themselves: their weights,
        their inputs, and the tensors that they make.
    """
    parts = parts or [module]
    with hook_handles() as handles, _Watch(handles, model, module, groups, parts) as watch:
        outputs = run()  # held until the end, as a caller would hold them
    del outputs
    dense, roles = [group.num_channels for group in groups], group_roles(module, groups, moves_constants)
    found = {}
    for scope, layers in layers_by_scope(model, parts).items():
        weights, counted = CostModel(dense), set()
        for layer in layers:
            _count_bytes(layer, roles.get(layer, Role()), weights, counted)
        found[scope] = MemoryCost(dense, weights, *watch.moments(scope))
    return found


def _count_bytes(layer: nn.Module, role: Role, weights: CostModel, counted: set[Tensor]) -> None:
    for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is not None and tensor not in counted:
            counted.add(tensor)
            for amount, rows, columns in tensor_terms(layer, name, tensor, role, weights.dense):
                weights.add(amount * tensor.element_size(), rows, columns)
    if role.constants:
        weight = outputs_first(layer)
        outputs = shares(len(weight), role.outputs, weights.dense)
        bias = [(group, each * weight.element_size()) for group, each in outputs]
        weights.biases.append((role.constants, bias))


@dataclass(eq=False)
class _Storage:
    """Memory of a tensor and its views.

    Attributes:
        reference (StorageWeakRef): Expires when it is freed.
        size (int): Bytes.
        item (int): Bytes of an element.
        born (int): Index of the operation that returned it; 0 if it was there before.
        freed (int | None): Index of the first operation without it. Defaults to None: it is held until the end.
        own (bool): Whether an operation in the pruned parts takes or returns it. Defaults to False.
        numbers (Tensor | None): Numbers of its elements' channels, -1 for those of no group. One number may stand for
            several elements, always for equally many. Defaults to None: its channels are not known.
    """

    reference: StorageWeakRef
    size: int
    item: int
    born: int
    freed: int | None = None
    own: bool = False
    numbers: Tensor | None = None


class _PassingNumbers(Numbers):
    """Numbers that do not keep their tensors alive, and report each tensor that they are set for.

    Args:
        note (Callable): Called with the tensor and its numbers.
    """

    def __init__(self, note: Callable[[Tensor, Tensor], None]):
        super().__init__()
        self._known = WeakTensorKeyDictionary()
        self._note = note

    def __contains__(self, x: Tensor) -> bool:
        return x in self._known

    def read(self, x: Tensor) -> None:
        pass  # only finding norms needs it, and it would keep the tensor alive

    def of(self, x: Tensor) -> Tensor | None:
        return self._known.get(x)

    def set(self, x: Tensor, numbers: Tensor) -> None:
        self._known[x] = numbers
        self._note(x, numbers)


class _Watch(TorchDispatchMode):
    """Follows the groups' channels from their producers on, and records when each storage is held."""

    def __init__(
        self,
        handles: list,
        model: nn.Module,
        module: nn.Module,
        groups: Sequence[ChannelGroup],
        parts: Sequence[nn.Module],
    ):
        super().__init__()
        self.groups = groups
        self.numbers = _PassingNumbers(self._note)
        weights = [*model.parameters(), *model.buffers()]
        self.device = next((weight.device for weight in weights), torch.device('cpu'))
        self.apart = {weight.untyped_storage()._cdata for weight in weights}
        self.alive: dict[int, _Storage] = {}
        self.gone: list[_Storage] = []
        self.within: list[bool] = []  # for each operation, whether it is in a pruned part
        self.depth = self.unseen = 0  # calls under way: of pruned parts, and of layers handled by _cut_out
        for layer in layers_by_scope(model, parts)['module']:
            handles.append(layer.register_forward_pre_hook(self._enter))
            handles.append(layer.register_forward_hook(self._leave))
        for layer in model.modules():
            if type(layer).__name__ in ('RoIAlign', 'SingleRoIExtractor'):  # mmcv's and mmdet's
                handles.append(layer.register_forward_pre_hook(self._look_away))
                handles.append(layer.register_forward_hook(self._cut_out))
        for layer, places in _places(module, groups).items():
            handles.append(layer.register_forward_hook(self._number_with(places)))
            # A frozen norm combines these tensors with one another before it applies them to a feature map.
            for tensor in (*layer._parameters.values(), *layer._buffers.values()):
                if tensor is not None and tensor.ndim == 1:
                    self.numbers.set(tensor, _numbers(places, len(tensor)))
            if isinstance(layer, nn.Linear):  # its output may be a view of a product, see _number_more()
                weight = layer.weight
                self.numbers.set(weight, along_axis(_numbers(places, len(weight)), weight, 0))

    def _enter(self, *_: Any) -> None:
        self.depth += 1

    def _leave(self, *_: Any) -> None:
        self.depth -= 1

    def _look_away(self, *_: Any) -> None:
        self.unseen += 1

    def _cut_out(self, layer: nn.Module, args: tuple, output: Tensor) -> None:
        """Number regions like the first level's feature map, since all levels have the same channels."""
        self.unseen -= 1
        source = args[0] if isinstance(args[0], Tensor) else args[0][0]
        with _disable_current_modes():  # operations on numbers are not the model's
            self.numbers.keep_channels(source, output, type(layer).__name__)

    def _number_with(self, places: list[tuple[int, Tensor]]) -> Callable:
        def number(layer: nn.Module, _: tuple, output: Tensor) -> None:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            with _disable_current_modes():
                self.numbers.set(output, along_axis(_numbers(places, output.shape[axis]), output, axis))

        return number

    # When storages are held.

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for key in [key for key, storage in self.alive.items() if storage.reference.expired()]:
            storage = self.alive.pop(key)
            storage.freed = len(self.within)
            self.gone.append(storage)
        for x in tensors_in((args, tuple((kwargs or {}).values()))):
            self._book(x, 0)  # an unknown storage was there from the start
        result = func(*args, **(kwargs or {}))
        if not self.unseen:
            self.numbers.follow(func, args, kwargs or {}, result)
            self._number_more(func, args, result)
        for x in tensors_in(result):
            self._book(x, len(self.within))
        self.within.append(self.depth > 0)
        return result

    def _book(self, x: Tensor, born: int) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            if key in self.apart or x.device != self.device or not size:
                return
            self.alive[key] = _Storage(StorageWeakRef(storage), size, x.element_size(), born)
            self._note(x, self.numbers.of(x))
        self.alive[key].own |= self.depth > 0

    def _note(self, x: Tensor, numbers: Tensor | None) -> None:
        storage = self.alive.get(x.untyped_storage()._cdata)
        if storage is not None and numbers is not None and x.numel() * storage.item == storage.size:
            storage.numbers = shrunk(numbers)

    def _number_more(self, func: Any, args: tuple, result: Any) -> None:
        """Number the statistics that a GroupNorm also gives, and the product of a Linear that adds its bias later."""
        name = func.overloadpacket.__name__
        if name == 'mm' and args[1].untyped_storage()._cdata in self.apart and args[1] in self.numbers:
            self.numbers.set(result, self.numbers.of(args[1])[:1].expand(result.shape))
        numbers = self.numbers.of(args[0]) if name == 'native_group_norm' else None
        if numbers is not None:
            first = shrunk(numbers).flatten(1)[:1, :: numbers.shape[1] // result[1].shape[1]]
            for statistics in result[1:]:
                self.numbers.set(statistics, first.expand(statistics.shape))

    # What is held at which moment.

    def moments(self, scope: str) -> tuple[np.ndarray, np.ndarray]:
        """``constants`` [K] and ``slopes`` [K, L] of a :class:`MemoryCost`."""
        dense = [group.num_channels for group in self.groups]
        owner = np.repeat(np.arange(len(dense)), [group.width for group in self.groups])
        change = np.zeros((len(self.within) + 1, 1 + len(dense)), np.int64)
        for storage in (*self.gone, *self.alive.values()):
            if scope == 'model' or storage.own:
                amounts = _amounts(storage, np.append(owner, -1), dense)
                change[storage.born] += amounts
                if storage.freed is not None:
                    change[storage.freed] -= amounts
        held = change.cumsum(0)[:-1]
        held = _largest(held if scope == 'model' else held[self.within], np.array([1, *dense]))
        return held[:, 0], held[:, 1:]


def _places(module: nn.Module, groups: Sequence[ChannelGroup]) -> dict[nn.Module, list[tuple[int, Tensor]]]:
    """Layers whose outputs are channels of groups, with pairs of the first such output and the channels' numbers."""
    places: dict[nn.Module, list[tuple[int, Tensor]]] = {}
    start = 0
    for group in groups:
        numbers = torch.arange(start, start + group.width)
        start += group.width
        found = [(producer.name, producer.offset) for producer in group.producers]
        found += [(name, 0) for name in (*group.norms, *group.between)]
        for name, offset in found:
            places.setdefault(module.get_submodule(name), []).append((offset, numbers))
    return places


def _numbers(places: list[tuple[int, Tensor]], count: int) -> Tensor:
    """The numbers of a layer's outputs, [count]; -1 for those of no group."""
    numbers = torch.full((count,), -1)
    for offset, own in places:
        numbers[offset : offset + len(own)] = own
    return numbers


def _amounts(storage: _Storage, owner: np.ndarray, dense: Sequence[int]) -> np.ndarray:
    """[1 + L], bytes of a storage that no plan changes, and bytes per channel of each group."""
    amounts = np.zeros(1 + len(dense), np.int64)
    amounts[0] = storage.size
    if storage.numbers is None:
        return amounts
    groups, counts = np.unique(owner[storage.numbers.flatten().numpy()], return_counts=True)
    for group, count in zip(groups, counts, strict=True):
        held = storage.size // storage.numbers.numel() * int(count)
        if group >= 0 and held % dense[group] == 0:  # else the storage holds only a part of the group
            amounts[0] -= held
            amounts[1 + group] = held // dense[group]
    return amounts


def _largest(held: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """The rows of ``held`` [K, 1 + L] without those that another row matches or exceeds in every entry."""
    kept = np.zeros((1, held.shape[1]), np.int64)
    rows = np.unique(held, axis=0)
    for row in rows[(rows @ dense).argsort()[::-1]]:
        if not (row <= kept).all(1).any():
            kept = np.concatenate([kept, row[None]])
    return kept[1:] if len(kept) > 1 else kept
