"""The command-line tools in this process: what they say, and the code they end with."""

import contextlib
import importlib.util
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

TOOLS = Path(__file__).parents[1] / 'tools'


def load_tool(name: str) -> ModuleType:
    """A tool as a module; on sys.path, its folder's test.py would hide the standard library's."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Outcome:
    """How a tool ended."""

    returncode: int
    stdout: str
    stderr: str


def run_tool(name: str, *arguments: str) -> Outcome:
    """Run a tool as if it were typed; its environment variables and its signal handler go with it."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ))
        stack.enter_context(patch('signal.signal'))
        stack.enter_context(patch.object(logging, 'raiseExceptions', False))  # handlers of earlier, closed streams
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            load_tool(name).main([*arguments])
        except SystemExit as end:
            code = end.code or 0
    return Outcome(code, out.getvalue(), err.getvalue())
