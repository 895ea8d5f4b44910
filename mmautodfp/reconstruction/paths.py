"""The dense and the pruned path of a module, run side by side, and what certain layers see on them."""

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
    """What a layer was given and what it made of it, in one forward pass.

    Attributes:
        input (Tensor): [B, N, ...], of a linear layer [B, ..., N].
        output (Tensor | None): [B, M, ...] or [B, ..., M], before a norm. Defaults to None: not asked for.
        shortcut (Tensor | None): As the output, what was added to it behind its norm. Defaults to None: nothing was.
    """

    input: Tensor
    output: Tensor | None = None
    shortcut: Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        tensors = (self.input, self.output, self.shortcut)
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)


@dataclass(frozen=True)
class Watched:
    """A layer that is watched.

    Attributes:
        norm (str | None): Path of the norm behind it.
        calls (int): How often it is called in a pass. Defaults to 1.
        output (bool): Whether what it makes is wanted. Defaults to True.
        shortcut (bool): Whether what is added behind its norm is wanted, for which the pass goes on to the end of the
            layer's parent. Defaults to True.
    """

    norm: str | None = None
    calls: int = 1
    output: bool = True
    shortcut: bool = True


_Given = tuple[tuple, dict]  # arguments of a call


class _Sums(TorchFunctionMode):
    """Tells what is added to certain tensors, by whatever spelling of a sum."""

    SUMS = frozenset({'add', 'add_', '__add__', '__radd__', '__iadd__'})

    def __init__(self):
        super().__init__()
        self.waiting: dict[int, tuple[Tensor, Seen]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, '__name__', '')
        tensors = [arg for arg in args[:2] if isinstance(arg, Tensor)]
        for index, tensor in enumerate(tensors):
            if id(tensor) not in self.waiting:
                continue
            if name in self.SUMS and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
                self.waiting.pop(id(tensor))[1].shortcut = tensors[1 - index].clone()
            elif name.endswith('_') and not name.startswith('__'):
                self.waiting.pop(id(tensor))  # changed in place: no longer the norm's output
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def watch_layers(
    module: nn.Module, args: tuple, layers: Mapping[str, Watched], kwargs: Mapping[str, Any] | None = None
) -> dict[str, list[Seen]]:
    """Run a module as far as needed and keep what certain layers saw.

    Args:
        module (nn.Module): In eval mode.
        args (tuple): What it is called with.
        layers (Mapping[str, Watched]): By path.
        kwargs (Mapping | None): What it is called with by name. Defaults to None.

    Returns:
        dict[str, list[Seen]]: By path, of all calls.

    Raises:
        AutoDFPError: A layer was not reached.
    """
    watch = _Watch(layers)
    with hook_handles() as handles, suppress(Stopped), watch.sums or nullcontext():
        handles += watch.hooks(module)
        module(*args, **kwargs) if kwargs else run_model(module, *args)
    require_reached([path for path, seen in watch.seen.items() if not seen], module)
    return watch.seen


