"""Groups of settings, checked by pydantic when they are built; a wrong one is told in a sentence."""

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from .errors import AutoDFPError

T = TypeVar('T')

# Strict: 1 is no bool and 1.5 no int, whatever they could be made into. Lists do for tuples, as JSON has no other.
CHECKS = ConfigDict(strict=True, extra='forbid', allow_inf_nan=False, arbitrary_types_allowed=True)


def settings(who: str) -> Callable[[type[T]], type[T]]:
    """Make a class of annotated fields a frozen dataclass whose values are checked.

    Args:
        who (str): Whose settings they are to the user, such as 'SAC'.

    Returns:
        Callable: A class decorator. What it decorates raises :class:`AutoDFPError` for a value of a wrong type or out
        of the range that its annotation names.
    """

    def decorate(cls: type[T]) -> type[T]:
        checked = dataclass(frozen=True, config=CHECKS)(cls)
        check = checked.__init__

        @functools.wraps(check)
        def init(self, *args, **kwargs):
            try:
                check(self, *args, **kwargs)
            except ValidationError as error:
                raise AutoDFPError(describe(error, who, [field.name for field in fields(checked)])) from None

        checked.__init__ = init
        return checked

    return decorate


def describe(error: ValidationError, who: str, known: list[str]) -> str:
    """The first of pydantic's findings as a sentence.

    Args:
        error (ValidationError): What pydantic found.
        who (str): Whose settings they are.
        known (list[str]): Names of all settings.
    """
    first = error.errors()[0]
    name = '.'.join(str(part) for part in first['loc'])
    if first['type'] == 'unexpected_keyword_argument':
        return f'{who} was asked for {name}, which it does not know; it knows {", ".join(known)}'
    reason = first['msg'].removeprefix('Value error, ')
    return f'{who} was asked for {name}={first["input"]!r}: {reason[0].lower()}{reason[1:]}'
