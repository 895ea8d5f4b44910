"""What the pages are made with."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates() -> Environment:
    """Templates of the pages."""
    return Environment(
        loader=PackageLoader('mmautodfp.outputs.report', 'templates'),
        autoescape=True,  # names of classes and files, and the config's text, are the user's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
