"""What the pages are made with."""

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that holds them; ``kind`` such as 'image/png'."""
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def templates() -> Environment:
    """Templates of the pages."""
    return Environment(
        loader=PackageLoader('mmautodfp.outputs.report', 'templates'),
        autoescape=True,  # names of classes and files, and the config's text, are the user's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
