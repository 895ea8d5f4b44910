"""Following channels through a model of any class while it runs.

Every element of every tensor carries the number of the channel that it belongs to. A layer gives its outputs new
numbers and notes which numbers it reads; :mod:`.numbering` follows them through operations. Torch-Pruning's dependency
graph finds much the same from the graph of autograd, one index at a time, but ends at layers that autograd does not
know, such as RoIAlign.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from mmautodfp.utils import AutoDFPError

from .forward import flat_tensors, hook_handles
from .groups import is_batch_norm
from .numbering import Numbers, along_axis, tensors_in

# Names of layers as torch, mmcv and mmdet call them. Other subclasses may compute their weights from all channels.
CONVS = ('Conv2d', 'Conv2dAdaptivePadding')
DEFORMABLE = ('DeformConv2d', 'DeformConv2dPack', 'ModulatedDeformConv2d', 'ModulatedDeformConv2dPack')
EXTRACTORS = ('SingleRoIExtractor', 'MultiScaleRoIAlign')  # MMDetection's and torchvision's


@dataclass
class Call:
    """A layer that was called, once or several times.

    Attributes:
        path (str): Path of the layer.
        layer (nn.Module): The layer.
        outputs (Tensor): [M], numbers of its output channels.
        inputs (Tensor | None): [C], numbers of its input channels; None if they are the output channels (norms).
        norm (str | None): Path of the BatchNorm that is the only reader of its outputs. Defaults to None: there is no
            such norm.
    """

    path: str
    layer: nn.Module
    outputs: Tensor
    inputs: Tensor | None
    norm: str | None = None


@dataclass(frozen=True)
class Trace:
    """What is known of a model's channels after one forward pass.

    Attributes:
        layers (dict[str, Call]): By path, in the order in which they were called first.
        count (int): How many numbers have been given out.
        together (list[Tensor]): [2, n] each, pairs of channels that must be pruned together.
        fixed (list[tuple[Tensor, str]]): Channels that cannot be pruned, and why.
        extractors (list[tuple[str, Tensor]]): Paths of RoI extractors that have ``out_channels``, with the numbers of
            their output channels.
        unrun (list[str]): Paths of parts with convolutions or linear layers, none of which were used.
    """

    layers: dict[str, Call]
    count: int
    together: list[Tensor]
    fixed: list[tuple[Tensor, str]]
    extractors: list[tuple[str, Tensor]]
    unrun: list[str]


@torch.no_grad()
def trace_channels(model: nn.Module, run: Callable[[], Any]) -> Trace:
    """Run a model once and follow its channels.

    Args:
        model (nn.Module): In eval mode.
        run (Callable): Runs it on a small input and returns its outputs, whose channels cannot be pruned.

    Raises:
        AutoDFPError: The model passes the input of a layer by name.
    """
    with hook_handles() as handles, _Tracer(handles, model) as tracer:
        outputs = run()
    numbers = tracer.numbers
    for tensor in flat_tensors(outputs):
        numbers.fix(tensor, 'gives an output of the model')
    tracer.find_norms()
    return Trace(tracer.layers, numbers.count, numbers.together, numbers.fixed, tracer.extractors, tracer.find_unrun())


class _Tracer(TorchDispatchMode):
    """Watches layers with hooks, and passes all operations between them to :class:`.Numbers`."""

    def __init__(self, handles: list, model: nn.Module):
        super().__init__()
        self.numbers = Numbers()
        self.layers: dict[str, Call] = {}
        self.extractors: list[tuple[str, Tensor]] = []
        self.inside = 0  # nested calls of layers, whose operations are not followed
        self.calls: dict[str, list[tuple[int, int]]] = {}  # path of a layer to ids of its inputs and outputs
        self.weights: dict[int, str] = {}  # id of a layer's weight to its path
        self.used: set[int] = set()
        for path, layer in model.named_modules():
            leave = None
            if _is_layer(layer):
                leave = self._leave_with(path)
            elif type(layer).__name__ in EXTRACTORS:
                leave = self._extracted(path)
            elif type(layer).__name__ == 'RoIAlign':  # mmcv's; torch's dispatcher does not see its operation
                leave = self._aligned
            if leave is not None:
                handles.append(layer.register_forward_pre_hook(self._enter))
                handles.append(layer.register_forward_hook(leave))
            weight = layer._parameters.get('weight')
            if weight is not None and (hasattr(layer, 'in_channels') or hasattr(layer, 'in_features')):
                self.weights[id(weight)] = path
                handles.append(layer.register_forward_pre_hook(self._use))

    # What layers do.

    def _use(self, layer: nn.Module, _: tuple) -> None:
        self.used.add(id(layer.weight))

    def _enter(self, layer: nn.Module, args: tuple) -> None:
        if not args:
            raise AutoDFPError(
                f'channels were to be followed from layer to layer, but a {type(layer).__name__} is called with its '
                'input by name (input=x), which hooks are not told; pass it by position'
            )
        self.inside += 1

    def _leave_with(self, path: str) -> Callable:
        def leave(layer: nn.Module, args: tuple, output: Tensor) -> None:
            self.inside -= 1
            x = args[0]
            self.numbers.read(x)
            self.calls.setdefault(path, []).append((id(x), id(output)))
            axis = -1 if isinstance(layer, nn.Linear) else 1
            call = self.layers.get(path)
            if call is None:
                call = self.layers[path] = self._new_call(path, layer, x.shape[axis], output.shape[axis])
            self._read(call, x, axis)
            self.numbers.set(output, along_axis(call.outputs, output, axis))

        return leave

    def _new_call(self, path: str, layer: nn.Module, inputs: int, outputs: int) -> Call:
        call = Call(path, layer, self.numbers.new(outputs), None if _is_norm(layer) else self.numbers.new(inputs))
        groups = getattr(layer, 'num_groups', getattr(layer, 'groups', 1))
        if groups > 1:  # inputs and outputs of a group must be pruned together
            sides = [call.outputs] if call.inputs is None else [call.outputs, call.inputs]
            for members in torch.cat([side.view(groups, -1) for side in sides], 1):
                self.numbers.join(members[:1].expand(len(members) - 1), members[1:])
        if getattr(layer, 'deform_groups', 1) > 1:
            self.numbers.fixed.append((call.inputs, f'feeds {path}, which shares its samples out among channels'))
        return call

    def _read(self, call: Call, x: Tensor, axis: int) -> None:
        """Note which channels a layer reads."""
        numbers = self.numbers.of(x)
        if numbers is None:
            return
        moved = numbers.movedim(axis, 0).flatten(1)
        read = moved[:, 0]
        if not (moved == read[:, None]).all():
            self.numbers.fix(x, f'feeds {call.path}, which does not read channel by channel')
            return
        known = read >= 0
        own = call.outputs if call.inputs is None else call.inputs
        self.numbers.join(own[known], read[known])

    def _aligned(self, _: nn.Module, args: tuple, output: Tensor) -> None:
        self.inside -= 1
        self.numbers.read(args[0])
        self.numbers.keep_channels(args[0], output, 'a RoIAlign')

    def _extracted(self, path: str) -> Callable:
        """A hook for a RoI extractor: as any level may give a region, the channels of all must be pruned together."""

        def leave(extractor: nn.Module, args: tuple, output: Tensor) -> None:
            self.inside -= 1
            levels = args[0]
            if isinstance(levels, Mapping):  # torchvision's reads only some levels
                levels = [level for name, level in levels.items() if name in extractor.featmap_names]
            numbers = [self.numbers.of(level) for level in levels]
            if any(of_level is None for of_level in numbers):
                for level in levels:
                    self.numbers.fix(level, f'feeds {path} together with what is no channel')
                return
            for level in levels:
                self.numbers.keep_channels(level, output, path)
            first = self.numbers.of(output)
            if first is None:
                return
            for level, of_level in zip(levels, numbers, strict=True):
                self.numbers.read(level)
                self.numbers.join(first[0, :, 0, 0], of_level[0, :, 0, 0])
            if hasattr(extractor, 'out_channels'):
                self.extractors.append((path, first[0, :, 0, 0]))

        return leave

    def find_norms(self) -> None:
        """Set ``norm`` of the layers whose outputs a BatchNorm reads, and nothing else."""
        gave = {output: path for path, calls in self.calls.items() for _, output in calls}
        for path, calls in self.calls.items():
            if not is_batch_norm(self.layers[path].layer):
                continue
            sources = {gave.get(x) for x, _ in calls}
            source = sources.pop() if len(sources) == 1 else None
            call = self.layers.get(source)
            if call is None or _is_norm(call.layer) or len(self.calls[source]) != len(calls):
                continue
            if all(self.numbers.reads[output] == 1 for _, output in self.calls[source]):
                call.norm = path

    def find_unrun(self) -> list[str]:
        """Paths of the largest parts of which no weight was used."""
        ran = {path for weight, path in self.weights.items() if weight in self.used}
        around = {part for path in ran for part in _ancestors(path)}
        unrun = [path for weight, path in self.weights.items() if weight not in self.used]
        return list(dict.fromkeys(next(part for part in _ancestors(path) if part not in around) for path in unrun))

    # What operations do.

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            # Some weights are used without a call of their layer, such as those of attention.
            self.used.update(id(x) for x in tensors_in(args) if id(x) in self.weights)
            self.numbers.follow(func, args, kwargs or {}, result)
        return result


def _ancestors(path: str) -> Iterator[str]:
    """For 'a.b.c', the paths 'a', 'a.b' and 'a.b.c'."""
    return accumulate(path.split('.'), '{}.{}'.format)


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.GroupNorm | _BatchNorm) or is_batch_norm(layer)


def _is_layer(layer: nn.Module) -> bool:
    """Whether a module is followed as one layer; the operations in all other modules are followed one by one."""
    kind = type(layer).__name__
    if isinstance(layer, nn.Conv2d):
        return kind in CONVS
    if isinstance(layer, nn.ConvTranspose2d):
        return kind == 'ConvTranspose2d' and layer.groups == 1
    if kind in DEFORMABLE:
        return layer.groups == 1
    return _is_norm(layer) or (isinstance(layer, nn.Linear) and kind == 'Linear')
