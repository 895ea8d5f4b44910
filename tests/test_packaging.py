"""What is installed: the files of the wheel, and its tools and configs at work in an empty folder."""

import hashlib
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
from conftest import REPO
from mmengine.config import Config
from mmengine.fileio import load

import mmautodfp

TOOLS = sorted(path.name for path in (REPO / 'tools').glob('*.py'))
BARE = ['--cfg-options', 'autodfp.compare=False', 'autodfp.report=False']


def python(*arguments: str, cwd: Path, path: Path = REPO) -> subprocess.CompletedProcess:
    env = os.environ | dict(PYTHONPATH=str(path))
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, env=env)


def test_the_model_index_names_every_coco_config_with_the_weights_it_starts_from():
    index = load(REPO / 'model-index.yml')
    assert index == dict(Import=['configs/metafile.yml'])
    content = load(REPO / 'configs/metafile.yml')
    (collection,) = content['Collections']
    models = {model['Name']: model for model in content['Models']}
    assert sorted(models) == sorted(path.stem for path in (REPO / 'configs').glob('*.py'))
    for name, model in models.items():
        assert model['In Collection'] == collection['Name']
        assert model['Config'] == f'configs/{name}.py'
        cfg = Config.fromfile(REPO / model['Config'])
        assert model['Weights'] == cfg.load_from
        preserved = 'Preserved FLOPs' if '_whole' in name else 'Preserved Parameters of the Backbone'
        assert model['Metadata'][preserved] == cfg.autodfp.budget.preserve_ratio
        assert model['Metadata']['Search Reward'].split(',')[0] == dict(
            SyntheticReward='none', CocoReward='CocoReward'
        ).get(cfg.autodfp.reward.type)


@pytest.mark.parametrize(
    ('absent', 'named'), [({'mmcv'}, 'no mmcv here'), ({'mmdet', 'mmengine'}, 'no mmengine and no mmdet here')]
)
def test_what_to_install_is_said_where_openmmlab_is_missing(absent, named):
    without = patch('importlib.util.find_spec', lambda name: None if name in absent else find_spec(name))
    with without, pytest.raises(ImportError, match=rf'{named}: .*mmautodfp\[openmmlab\].*mmautodfp\[onedl\]'):
        runpy.run_path(str(REPO / 'mmautodfp/__init__.py'))


def test_loading_a_pruned_model_imports_nothing_that_draws_or_clusters(tmp_path):
    code = """
import sys
from mmengine.registry import MODELS

SIZES = ('conv1', 'out_channels'), ('bn1', 'num_features'), ('conv2', 'in_channels')
layers = {f'layer1.0.{name}': {size: 3} for name, size in SIZES}
network = MODELS.build(dict(type='mmautodfp.Slim', module=dict(type='mmautodfp.CifarResNet', depth=8), layers=layers))
assert network.layer1[0].conv1.weight.shape[0] == 3
print(*sorted({'matplotlib', 'sklearn', 'jinja2', 'mmdet'} & set(sys.modules)))
"""
    result = python('-c', code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ''


def test_the_package_lists_its_tools_in_a_line_each(capsys):
    with patch('sys.argv', ['mmautodfp']):
        runpy.run_module('mmautodfp', run_name='__main__')
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] + '.py' for line in lines] == TOOLS
    assert 'prune           Prune a trained detector or classifier without its training data.' in lines


def test_a_tool_is_called_what_was_typed(capsys):
    for arguments, code in ((['--help'], 0), (['--episodes', 'many'], 2)):
        with patch('sys.argv', ['mmautodfp', 'prune', *arguments]), pytest.raises(SystemExit) as end:
            runpy.run_module('mmautodfp', run_name='__main__')
        assert end.value.code == code
        assert ''.join(capsys.readouterr()).startswith('usage: python -m mmautodfp prune [-h] ')


