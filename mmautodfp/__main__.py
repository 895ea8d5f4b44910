"""Runs the command-line tools of the installed package: ``python -m mmautodfp prune CONFIG``; alone it lists them."""

import ast
import runpy
import sys
from pathlib import Path

TOOLS = Path(__file__).parent / '.mim' / 'tools'


def describe_tools() -> dict[str, str]:
    """Name of each tool, to the first line of its docstring."""
    texts = {path.stem: path.read_text() for path in sorted(TOOLS.glob('*.py'))}
    return {name: ast.get_docstring(ast.parse(text)).partition('\n')[0] for name, text in texts.items()}


def main() -> None:
    tools = describe_tools()
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print('usage: python -m mmautodfp TOOL ...; TOOL --help tells more\n')
        print('\n'.join(f'{tool:16}{line}' for tool, line in tools.items()))
    elif name in tools:
        sys.argv[:] = [f'python -m mmautodfp {name}', *arguments]  # the first is the program's name in the tool's help
        runpy.run_path(str(TOOLS / f'{name}.py'))['main']()
    else:
        print(f'error: there is no tool {name!r}; there are {", ".join(tools)}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
