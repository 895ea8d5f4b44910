"""What went wrong, in the user's words."""


class AutoDFPError(ValueError):
    """A request that cannot be met.

    The message is one sentence: what was asked, what was found, what to do. The tools print it without a traceback.
    """


def first_line(error: BaseException) -> str:
    """How an error's message begins; the name of its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """The end of an error's message, which is where mmengine and torch say what was wrong."""
    return (str(error).strip().splitlines() or [''])[-1].strip()


def in_one_line(error: BaseException) -> str:
    """The type of an error, and how its message begins."""
    kind, text = type(error).__name__, first_line(error)
    return kind if text == kind else f'{kind}: {text[:300]}'
