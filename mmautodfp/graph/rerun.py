"""Running a model again after a few of its layers have changed, without what they do not reach."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

Outputs = TypeVar('Outputs')


class _Call(NamedTuple):
    """A call of a part, and what it gave."""

    given: tuple[list, Any]  # flat, with the structure
    output: Any
    versions: list[int]

    def holds(self) -> bool:
        """Whether nothing has worked in place on what was given or came out, since it was given or came out."""
        return self.versions == _versions(self.given[0]) + _versions(self.output)

    def matches(self, given: tuple[list, Any]) -> bool:
        """Whether a part is given the very same."""
        (mine, form), (theirs, other) = self.given, given
        return form == other and all(map(_is_same, mine, theirs))


class Rerun(Generic[Outputs]):
    """A run of a model that is remembered part by part.

    When it is run again, a part that is called with the very tensors of the first run gives what it gave then, unless
    one of its layers has changed. The outputs are those of an ordinary run, bit for bit. All that the parts gave is
    held in memory; activations do not work in place meanwhile, or what came before them would be lost.

    Args:
        model (nn.Module): In eval mode, so that it gives the same whenever it is given the same.
        run (Callable): Calls it; run once at the beginning.

    Attributes:
        outputs (Any): What ``run`` gave then.
    """

    def __init__(self, model: nn.Module, run: Callable[[], Outputs]):
        self.model, self._run = model, run
        self._calls: dict[nn.Module, list[_Call]] = {}
        with self._intercepted(model.modules(), self._remember):
            self.outputs = run()
        for part, calls in self._calls.items():
            self._calls[part] = [call for call in calls if call.holds()]

    def again(self, changed: Collection[nn.Module]) -> Outputs:
        """What ``run`` gives now.

        Args:
            changed (Collection[nn.Module]): All layers that are not as they were in the first run.
        """
        same = [part for part in self._calls if not any(layer in changed for layer in part.modules())]
        with self._intercepted(same, self._recall):
            return self._run()

    @contextmanager
    def _intercepted(self, parts: Collection[nn.Module] | Iterator[nn.Module], answer: Callable) -> Iterator[None]:
        """Let ``answer(part, forward, args, kwargs)`` stand in for what parts do when they are called."""
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
        versions = _versions(given[0])
        output = forward(*args, **kwargs)
        self._calls.setdefault(part, []).append(_Call(given, output, versions + _versions(output)))
        return output

    def _recall(self, part: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        given = tree_flatten((args, kwargs))
        for call in self._calls[part]:
            if call.matches(given):
                return tree_map(lambda leaf: leaf, call.output)  # lists of its own, which the caller may change
        return forward(*args, **kwargs)


def _versions(value: Any) -> list[int]:
    """How often each tensor has been worked on in place."""
    return [leaf._version for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, bool | int | float | str) and type(one) is type(other) and one == other)
