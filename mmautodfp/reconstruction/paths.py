"""Running the dense and the pruned version of a module on the same images, and recording some of their layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from mmautodfp.graph import flat_tensors, hook_handles, run_model

from .synthetic import Stopped, first_call, require_reached


@dataclass
class Seen:
    """Input and output of a layer in one call.

    Attributes:
        input (Tensor): [B, N, ...], of a linear layer [B, ..., N].
        output (Tensor | None): [B, M, ...] or [B, ..., M], before a norm. Defaults to None: it was not recorded.
        shortcut (Tensor | None): Of the output's shape; the tensor that was added to the output of the norm, or of the
            layer if it has none. Defaults to None: none was added, or it was not recorded.
    """

    input: Tensor
    output: Tensor | None = None
    shortcut: Tensor | None = None

    @property
    def size(self) -> int:
        """Memory of the tensors, in bytes."""
        tensors = (self.input, self.output, self.shortcut)
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)


@dataclass(frozen=True)
class Watched:
    """What to record of a layer, besides its input.

    Attributes:
        norm (str | None): Path of the norm behind the layer. Defaults to None: there is none.
        calls (int): Number of calls of the layer in a pass. Defaults to 1.
        output (bool): Record the output; without ``output`` and ``shortcut``, only the input is recorded. Defaults to
            True.
        shortcut (bool): Record the tensor that is added behind the norm, for which the pass must run to the end of the
            layer's parent. Defaults to True.
    """

    norm: str | None = None
    calls: int = 1
    output: bool = True
    shortcut: bool = True


_Given = tuple[tuple, dict]  # arguments of a call, by position and by name


class _Sums(TorchFunctionMode):
    """Records the other summand of sums with certain tensors, whichever of torch's functions adds them."""

    SUMS = frozenset({'add', 'add_', '__add__', '__radd__', '__iadd__'})

    def __init__(self):
        super().__init__()
        self.waiting: dict[int, tuple[Tensor, int, Seen]] = {}  # by id; the tensor, its version, and whose it is

    def await_sum(self, tensor: Tensor, seen: Seen) -> None:
        """Record what is added to a tensor, unless the tensor is changed in place before."""
        self.waiting[id(tensor)] = (tensor, tensor._version, seen)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, '__name__', ''), kwargs or {}
        alpha = kwargs.get('alpha', 1)  # scales the second summand
        tensors = [arg for arg in args[:2] if isinstance(arg, Tensor)]
        for index, tensor in enumerate(tensors):
            alike = len(tensors) == 2 and tensors[0].shape == tensors[1].shape
            if id(tensor) in self.waiting and name in self.SUMS and alike and (index == 0 or alpha == 1):
                _, version, seen = self.waiting.pop(id(tensor))
                if tensor._version == version:
                    seen.shortcut = tensors[1 - index] * alpha
        return func(*args, **kwargs)


@torch.no_grad()
def watch_layers(
    module: nn.Module, args: tuple, layers: Mapping[str, Watched], kwargs: Mapping[str, Any] | None = None
) -> dict[str, list[Seen]]:
    """Run a module as far as needed and record inputs and outputs of some layers.

    Args:
        module (nn.Module): In eval mode.
        args (tuple): Its inputs by position.
        layers (Mapping[str, Watched]): Paths of the layers, to what is recorded of them.
        kwargs (Mapping | None): Its inputs by name. Defaults to None.

    Returns:
        dict[str, list[Seen]]: Paths of the layers, to a record of each call.

    Raises:
        AutoDFPError: A layer was not called.
    """
    watch = _Watch(layers)
    with hook_handles() as handles, suppress(Stopped), watch.sums or nullcontext():
        handles += watch.hooks(module)
        module(*args, **kwargs) if kwargs else run_model(module, *args)
    require_reached([path for path, seen in watch.seen.items() if not seen], module)
    return watch.seen


