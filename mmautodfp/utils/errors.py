"""The error for requests that cannot be met, and other errors in short."""


class AutoDFPError(ValueError):
    """A request that cannot be met.

    The message is one sentence: what was asked, what was found, what to do. The tools print it without a traceback.
    """


def first_line(error: BaseException) -> str:
    """First line of an error's message; the name of its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """Last line of an error's message, in which mmengine and torch say what was wrong."""
    return (str(error).strip().splitlines() or [''])[-1].strip()


def in_one_line(error: BaseException) -> str:
    """Type of an error and first line of its message."""
    kind, text = type(error).__name__, first_line(error)
    return kind if text == kind else f'{kind}: {text[:300]}'
