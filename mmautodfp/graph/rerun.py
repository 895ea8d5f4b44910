"""Running a model again after a few of its layers have changed, without the parts that do not depend on them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

Outputs = TypeVar('Outputs')
_Flat = tuple[list, Any]  # the leaves of nested lists, tuples and dicts, and their structure
SIMPLE = bool | int | float | str | None


class _Call(NamedTuple):
    """A call of a part: its arguments, its output, and the versions of the tensors in both."""

    given: _Flat
    output: _Flat
    versions: list[int]

    def holds(self) -> bool:
        """Whether no argument has been changed in place since the call began, and no output since it ended."""
        return self.versions == _versions(self.given, self.output)


class Rerun(Generic[Outputs]):
    """A run of a model that is remembered part by part.

    In later runs, a part that gets the very tensors of the first run returns its output of that run, unless one of its
    layers has changed. The outputs are those of an ordinary run, bit for bit. Meanwhile activations do not work in
    place, which would overwrite remembered tensors. The outputs of all parts are held in memory.

    Args:
        model (nn.Module): In eval mode, so that equal inputs give equal outputs.
        run (Callable): Calls the model and returns its outputs; it is called once here.

    Attributes:
        outputs (Any): What ``run`` returned in the first run.
    """

    def __init__(self, model: nn.Module, run: Callable[[], Outputs]):
        self.model, self._run = model, run
        self._calls: dict[nn.Module, list[_Call]] = {}
        with self._intercepted(model.modules(), self._remember):
            self.outputs = run()
        for part, calls in self._calls.items():
            self._calls[part] = [call for call in calls if call.holds()]

    def again(self, changed: Collection[nn.Module]) -> Outputs:
        """What ``run`` returns now.

        Args:
            changed (Collection[nn.Module]): All layers that differ from the first run.
        """
        same = [part for part in self._calls if not any(layer in changed for layer in part.modules())]
        with self._intercepted(same, self._recall):
            return self._run()

    @contextmanager
    def _intercepted(self, parts: Iterable[nn.Module], answer: Callable) -> Iterator[None]:
        """Replace the forward of parts with ``answer(part, forward, args, kwargs)``, and let no layer work in place."""
        before = [(part, part.__dict__.get('forward')) for part in parts]
        in_place = [part for part in self.model.modules() if getattr(part, 'inplace', False) is True]

        def forward_of(part: nn.Module) -> Callable:
            forward = part.forward
            return lambda *args, **kwargs: answer(part, forward, args, kwargs)

        try:
            for part, _ in before:
                part.forward = forward_of(part)
            for part in in_place:
                part.inplace = False
            yield
        finally:
            for part in in_place:
                part.inplace = True
            for part, own in before:
                if own is None:
                    del part.forward
                else:
                    part.forward = own

    def _remember(self, part: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        given = tree_flatten((args, kwargs))
        versions = _versions(given)
        output = forward(*args, **kwargs)
        flat = tree_flatten(output)  # now: the caller may change lists in the output later
        # A call is not remembered if it changed its arguments' lists, or if tensors may be hidden in other objects.
        if _is_same(given, tree_flatten((args, kwargs))) and _is_plain(given) and _is_plain(flat):
            self._calls.setdefault(part, []).append(_Call(given, flat, versions + _versions(flat)))
        return output

    def _recall(self, part: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        given = tree_flatten((args, kwargs))
        for call in self._calls[part]:
            if _is_same(call.given, given) and call.holds():
                return tree_unflatten(*call.output)
        return forward(*args, **kwargs)


def _versions(*values: _Flat) -> list[int]:
    """The version counter of each tensor, which every change in place raises."""
    return [leaf._version for leaves, _ in values for leaf in leaves if isinstance(leaf, Tensor)]


def _is_plain(value: _Flat) -> bool:
    return all(isinstance(leaf, Tensor | SIMPLE) for leaf in value[0])


def _is_same(one: _Flat, other: _Flat) -> bool:
    """Whether both hold the very same tensors and equal plain values, in the same structure."""
    if one[1] != other[1]:
        return False
    pairs = zip(one[0], other[0], strict=True)
    return all(a is b or (isinstance(a, SIMPLE) and type(a) is type(b) and a == b) for a, b in pairs)