class _Watch:
    """Hooks that record some layers in one pass, and stop it when all is recorded.

    Args:
        layers (Mapping[str, Watched]): Paths of the layers, to what is recorded of them.
    """

    def __init__(self, layers: Mapping[str, Watched]):
        self.layers = layers
        self.seen: dict[str, list[Seen]] = {path: [] for path in layers}
        self.sums = _Sums() if any(watched.shortcut for watched in layers.values()) else None
        self.left = sum(watched.calls for watched in layers.values())

    def hooks(self, module: nn.Module) -> Iterator[RemovableHandle]:
        """Register the hooks on the layers, and on the module whose end completes the record of a layer."""
        for path, watched in self.layers.items():
            layer = last = module.get_submodule(path)
            if not (watched.output or watched.shortcut):
                yield layer.register_forward_pre_hook(partial(self.keep_input, path))
                continue
            yield layer.register_forward_hook(partial(self.keep, path))
            if watched.norm:
                last = module.get_submodule(watched.norm)
            if watched.shortcut:
                yield last.register_forward_hook(partial(self.await_sum, path))
                last = module.get_submodule(path.rpartition('.')[0])
            yield last.register_forward_hook(self.finish)

    def keep_input(self, path: str, layer: nn.Module, args: tuple) -> None:
        self.seen[path].append(Seen(args[0].clone()))
        self.finish()

    def keep(self, path: str, layer: nn.Module, args: tuple, output: Tensor) -> None:
        self.seen[path].append(Seen(args[0].clone(), output.clone()))

    def await_sum(self, path: str, norm: nn.Module, args: tuple, output: Tensor) -> None:
        self.sums.await_sum(output, self.seen[path][-1])

    def finish(self, *_: Any) -> None:
        self.left -= 1
        if self.left <= 0 and all(len(self.seen[path]) >= watched.calls for path, watched in self.layers.items()):
            raise Stopped


class Paths:
    """The dense and the pruned version of a module, run block by block on the same images.

    Two caches save time. The inputs of the present block are kept for both versions, so that a pass does not start at
    the images, and are run through the block to get the inputs of the next one. The inputs and outputs of the block's
    layers on the dense path are kept, so that the dense version is not run again for each layer.

    Args:
        dense (nn.Module): In eval mode.
        pruned (nn.Module): In eval mode. Only weights in the present block and behind it may be changed.
        batches (Callable): Gives the inputs of the modules, batch by batch.
        cache_gb (float): Memory for both caches, in GB; what does not fit is computed again in each pass.

    Attributes:
        census (Census): The parts that are called in a pass.
    """

    def __init__(self, dense: nn.Module, pruned: nn.Module, batches: Callable[[], Iterator[tuple]], cache_gb: float):
        self.nets = (dense, pruned)
        self.batches = batches
        self.room = cache_gb * 1e9
        self.at: str | None = None
        self.census = take_census(dense, next(iter(batches())))
        self._entering: list[list[_Given]] = []  # batch by batch, dense and pruned
        self._block, self._prefix, self._layers = '', '', dict[str, Watched]()
        self._dense: list[dict[str, list[Seen]]] = []  # batch by batch, as far as there was room

    @torch.no_grad()
    def enter(self, block: str, layers: Mapping[str, str | None], shortcuts: bool) -> None:
        """Go on to a block, and fill the caches.

        Args:
            block (str): Path of a part that is called once in a pass; '' for the module.
            layers (Mapping[str, str | None]): Path of each layer in it that will be recorded, to that of the norm
                behind it.
            shortcuts (bool): Also record the tensors that are added behind the norms.
        """
        self._dense = []
        if not block or not self._move_to(block):
            block = ''
        self._block, self._prefix = block, f'{block}.' if block else ''
        self._layers = {
            path: Watched(norm and norm.removeprefix(self._prefix), self.census.calls.get(path, 1), shortcut=shortcuts)
            for path, norm in layers.items()
        }
        room = self.room - _bytes(self._entering)
        for given in self._given():
            seen = self._run(0, given[0], self._layers)
            room -= sum(one.size for calls in seen.values() for one in calls)
            if room < 0:
                return
            self._dense.append(seen)

    def watch(self, paths: Sequence[str]) -> Iterator[tuple[dict[str, list[Seen]], dict[str, list[Seen]]]]:
        """Record layers of the present block, batch by batch.

        Args:
            paths (Sequence[str]): Paths of some of the layers given to :meth:`enter`.

        Yields:
            tuple[dict[str, list[Seen]], dict[str, list[Seen]]]: The records on the dense path, and those on the pruned
            path, which may lack the outputs.
        """
        layers = {path: self._layers[path] for path in paths}
        for index, (dense, pruned) in enumerate(self._given()):
            seen = self._dense[index] if index < len(self._dense) else self._run(0, dense, layers)
            # Without shortcuts where the dense path has none: the pass can then stop earlier.
            inputs = {
                path: replace(layers[path], output=False, shortcut=any(one.shortcut is not None for one in seen[path]))
                for path in paths
            }
            yield seen, self._run(1, pruned, inputs)

    def _given(self) -> Iterator[Sequence[_Given]]:
        """Arguments of the present block on the dense and on the pruned path, batch by batch."""
        if self._block:
            yield from self._entering
        else:
            yield from ([(inputs, {})] * 2 for inputs in self.batches())

    def _run(self, net: int, given: _Given, layers: Mapping[str, Watched]) -> dict[str, list[Seen]]:
        """Run the block of one of :attr:`nets` and record layers; their paths are relative to the module."""
        if self._block:
            given = apply_to(given, torch.is_tensor, Tensor.clone)  # the block may work in place
        inside = {path.removeprefix(self._prefix): watched for path, watched in layers.items()}
        found = watch_layers(self.nets[net].get_submodule(self._block), given[0], inside, given[1])
        return {path: found[path.removeprefix(self._prefix)] for path in layers}

    @torch.no_grad()
    def _move_to(self, block: str) -> bool:
        """Cache the inputs of ``block``; False if it is not called once, or if they do not fit."""
        way = [block]
        while way[-1] != self.at and way[-1] in self.census.follows:
            way.append(self.census.follows[way[-1]])
        if way.pop() != self.at:
            return self._capture(block)
        for part in reversed(way):
            for entering in self._entering:
                for index, net in enumerate(self.nets):
                    args, kwargs = entering[index]
                    entering[index] = ((net.get_submodule(self.at)(*args, **kwargs),), {})
            self.at = part
        return self._fits()

    def _capture(self, block: str) -> bool:
        self.at, self._entering = None, []
        if self.census.calls.get(block) != 1:
            return False
        for inputs in self.batches():
            calls = (first_call(net, net.get_submodule(block), *inputs) for net in self.nets)
            self._entering.append([apply_to(call, torch.is_tensor, Tensor.clone) for call in calls])
            if not self._fits():
                return False
        self.at = block
        return True

    def _fits(self) -> bool:
        if _bytes(self._entering) > self.room:
            self.at, self._entering = None, []
            return False
        return True


