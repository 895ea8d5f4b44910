"""What went wrong, in the user's words."""


class AutoDFPError(ValueError):
    """A request that cannot be met.

    The message is one sentence: what was asked, what was found, what to do. The tools print it without a traceback.
    """
