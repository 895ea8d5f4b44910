"""The dense and the pruned path of a module, run side by side, and what certain layers see on them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .synthetic import Stopped, hooks, require_reached


@dataclass
class Seen:
    """What a layer was given and what it made of it, in one forward pass.

    Attributes:
        input (Tensor): [B, N, ...], of a linear layer [B, ..., N].
        output (Tensor): [B, M, ...] or [B, ..., M], before a norm.
        shortcut (Tensor | None): As the output, what was added to it behind its norm; None if nothing was.
    """

    input: Tensor
    output: Tensor
    shortcut: Tensor | None = None


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
            if name in self.SUMS and len(tensors) == 2:
                self.waiting.pop(id(tensor))[1].shortcut = tensors[1 - index].clone()
            elif name.endswith('_') and not name.startswith('__'):
                self.waiting.pop(id(tensor))  # changed in place: no longer the norm's output
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def watch_layers(
    module: nn.Module, inputs: tuple, layers: Iterable[tuple[str, str | None]], shortcuts: bool = True
) -> dict[str, Seen]:
    """Run a module as far as needed and keep what certain layers saw.

    Args:
        module (nn.Module): In eval mode.
        inputs (tuple): What it is called with.
        layers (Iterable[tuple[str, str | None]]): Path of each layer and of the norm behind it.
        shortcuts (bool): Also find what is added behind the norms, for which the pass goes on to the end of their
            parents. Defaults to True.

    Returns:
        dict[str, Seen]: By path. A layer that is called twice is seen in its last call.

    Raises:
        AutoDFPError: A layer was not reached.
    """
    layers = list(layers)
    seen: dict[str, Seen] = {}
    sums = _Sums()
    finished: set[str] = set()

    def keep(path):
        def hook(_, args, output):
            seen[path] = Seen(args[0].clone(), output.clone())

        return hook

    def await_sum(path):
        def hook(_, __, output):
            sums.waiting[id(output)] = (output, seen[path])

        return hook

    def finish(path):
        def hook(*_):
            finished.add(path)
            if len(finished) == len(layers):
                raise Stopped

        return hook

    with hooks() as handles:
        for path, norm in layers:
            handles.append(module.get_submodule(path).register_forward_hook(keep(path)))
            last = module.get_submodule(norm or path)
            if shortcuts:
                handles.append(last.register_forward_hook(await_sum(path)))
                last = module.get_submodule(path.rpartition('.')[0])
            handles.append(last.register_forward_hook(finish(path)))
        try:
            with sums:
                module(*inputs)
        except Stopped:
            pass
    require_reached([path for path, _ in layers if path not in seen], module)
    return seen


class Paths:
    """Two modules of one structure, fed with the same images.

    A pass need not begin at the images: what enters a block is kept for both, and carried on from block to block.

    Args:
        dense (nn.Module): In eval mode.
        pruned (nn.Module): Likewise. Its weights may change behind the block that was watched last, and in it.
        batches (Callable): Gives what the modules are called with, batch by batch.
        cache_gb (float): Room for what enters a block, in GB; too little makes every pass begin at the images.
    """

    def __init__(self, dense: nn.Module, pruned: nn.Module, batches: Callable[[], Iterator[tuple]], cache_gb: float):
        self.nets = (dense, pruned)
        self.batches = batches
        self.room = cache_gb * 1e9
        self.at: str | None = None
        self._entering: list[list[Tensor]] = []  # batch by batch, dense and pruned
        self._follows: dict[str, str] | None = None

    def watch(
        self, block: str, layers: list[tuple[str, str | None]], shortcuts: bool
    ) -> Iterator[tuple[dict[str, Seen], dict[str, Seen]]]:
        """What layers of a block see, batch by batch; arguments as of :func:`watch_layers`.

        Yields:
            tuple[dict[str, Seen], dict[str, Seen]]: On the dense and on the pruned path.
        """
        if not block or not self._move_to(block):
            for inputs in self.batches():
                yield tuple(watch_layers(net, inputs, layers, shortcuts) for net in self.nets)
            return
        cut = len(block) + 1
        inside = [(path[cut:], norm and norm[cut:]) for path, norm in layers]
        for entering in self._entering:
            both = [
                watch_layers(net.get_submodule(block), (x.clone(),), inside, shortcuts)
                for net, x in zip(self.nets, entering, strict=True)
            ]
            yield tuple({f'{block}.{path}': seen for path, seen in found.items()} for found in both)

    @torch.no_grad()
    def _move_to(self, block: str) -> bool:
        """Have what enters ``block`` at hand; False if that cannot be."""
        if self._follows is None:
            self._follows = _find_chain(self.nets[0], next(iter(self.batches())))
        if self.at is None or self._follows.get(block) != self.at:
            if self.at == block:
                return True
            return self._capture(block)
        for entering in self._entering:
            for index, net in enumerate(self.nets):
                entering[index] = net.get_submodule(self.at)(entering[index])
        self.at = block
        return self._fits()

    def _capture(self, block: str) -> bool:
        self.at, self._entering = None, []
        for inputs in self.batches():
            found = [_entering(net, block, inputs) for net in self.nets]
            if any(x is None for x in found):
                return False
            self._entering.append(found)
            if not self._fits():
                return False
        self.at = block
        return True

    def _fits(self) -> bool:
        held = sum(x.numel() * x.element_size() for entering in self._entering for x in entering)
        if held > self.room:
            self.at, self._entering = None, []
            return False
        return True


def _entering(net: nn.Module, block: str, inputs: tuple) -> Tensor | None:
    """The one tensor that a block is called with; None if it is called otherwise."""
    seen: list[tuple] = []

    def stop(_, args, kwargs):
        seen.append((args, kwargs))
        raise Stopped

    with hooks() as handles:
        handles.append(net.get_submodule(block).register_forward_pre_hook(stop, with_kwargs=True))
        try:
            net(*inputs)
        except Stopped:
            args, kwargs = seen[0]
            if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
                return args[0].clone()
    return None


def _find_chain(net: nn.Module, inputs: tuple) -> dict[str, str]:
    """Part to the part whose output, that very tensor, is all that it is called with."""
    came_from: dict[int, tuple[str, Tensor]] = {}  # by identity; the tensors are held, or it would be given anew
    follows: dict[str, list[str]] = {}
    calls: dict[str, int] = {}

    def enter(path):
        def hook(_, args):
            calls[path] = calls.get(path, 0) + 1
            if len(args) == 1 and id(args[0]) in came_from:
                follows[path] = came_from[id(args[0])][0]

        return hook

    def leave(path):
        def hook(_, __, output):
            if isinstance(output, Tensor):
                came_from.setdefault(id(output), (path, output))  # the innermost part, if several give it

        return hook

    with hooks() as handles:
        for path, part in net.named_modules():
            if path and next(part.children(), None) is not None:
                handles.append(part.register_forward_pre_hook(enter(path)))
                handles.append(part.register_forward_hook(leave(path)))
        net(*(x[:2] for x in inputs))
    return {path: before for path, before in follows.items() if calls[path] == calls[before] == 1}
