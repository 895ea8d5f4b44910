"""Settings and arguments, checked by pydantic; a wrong one ends in one sentence."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from .errors import AutoDFPError

T = TypeVar('T')

# Strict: 1 is no bool and 1.5 no int, though they could be converted.
CHECKS = ConfigDict(strict=True, extra='forbid', allow_inf_nan=False, arbitrary_types_allowed=True)

Count = Annotated[int, Field(ge=1)]
TwoOrMore = Annotated[int, Field(ge=2)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Several = Annotated[tuple[T, ...], Field(strict=False)]  # or a list: JSON has no tuples

# What pydantic says that a value should be, in plain words.
_PLAIN_WORDS = {
    'a valid integer': 'a whole number',
    'a valid number': 'a number',
    'a valid string': 'a string',
    'a valid boolean': 'True or False',
    'a valid dictionary': 'a dict',
    'a valid list': 'a list',
    'a valid tuple': 'a list',
    'an instance of Sequence': 'a list',
}


def settings(who: str) -> Callable[[type[T]], type[T]]:
    """Decorate a class of annotated fields: it becomes a frozen dataclass that checks its values.

    For a value of a wrong type, or out of the range that its annotation names, it raises an :class:`AutoDFPError`.

    Args:
        who (str): Whose settings they are to the user, such as 'SAC'.
    """

    def decorate(cls: type[T]) -> type[T]:
        made = dataclass(frozen=True, config=CHECKS)(cls)
        check, known = made.__init__, [field.name for field in fields(made)]

        @functools.wraps(check)
        def init(self, *args, **kwargs):
            try:
                check(self, *args, **kwargs)
            except ValidationError as error:
                asked = dict(zip(known, args, strict=False)) | kwargs
                raise AutoDFPError(_describe(error, who, asked, known)) from None

        made.__init__ = init
        return made

    return decorate


def checked(who: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorate a function or constructor: it checks its arguments as :func:`check_arguments` does before it is run.

    Args:
        who (str): Whose arguments they are to the user, such as 'CMAES'.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        signature = inspect.signature(function)
        known = ', '.join(name for name in signature.parameters if name not in ('self', 'cls'))

        @functools.wraps(function)
        def call(*args, **kwargs):
            try:
                arguments = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise AutoDFPError(f'{who}: {error}; known are {known}') from None
            check_arguments(function, arguments, who)
            return function(*args, **kwargs)

        return call

    return decorate


def require_known(function: Callable, names: Iterable[str], who: str, own: Iterable[str] = ()) -> None:
    """Raise an :class:`AutoDFPError` that lists what is known if a name is no argument of a function.

    Args:
        function (Callable): The function.
        names (Iterable[str]): The names.
        who (str): Who was asked for them, for the message.
        own (Iterable[str]): Other arguments that it knows. Defaults to none.
    """
    known = dict.fromkeys((*own, *inspect.signature(function).parameters))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AutoDFPError(f'{who} was asked for {unknown[0]}, which it does not know; it knows {", ".join(known)}')


def check_arguments(function: Callable, arguments: Mapping[str, Any], who: str) -> None:
    """Refuse arguments that the annotations of a signature do not allow.

    Args:
        function (Callable): A function, or a class for its constructor.
        arguments (Mapping[str, Any]): By name; those without an annotation are not checked.
        who (str): Whose arguments they are, for the message, such as "budget 'ParamBudget'".

    Raises:
        AutoDFPError: One is of another type, out of its range or not finite; the message names it and what it takes.
    """
    adapter = _adapter(function.__init__ if inspect.isclass(function) else function)
    try:
        adapter.validate_python(dict(arguments))
    except ValidationError as error:
        raise AutoDFPError(_describe(error, who, arguments)) from None


@functools.cache
def _adapter(function: Callable) -> TypeAdapter:
    hints = typing.get_type_hints(function, include_extras=True)
    arguments = TypedDict('arguments', {name: _loosen(hint) for name, hint in hints.items()}, total=False)
    arguments.__pydantic_config__ = CHECKS | ConfigDict(extra='ignore')
    return TypeAdapter(arguments)


def _loosen(hint: Any) -> Any:
    """The same annotation, where a list will do for a tuple, a tuple for a list, and any instance for a dataclass."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_loosen(part) for part in parts)]  # noqa: UP007, of as many as there are
    if is_dataclass(hint):  # pydantic would check its fields
        return InstanceOf[hint]
    return Annotated[hint, Field(strict=False)] if origin in (list, tuple) else hint


def _describe(error: ValidationError, who: str, asked: Mapping[str, Any], known: Sequence[str] = ()) -> str:
    """The first of pydantic's findings as a sentence."""
    found = error.errors()
    place, kind = found[0]['loc'], found[0]['type']
    if not place:  # an error of the class's own __post_init__
        return found[0]['msg'].removeprefix('Value error, ')
    name = known[place[0]] if place[0] in range(len(known)) else place[0]
    if kind.startswith('unexpected'):
        return f'{who} was asked for {name}, which it does not know; it knows {", ".join(known)}'
    if name not in asked:
        return f'{who} needs {name}, which is not given'
    # If several types are allowed, there is a finding for each.
    reasons = [item['msg'].removeprefix('Value error, ') for item in found if item['loc'][0] == place[0]]
    wanted = [msg.removeprefix('Input should be ') for msg in reasons if msg.startswith('Input should be ')]
    wanted = dict.fromkeys(_PLAIN_WORDS.get(words, words) for words in wanted)
    index = next((part for part in place[1:] if isinstance(part, int)), None)
    alone = index is None or not isinstance(asked[name], Sequence | Mapping)  # one number may stand for several
    subject = 'it' if alone else f'item {index + 1} of it'
    choice = ' or '.join(wanted).replace(' or True or False', ', True or False')
    told = f'{subject} must be {choice}' if wanted else reasons[0][0].lower() + reasons[0][1:]
    if kind in ('missing', 'too_long'):
        told = f'it has too {"few" if kind == "missing" else "many"} items'
    return f'{who} was asked for {name}={_short(asked[name])}; {told}'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