def test_a_tool_that_is_not_there_is_told(capsys):
    with patch('sys.argv', ['mmautodfp', 'prunes']), pytest.raises(SystemExit) as end:
        runpy.run_module('mmautodfp', run_name='__main__')
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no tool 'prunes'; there are ablation, ")


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves a folder behind and would take from it the next time."""
    source = tmp_path_factory.mktemp('source')
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(REPO / name, source)
    for name in ('mmautodfp', 'tools', 'configs'):
        shutil.copytree(REPO / name, source / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    out = tmp_path_factory.mktemp('wheel')
    built = python('-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(out), '.', cwd=source)
    assert built.returncode == 0, built.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    """The folder that the wheel is installed into."""
    target = tmp_path_factory.mktemp('site')
    done = python('-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', str(target), wheel, cwd=target)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.slow
def test_the_wheel_has_what_is_needed_once(wheel):
    assert wheel.name == f'mmautodfp-{mmautodfp.__version__}-py3-none-any.whl'
    with zipfile.ZipFile(wheel) as archive:
        content = {name.removeprefix('mmautodfp/'): archive.read(name) for name in archive.namelist()}
    assert [f'.mim/tools/{name}' for name in TOOLS if f'.mim/tools/{name}' not in content] == []
    configs = [
        path.relative_to(REPO).as_posix() for path in (REPO / 'configs').rglob('*') if path.suffix in ('.py', '.pth')
    ]
    assert [name for name in configs if f'.mim/{name}' not in content] == []
    assert {'.mim/model-index.yml', '.mim/configs/metafile.yml'} <= content.keys()
    assert [name for name in content if 'results' in name and name.endswith('.json')] == []
    # MMEngine's Python style wants its bases elsewhere.
    twice = {f'configs/_base_/{name}.py' for name in ('autodfp', 'zero_data')}
    copies = Counter(hashlib.sha256(text).digest() for name, text in content.items() if text and name not in twice)
    assert set(copies.values()) == {1}
    for name in twice:
        assert content[name] == content[f'.mim/{name}']


@pytest.mark.slow
def test_an_installed_package_prunes_and_evaluates_in_an_empty_folder(installed, tmp_path):
    pruned = python(
        '-m', 'mmautodfp', 'prune', 'vgg_digits_autodfp', '--episodes=2', *BARE, cwd=tmp_path, path=installed
    )
    assert pruned.returncode == 0, pruned.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['work_dirs']
    files = [f'work_dirs/vgg_digits_autodfp/pruned.{kind}' for kind in ('py', 'pth')]
    test = installed / 'mmautodfp/.mim/tools/test.py'  # as mim starts it
    tested = python(str(test), *files, cwd=tmp_path, path=installed)
    assert tested.returncode == 0, tested.stderr
    said = [result.stdout.split('accuracy/top1: ')[-1].split()[0] for result in (pruned, tested)]
    assert said[0] == said[1]


@pytest.mark.slow
def test_mim_runs_a_tool(installed, tmp_path):
    pytest.importorskip('mim', reason='openmim is not installed')
    code = 'from mim.cli import cli; cli()'
    arguments = ['run', 'mmautodfp', 'prune', 'demo/vgg_digits_autodfp.py', '--episodes=1', *BARE]
    result = python('-c', code, *arguments, cwd=tmp_path, path=installed)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'work_dirs/vgg_digits_autodfp/pruned.py').is_file()


@pytest.mark.slow
def test_stock_mmengine_finds_the_installed_settings_for_a_config_of_ones_own(installed, tmp_path):
    (tmp_path / 'mine.py').write_text(
        'from mmengine.config import read_base\n\nwith read_base():\n'
        '    from mmautodfp.configs._base_.autodfp import *\n\nautodfp.update(num_episodes=7)\n'
    )
    code = "from mmengine.config import Config; print(Config.fromfile('mine.py').autodfp.num_episodes)"
    result = python('-c', code, cwd=tmp_path, path=installed)
    assert result.stdout.strip() == '7', result.stderr
