"""The dense weights kept aside while a module is pruned."""

from collections.abc import Collection, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmautodfp.graph import is_batch_norm
from mmautodfp.utils import AutoDFPError

# Of each layer, the marks of the restores that have remembered it and have not been called, in their order; not the
# restores themselves, which would keep the layers in memory.
_OPEN: WeakKeyDictionary[nn.Module, list[object]] = WeakKeyDictionary()

# Attributes with the sizes of a layer. Pruning keeps them up to date, and Slim sets them to rebuild a pruned layer.
SIZES = ('in_channels', 'out_channels', 'groups', 'num_features', 'in_features', 'out_features')
SIZES += ('num_groups', 'num_channels')
OUTPUT_SIZES = ('out_channels', 'num_features', 'out_features', 'num_channels')  # a layer has one of these


def sizes_of(layer: nn.Module) -> dict[str, int]:
    """The sizes of a layer by name; ``num_features`` also of frozen norms, which have no such attribute."""
    sizes = {name: getattr(layer, name) for name in SIZES if hasattr(layer, name)}
    return sizes | dict(num_features=len(layer.running_mean)) if is_batch_norm(layer) else sizes


def _contents_of(layer: nn.Module) -> tuple[dict, dict, dict]:
    """Parameters, buffers and sizes."""
    return dict(layer._parameters), dict(layer._buffers), sizes_of(layer)


def set_sizes(layer: nn.Module, sizes: Mapping[str, int]) -> None:
    """Set sizes of a layer, except those that it has no attribute for."""
    for name, value in sizes.items():
        if hasattr(layer, name):
            setattr(layer, name, value)


class Restore:
    """Brings the dense weights back, bit for bit: the very tensors that were there before.

    Call it, or use it as a context manager. A second call does nothing.

    Raises:
        AutoDFPError: A layer has been pruned again since, and that has not been undone. Nothing is changed then.
    """

    def __init__(self):
        self._mark = object()
        self._saved: dict[nn.Module, tuple[dict, dict, dict]] = {}
        self._places: dict[tuple[nn.Module, int], Tensor] = {}

    @property
    def layers(self) -> Collection[nn.Module]:
        """All layers that have been remembered, and so may have changed."""
        return self._saved.keys()

    def remember(self, layer: nn.Module) -> nn.Module:
        """Keep the tensors and sizes of ``layer``, unless it has been remembered before, and return the layer."""
        if layer not in self._saved:
            self._saved[layer] = _contents_of(layer)
            _OPEN.setdefault(layer, []).append(self._mark)
        return layer

    def places(self, layer: nn.Module, axis: int, size: int) -> Tensor:
        """Which of a layer's dense outputs (axis 0) or inputs (1) it still has, ascending; all ``size`` at first."""
        return self._places.setdefault((layer, axis), torch.arange(size))

    def take_out(self, layer: nn.Module, axis: int, size: int, gone: Tensor) -> Tensor:
        """Note that dense outputs or inputs ``gone`` are pruned; returns the present indices of those that are left."""
        places = self.places(layer, axis, size)
        stay = ~torch.isin(places, gone.cpu())
        self._places[layer, axis] = places[stay]
        return stay.nonzero().flatten()

    def __call__(self) -> None:
        self._put_back()
        for layer in self._saved:
            if _OPEN.get(layer):  # a copy of a layer has no marks
                _OPEN[layer].pop()
        self._saved.clear()
        self._places.clear()

    def swap(self) -> None:
        """Swap the pruned weights for the dense ones; a second call swaps them back."""
        pruned = {layer: _contents_of(layer) for layer in self._saved}
        self._put_back()
        self._saved = pruned

    def _put_back(self) -> None:
        for layer in self._saved:
            if any(mark is not self._mark for mark in _OPEN.get(layer, [])[-1:]):
                raise AutoDFPError(
                    f'a pruning was to be undone, but one of its layers, a {type(layer).__name__}, has been pruned '
                    'again since; undo the later pruning first'
                )
        for layer, (*tensors, sizes) in self._saved.items():
            for now, before in zip((layer._parameters, layer._buffers), tensors, strict=True):
                now.clear()  # also of what was added, such as a bias
                now.update(before)
            set_sizes(layer, sizes)

    def changes(self, module: nn.Module) -> dict[str, dict[str, int | bool]]:
        """The new sizes of the layers of a pruned module, for :func:`mmautodfp.surgery.Slim`.

        Args:
            module (nn.Module): The module whose layers were remembered, pruned at the moment.

        Returns:
            dict[str, dict[str, int | bool]]: Path of each changed layer to the sizes that differ from the dense ones,
            and ``bias=True`` if a bias was added.
        """
        found = {}
        for path, layer in module.named_modules():
            if layer not in self._saved:
                continue
            parameters, _, sizes = self._saved[layer]
            new = {name: value for name, value in sizes_of(layer).items() if value != sizes[name]}
            if parameters.get('bias', False) is None and layer.bias is not None:
                new['bias'] = True
            if new:
                found[path] = new
        return found

    def __enter__(self) -> 'Restore':
        return self

    def __exit__(self, *_) -> None:
        self()
