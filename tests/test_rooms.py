"""The rooms of the package: imports go down only, and nothing loose lies at its root."""

import ast
import re
from pathlib import Path

import pytest
from conftest import REPO

PACKAGE = REPO / 'mmautodfp'
#: From the ground up: a room imports from those before it.
ROOMS = [
    *('utils', 'kernels', 'graph', 'costs', 'surgery', 'reconstruction', 'rewards', 'search'),
    *('frontier', 'api', 'outputs', 'hooks', 'runs', 'deploy', 'experiments'),
]
ASIDE = {'zoo': {'utils'}}  # models and data sets that configs name: nothing imports it, but through a registry


def imported_rooms(file: Path) -> dict[str, int]:
    """Rooms that a module imports when it is imported itself, or for its annotations, with the line."""
    found = {}
    depth = len(file.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module] if node.module != 'mmautodfp' else [f'mmautodfp.{a.name}' for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [f'mmautodfp.{node.module}'] if node.module else [f'mmautodfp.{a.name}' for a in node.names]
        for name in names:
            top, _, rest = name.partition('.')
            if top == 'mmautodfp' and rest:
                found[rest.partition('.')[0]] = node.lineno
    return found


@pytest.mark.parametrize('room', [*ROOMS, *ASIDE])
def test_a_room_imports_only_from_those_below(room):
    below = ASIDE.get(room) or set(ROOMS[: ROOMS.index(room)]) | {room, 'AutoDFPError', '__version__'}
    files = [PACKAGE / 'api.py'] if room == 'api' else sorted((PACKAGE / room).rglob('*.py'))
    assert files
    for file in files:
        tree = ast.parse(file.read_text())
        guarded = {
            inner.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and getattr(node.test, 'id', '') == 'TYPE_CHECKING'
            for inner in node.body
        }
        for name, line in imported_rooms(file).items():
            assert name in below or line in guarded, f'{file.relative_to(REPO)}:{line} imports {name}'


def test_nothing_loose_lies_at_the_root_of_the_package():
    modules = {path.stem for path in PACKAGE.glob('*.py')}
    assert modules <= {'__init__', '__main__', 'api'}
    assert {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').is_file()} == set(ROOMS) - {'api'} | set(
        ASIDE
    )


def test_the_docs_list_the_rooms_from_above():
    section = (REPO / 'docs/extending.md').read_text().partition('## How the code is laid out')[2]
    listed = [name.removesuffix('.py') for name in re.findall(r'^mmautodfp/(\S+)', section, re.MULTILINE)]
    assert listed == [*reversed(ROOMS[1:]), *ASIDE]  # utils is named above the list
