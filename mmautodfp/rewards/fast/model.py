"""The base class of stand-ins: a copy of a model that predicts the same faster."""

import copy
import logging
import math
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmautodfp.graph import join_path
from mmautodfp.surgery.restore import set_sizes, sizes_of

T = TypeVar('T')

# Largest relative error of outputs that each precision may cause; a wrong copy has a much larger one.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def choose_precision(setting: str, device: torch.device) -> str:
    """Name of the precision that a setting means on a device.

    'auto' means float16 on a GPU, bfloat16 on a CPU with instructions for it, and float32 on other CPUs: the fastest.
    """
    if setting != 'auto':
        return setting
    if device.type == 'cuda':
        return 'float16'
    try:
        flags = Path('/proc/cpuinfo').read_text()
    except OSError:
        return 'float32'
    return 'bfloat16' if 'avx512_bf16' in flags or 'amx_bf16' in flags else 'float32'


class FastModel:
    """A copy of a model with folded norms and channels last, optionally in a lower precision.

    :meth:`update` copies what a plan has changed in the model.

    Args:
        model (nn.Module): The dense model, in eval mode.
        precision (str): 'float32', 'bfloat16' or 'float16'. Defaults to 'float32'.
    """

    def __init__(self, model: nn.Module, precision: str = 'float32'):
        self.dtype = getattr(torch, precision)
        self._copy = copy.deepcopy(model).eval().requires_grad_(False)
        self._norm_of = _find_norms(self._copy)
        for norm in self._norm_of.values():
            replace_module(self._copy, norm, nn.Identity())
        self._seen: dict[str, tuple[tuple, list[Tensor]]] = {}
        self._dropped: tuple[str, ...] = ()  # prefixes of paths that were removed from the copy
        self.update(model)

    @classmethod
    def instead_of(cls, model: nn.Module, precision: str, *batch: Any) -> 'FastModel | None':
        """Make a stand-in, and compare it with the model; None, with a logged reason, if they do not agree.

        Args:
            model (nn.Module): The dense model, in eval mode.
            precision (str): 'float32', 'bfloat16' or 'float16'.
            *batch (Any): The arguments of :meth:`disagrees` after the model.

        Raises:
            Exception: An error in the code of the package ``mmautodfp.rewards``. An error in the model's code only
                means that there is no stand-in: a model may need its norms, a precision or a memory layout.
        """
        try:
            stand_in = cls(model, precision)
            reason = stand_in.disagrees(model, *batch)
        except Exception as error:
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            if frame.f_globals.get('__name__', '').startswith('mmautodfp.rewards.'):
                raise
            reason = f'{type(error).__name__}: {error}'
        if reason is None:
            return stand_in
        print_log(f'episodes are evaluated by the model itself, not faster: {reason}', 'current', logging.WARNING)
        return None

    def disagrees(self, model: nn.Module, *batch: Any) -> str | None:
        """How outputs for a batch differ from the model's, if by more than the precision explains; None if not."""
        raise NotImplementedError

    def _differing(self, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
        """Which of some outputs differs first by more than the precision explains, as text; None if none does."""
        for what, answer in expected.items():
            error = relative_error(answer, found[what])
            if not error <= TOLERANCE[self.dtype]:
                return f'the {what} differ by {error:.1e}'
        return None

    def _dtype_of(self, name: str, layer: nn.Module) -> torch.dtype:
        """The dtype of a layer in the copy."""
        return self.dtype

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Copy the layers whose tensors or sizes are not those of the last call."""
        for name, layer in model.named_modules():
            if f'{name}.'.startswith(self._dropped):
                continue
            norm = model.get_submodule(self._norm_of[name]) if name in self._norm_of else None
            tensors = [tensor for part in (layer, norm) if part is not None for tensor in _own_tensors(part)]
            # With the sizes: some layers have no tensors.
            state = [(id(tensor), tensor._version) for tensor in tensors], sizes_of(layer)
            if name in self._seen and self._seen[name][0] == state:
                continue
            self._seen[name] = state, tensors  # kept, so that no new tensor gets the id of an old one
            if name not in self._norm_of.values():
                self._bring_over(name, layer, norm)

    def _bring_over(self, name: str, layer: nn.Module, norm: _BatchNorm | None) -> None:
        dtype = self._dtype_of(name, layer)
        state = {**layer._parameters, **layer._buffers}
        if norm is not None:
            bias = state.get('bias')
            state['weight'], state['bias'] = fuse_conv_bn_weights(
                layer.weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        own = self._copy.get_submodule(name)
        for key, tensor in state.items():
            if tensor is None:  # such as a bias that the plan before had added
                (own._buffers if key in own._buffers else own._parameters)[key] = None
                continue
            tensor = tensor.detach()
            if tensor.is_floating_point():
                tensor = tensor.to(dtype)
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            if key in own._buffers:
                own._buffers[key] = tensor
            else:
                own._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        set_sizes(own, sizes_of(layer))

    def _lay_out(self, inputs: Tensor) -> Tensor:
        """Images in the dtype and the memory layout of the copy."""
        return inputs.to(self.dtype).contiguous(memory_format=torch.channels_last)


def relative_error(expected: Tensor, found: Tensor) -> float:
    """Norm of the difference divided by the norm of ``expected``; infinite if the shapes differ."""
    if expected.shape != found.shape:
        return math.inf
    return ((expected - found).norm() / expected.norm().clamp(min=1e-12)).item()


def _find_norms(model: nn.Module) -> dict[str, str]:
    """Paths of the convolutions into which a BatchNorm can be folded, to the paths of the norms.

    As in mmcv's ``fuse_conv_bn``, a norm belongs to the convolution before it among the children of their parent. Both
    must be used in one place only.
    """
    paths = Counter(layer for _, layer in model.named_modules(remove_duplicate=False))
    found = {}
    for path, parent in model.named_modules():
        last = None
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                last = (name, child)
            elif isinstance(child, _BatchNorm) and last is not None and child.track_running_stats:
                if paths[last[1]] == paths[child] == 1 and child.num_features == last[1].out_channels:
                    found[join_path(path, last[0])] = join_path(path, name)
                last = None
    return found


def replace_module(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer at a path of a model."""
    parent, _, name = path.rpartition('.')
    model.get_submodule(parent)._modules[name] = layer


def _own_tensors(layer: nn.Module) -> list[Tensor]:
    return [t for store in (layer._parameters, layer._buffers) for t in store.values() if t is not None]


def in_threads(run: Callable[[int], T], numbers: Sequence[int], device: torch.device) -> list[T]:
    """Call ``run`` for each number; the results in the same order. On a CPU, one thread for each core takes calls.

    Much of a network (small convolutions; RoIAlign, suppression and sorting in a detector) uses one thread, however
    many torch may use. Several batches at a time keep all cores busy.
    """
    threads = min(torch.get_num_threads(), len(numbers)) if device.type == 'cpu' else 1
    if threads <= 1:
        return [run(number) for number in numbers]
    allowed = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(run, numbers))
    finally:
        torch.set_num_threads(allowed)
