"""Arguments against the types that a signature asks for, so that a wrong one is told before anything is computed."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import AutoDFPError


def check_types(function: Callable, arguments: Mapping[str, Any], who: str) -> None:
    """Refuse arguments of other types than annotated. Of annotations that are no plain types, everything is accepted.

    An int is a float too, a bool is neither, and a float must be finite.

    Args:
        function (Callable): A function, or a class, of which the constructor counts.
        arguments (Mapping[str, Any]): By name; those that the signature does not name are not looked at.
        who (str): Whose arguments they are, for the message, such as "budget 'ParamBudget'".

    Raises:
        AutoDFPError: An argument has another type; the message names it and what it takes.
    """
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    for name, value in arguments.items():
        if name in hints and not _fits(value, hints[name]):
            raise AutoDFPError(
                f'{who} was asked for {name}={_short(value)}, which is {_kind(value)}; it takes {_words(hints[name])}'
            )


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin in (list, tuple, Sequence):
        parts = [part for part in typing.get_args(hint) if part is not ...]
        return isinstance(value, list | tuple) and (len(parts) != 1 or all(_fits(item, parts[0]) for item in value))
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), [p for p in typing.get_args(hint) if p is not ...]
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(dict.fromkeys(_words(part) for part in parts))
    if origin in (list, tuple, Sequence):
        return f'a list of {_words(parts[0])}' if parts else 'a list'
    if origin in (dict, Mapping):
        return 'a dict'
    names = {int: 'a whole number', float: 'a finite number', str: 'a word', bool: 'True or False', dict: 'a dict'}
    return 'None' if hint is type(None) else names.get(hint) or getattr(hint, '__name__', str(hint))


def _kind(value: Any) -> str:
    return 'None' if value is None else f'a {type(value).__name__}'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
