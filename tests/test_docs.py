"""What README and docs name is there: files, anchors, commands, settings, imports, rooms."""

import ast
import importlib
import re
from dataclasses import fields
from importlib.util import find_spec
from inspect import signature
from itertools import product
from pathlib import Path

import pytest
from conftest import REPO

from mmautodfp import reconstruction, rewards
from mmautodfp.costs import LatencyBudget
from mmautodfp.hooks.settings import RENAMED, Clustering, HookSettings
from mmautodfp.reconstruction import SyntheticImages
from mmautodfp.search import SACConfig, Weights
from mmautodfp.utils import registry

CARDS = [REPO / 'configs/demo/README.md', REPO / 'configs/bccd/README.md']
PAGES = [REPO / 'README.md', *CARDS, *sorted((REPO / 'docs').glob('*.md'))]
FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.DOTALL | re.MULTILINE)
PATH = re.compile(r'(?<![\w/.$~-])(?:configs|tools|tests|mmautodfp|docs|\.github)/[\w./*{},-]*\w[/}]?')
FOREIGN = {'tools/train.py'}  # MMDetection's
REGISTRIES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]

pages = pytest.mark.parametrize('page', PAGES, ids=[str(page.relative_to(REPO)) for page in PAGES])


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def code_of(page: Path) -> list[str]:
    """Lines of code blocks, continued ones joined, and code spans."""
    text = page.read_text()
    lines = [line for _, block in FENCE.findall(text) for line in block.replace('\\\n', ' ').splitlines()]
    return lines + [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', FENCE.sub('', text))]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r'^#+ (.*)$', FENCE.sub('', page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def links(page: Path) -> list[str]:
    targets = re.findall(r'\]\(([^)]+)\)', FENCE.sub('', page.read_text()))
    return [target for target in targets if '://' not in target]


def expand(path: str) -> list[str]:
    """Each of a shell's {a,b}."""
    parts = [part.strip('{}').split(',') for part in re.split(r'(\{[^}]*\})', path)]
    return [''.join(choice) for choice in product(*parts)]


@pages
def test_links_lead_somewhere(page):
    for target in links(page):
        name, _, anchor = target.partition('#')
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pages
def test_a_table_of_contents_has_every_section(page):
    head, *sections = FENCE.sub('', page.read_text()).split('\n## ')
    named = re.findall(r'^- \[(.*)\]\(#', head, re.MULTILINE)
    assert not named or named == [section.partition('\n')[0] for section in sections]


def test_the_readme_is_short_and_leads_to_every_page():
    assert len((REPO / 'README.md').read_bytes()) <= 15_000
    found = {(REPO / target.partition('#')[0]).resolve() for target in links(REPO / 'README.md')}
    assert found >= set((REPO / 'docs').glob('*.md'))
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page) if target.endswith('.png')}
    assert shown == set((REPO / '.github').glob('*.png'))


@pages
def test_files_that_are_named_are_there(page):
    for code in code_of(page):
        for path in PATH.findall(code):
            for one in expand(path):
                assert one in FOREIGN or any(REPO.glob(one.rstrip('/'))), f'{one} in {code!r}'


def test_result_files_that_are_named_are_there():
    recorded = {path.name for path in (REPO / 'configs').rglob('*.json')}
    for page in (REPO / 'docs/measurements.md', REPO / 'docs/reproduction.md'):
        names = re.findall(r'`(?:\w+/)*([\w*]+\.json)`', page.read_text())
        assert len(names) > 1
        for name in set(names) - {'summary.json'}:
            assert any(Path(known).match(name) for known in recorded), name


@pages
def test_commands_have_the_options_that_are_named(page):
    shared = (REPO / 'mmautodfp/utils/command_line.py').read_text()
    for code in code_of(page):
        found = re.match(
            r'(?:.*?(?:tools/|run mmautodfp |-m mmautodfp ))(\w+)(?:\.py|\.sh)?(.*)', code.partition('#')[0]
        )
        if found is None or '$tools' in code or found[1] in ('train', 'TOOL', 'constraints'):
            continue
        name = 'prune' if found[1] == 'dist_prune' else found[1]
        tool = (REPO / f'tools/{name}.py').read_text() + shared
        for option in re.findall(r'(?<!\w)--[a-z][\w-]*', found[2]):
            assert f"'{option}'" in tool, code


def settings_of(name: str) -> set[str] | None:
    """What ``autodfp.<name>.`` may be followed by; None if it is a plain value."""
    compensations = (reconstruction.SyntheticLeastSquares, reconstruction.SimilarityReconstructor)
    paid = (rewards.CocoReward, rewards.AccuracyReward, rewards.SyntheticReward)
    types = dict(agent=(SACConfig,), reconstructor=compensations, reward=paid, budget=(LatencyBudget,))
    types |= dict(clustering=(Clustering,), objectives=(Weights,))
    return {argument for cls in types[name] for argument in signature(cls).parameters} if name in types else None


@pages
def test_settings_that_are_named_exist(page):
    known = {field.name for field in fields(HookSettings)} | set(RENAMED)
    for code in code_of(page):
        for path in re.findall(r'(?<![\w.])autodfp\.([a-z_.]+)', code):
            name, *rest = path.split('.')
            if name in ('py', 'update'):
                continue
            assert name in known, code
            if rest:
                assert rest[0] in settings_of(name) | {'type', '_delete_'}, code
            if rest[1:] and rest[0] == 'images':
                assert rest[1] in signature(SyntheticImages).parameters, code


def test_the_table_of_settings_has_what_users_set():
    text = (REPO / 'docs/usage.md').read_text()
    rows = [line for line in text.partition('| `autodfp.` |')[2].partition('\n\n')[0].splitlines() if '| `' in line]
    named = {name for row in rows for name in re.findall(r'`(\w+)`', row.split('|')[1])}
    assert named <= {field.name for field in fields(HookSettings)}
    unnamed = {field.name for field in fields(HookSettings)} - named
    assert unnamed == {'clustering', 'bias_threshold', 'log_interval', 'resume'}


@pages
def test_names_of_the_package_resolve(page):
    for code in code_of(page):
        for path in re.findall(r'\bmmautodfp((?:\.[A-Za-z]\w*)+)', code):
            names = path[1:].split('.')
            if code.startswith('from ') or '/' in code:  # imports are tested below
                continue
            if len(names) == 1 and any(one.get(names[0]) for one in REGISTRIES):
                continue
            module, attribute = '.'.join(['mmautodfp', *names[:-1]]), names[-1]
            found = importlib.import_module(module)
            assert hasattr(found, attribute) or find_spec(f'{module}.{attribute}'), code


@pages
def test_python_blocks_compile_and_their_imports_resolve(page):
    for block in blocks(page, 'python'):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] == 'mmautodfp':
                names = [alias.name for alias in node.names]
                if names == ['*']:
                    assert find_spec(node.module), node.module
                else:
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, name) for name in names), node.module