class _Watch:
    """What certain layers see in one pass, which is stopped when no more is needed.

    Args:
        layers (Mapping[str, Watched]): By path.
    """

    def __init__(self, layers: Mapping[str, Watched]):
        self.layers = layers
        self.seen: dict[str, list[Seen]] = {path: [] for path in layers}
        self.sums = _Sums() if any(watched.shortcut for watched in layers.values()) else None
        self.left = sum(watched.calls for watched in layers.values())

    def hooks(self, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hang the hooks on the layers of a module, and on what a layer is watched until."""
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
        self.sums.waiting[id(output)] = (output, self.seen[path][-1])

    def finish(self, *_: Any) -> None:
        self.left -= 1
        if self.left <= 0 and all(len(self.seen[path]) >= watched.calls for path, watched in self.layers.items()):
            raise Stopped


class Paths:
    """Two modules of one structure, fed with the same images.

    A pass need not begin at the images: what enters a block is kept for both, and carried on from block to block. Nor
    is the dense module run again for each layer of a block: what its layers see is kept.

    Args:
        dense (nn.Module): In eval mode.
        pruned (nn.Module): Likewise. Its weights may change behind the block that was entered last, and in it.
        batches (Callable): Gives what the modules are called with, batch by batch.
        cache_gb (float): Room for all that, in GB; what there is none for is run again for each pass.

    Attributes:
        census (Census): Which parts are called in a pass.
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
        """Go on to a block.

        Args:
            block (str): Path of a part that is called once in a pass; '' for the module.
            layers (Mapping[str, str | None]): Path of each layer in it that will be watched, to that of the norm
                behind it.
            shortcuts (bool): Also find what is added behind the norms.
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
        """What some of the block's layers see, batch by batch.

        Args:
            paths (Sequence[str]): Of the layers.

        Yields:
            tuple[dict[str, list[Seen]], dict[str, list[Seen]]]: On the dense and, but for the outputs, on the pruned
            path.
        """
        layers = {path: self._layers[path] for path in paths}
        for index, (dense, pruned) in enumerate(self._given()):
            seen = self._dense[index] if index < len(self._dense) else self._run(0, dense, layers)
            # The pruned path is run as far as it must be.
            inputs = {
                path: replace(layers[path], output=False, shortcut=any(one.shortcut is not None for one in seen[path]))
                for path in paths
            }
            yield seen, self._run(1, pruned, inputs)

    def _given(self) -> Iterator[Sequence[_Given]]:
        """What the block is called with on the dense and on the pruned path, batch by batch."""
        if self._block:
            yield from self._entering
        else:
            yield from ([(inputs, {})] * 2 for inputs in self.batches())

    def _run(self, net: int, given: _Given, layers: Mapping[str, Watched]) -> dict[str, list[Seen]]:
        """What layers see when the block is called."""
        if self._block:
            given = apply_to(given, torch.is_tensor, Tensor.clone)  # the block may work in place
        inside = {path.removeprefix(self._prefix): watched for path, watched in layers.items()}
        found = watch_layers(self.nets[net].get_submodule(self._block), given[0], inside, given[1])
        return {path: found[path.removeprefix(self._prefix)] for path in layers}

    @torch.no_grad()
    def _move_to(self, block: str) -> bool:
        """Have what enters ``block`` at hand; False if that cannot be."""
        way = [block]
        while way[-1] != self.at and way[-1] in self.census.follows:
            way.append(self.census.follows[way[-1]])
        if way.pop() != self.at:
            return self._capture(block)
        for part in reversed(way):
            for entering in self._entering:
                for index, net in enumerate(self.nets):
                    entering[index] = ((net.get_submodule(self.at)(*entering[index][0]),), {})
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
    """Which parts of a module are called in one pass.

    Attributes:
        calls (dict[str, int]): By path, in the order of the first calls, how often.
        follows (dict[str, str]): Part to the part whose output, that very tensor or tuple of them, is all that it is
            called with; both are called once.
        weights (list[str]): Paths of the layers with weights, of those that are called.
    """

    calls: dict[str, int]
    follows: dict[str, str]
    weights: list[str]


@torch.no_grad()
def take_census(net: nn.Module, inputs: tuple) -> Census:
    """Run a module on the first two of some inputs."""
    came_from: dict[int, tuple[str, Any]] = {}  # by identity; the outputs are held, or it would be given anew
    follows: dict[str, str] = {}
    calls: dict[str, int] = {}

    def enter(path):
        def hook(_, args, kwargs):
            calls[path] = calls.get(path, 0) + 1
            if len(args) == 1 and not kwargs and id(args[0]) in came_from:
                follows[path] = came_from[id(args[0])][0]

        return hook

    def leave(path):
        def hook(_, __, output):
            came_from.setdefault(id(output), (path, output))  # the innermost part, if several give it

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