def _bytes(entering: list[list[_Given]]) -> int:
    tensors = (x for given in entering for one in given for x in flat_tensors(list(one)))
    return sum(x.numel() * x.element_size() for x in tensors)


@dataclass
class Census:
    """The parts of a module that are called in one pass.

    Attributes:
        calls (dict[str, int]): Path of each part to its number of calls, in the order of the first calls.
        follows (dict[str, str]): Path of a part to that of the part whose output, the same object, not changed in
            between, is its only argument; both are called once.
        weights (list[str]): Paths of the called layers whose weight has two axes or more.
    """

    calls: dict[str, int]
    follows: dict[str, str]
    weights: list[str]


@torch.no_grad()
def take_census(net: nn.Module, inputs: tuple) -> Census:
    """Run a module on one batch and take note of the parts that are called.

    Args:
        net (nn.Module): The module.
        inputs (tuple): Its inputs, one batch.
    """
    came_from: dict[tuple, tuple[str, Any]] = {}  # by state; holds the outputs, so that no id is used again
    follows: dict[str, str] = {}
    calls: dict[str, int] = {}

    def enter(path):
        def hook(_, args, kwargs):
            calls[path] = calls.get(path, 0) + 1
            if len(args) == 1 and not kwargs and _state(args[0]) in came_from:
                follows[path] = came_from[_state(args[0])][0]

        return hook

    def leave(path):
        def hook(_, __, output):
            came_from.setdefault(_state(output), (path, output))  # the innermost of nested parts with this output

        return hook

    with hook_handles() as handles:
        for path, part in net.named_modules():
            if not path:
                continue
            handles.append(part.register_forward_pre_hook(enter(path), with_kwargs=True))
            if next(part.children(), None) is not None:
                handles.append(part.register_forward_hook(leave(path)))
        run_model(net, *inputs)
    follows = {path: before for path, before in follows.items() if calls[path] == calls[before] == 1}
    weighty = [path for path, part in net.named_modules() if getattr(getattr(part, 'weight', None), 'ndim', 0) > 1]
    return Census(calls, follows, [path for path in weighty if path in calls])


def _state(value: Any) -> tuple:
    """Which object a value is, and its tensors with their version counters, which every change in place raises."""
    return id(value), *((id(x), x._version) for x in flat_tensors(value))
