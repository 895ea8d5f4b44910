"""Two hundred generated bad configs and inputs: exit code 2, one clear sentence, no traceback of other packages."""

import copy
import itertools
import math

import pytest
import torch
from conftest import REPO
from in_process import run_tool
from mmdet.registry import MODELS
from mmengine.config import Config

from mmautodfp.runs import build_runner
from mmautodfp.utils import AutoDFPError

NAN, INF = math.nan, math.inf
COUNT = [0, -1, 2.5, 'many', [], {}, NAN, None, True]
SHARE = [0, -0.1, 1.5, 'half', NAN, INF, [0.5], {}]
WORD = ['', 'magic', 3, ['a'], {}]
SETTINGS = {
    'autodfp.num_episodes': COUNT,
    'autodfp.log_interval': COUNT,
    'autodfp.channel_divisor': COUNT,
    'autodfp.seed': ['one', 1.5, [], None],
    'autodfp.p_min': SHARE,
    'autodfp.p_max': SHARE,
    'autodfp.bias_threshold': ['half', NAN, [], None],
    'autodfp.target': ['', 3, [], 'trunk', 'backbone.layer9', 'data_preprocessor', ['backbone', 'trunk'], None],
    'autodfp.budget': ['half', 3, [], [3], [dict(type='ParamBudget'), dict(type='Price')]],
    'autodfp.budget.type': WORD,
    'autodfp.budget.preserve_ratio': [*SHARE, 1e-4],
    'autodfp.budget.limit': [*SHARE, '30ms', '12 apples', '-5M', '0%', '101%', '1k'],
    'autodfp.budget.scope': WORD,
    'autodfp.budget.points': [3],
    'autodfp.agent': ['SAC', 3],
    'autodfp.agent.type': WORD,
    'autodfp.agent.batch_size': [v for v in COUNT if v is not True],
    'autodfp.agent.actor_lr': [0, -1, 'fast', NAN, INF, [], None],
    'autodfp.agent.tau': SHARE,
    'autodfp.agent.hidden_sizes': [['a'], [0], 'wide', [2.5]],
    'autodfp.agent.speed': [3],
    'autodfp.reconstructor': ['none', 3],
    'autodfp.reconstructor.type': WORD,
    'autodfp.reconstructor.normalization': WORD,
    'autodfp.reward': ['mAP', 3],
    'autodfp.reward.type': WORD,
    'autodfp.reward.metric': WORD,
    'autodfp.reward.num_images': [v for v in COUNT if v is not None],
    'autodfp.reward.precision': WORD,
    'autodfp.reward.seed': [-1, 'one', 1.5],
    'autodfp.reward.stages': [[0.5, 0.2], ['a'], 'half', [2], [NAN]],
    'autodfp.reward.cache_gb': ['all', NAN, [], None],
    'autodfp.racing': ['fast', 3, dict(speed=2), dict(risk=7), dict(warmup='x'), [1]],
    'autodfp.clustering': ['x', 3, dict(radius=1), dict(eps='x'), dict(min_samples=0), dict(eps=-1)],
    'autodfp.opening_lams': [[2.0], ['a'], 'half', [NAN], 0.5],
    'autodfp.speed': [1],
    'autodfp': [None, 3, [], 'x', dict(budget=3), dict(speed=1)],
    'model': [None, 3, 'FasterRCNN', [], dict(type='Magic'), dict(type='FasterRCNN', speed=3)],
    'model.type': ['Magic', 3, None],
    'model.backbone': [3, dict(type='Magic'), dict(type='ResNet', depth=7)],
    'model.backbone.depth': [7, 'deep', None, 18],
    'model.neck.in_channels': [[1, 2, 3, 4], 'x', None],
    'load_from': [
        None,
        '',
        3,
        'absent.pth',
        'configs',
        'README.md',
        'https://localhost:9/absent.pth',
        'https://localhost:x/a.pth',
    ],
    'val_dataloader': [None, 3, {}],
    'val_dataloader.dataset': [None, 3, {}, dict(type='Magic'), dict(type='RepeatDataset', dataset=dict(ann_file='x'))],
    'val_dataloader.dataset.ann_file': ['absent.json', 'annotations', 3],
    'val_dataloader.dataset.pipeline': [[dict(type='Magic')], 3, [3]],
    'test_dataloader': [None, 3],
    'test_dataloader.dataset.type': ['Magic', 3, None],
    'test_evaluator': [None, dict(type='Magic'), 3, [], dict(type='CocoMetric', ann_file=3)],
    'test_evaluator.metric': ['magic'],
    'test_cfg': [None, 3, dict(type='Magic')],
    'default_hooks': [3, dict(logger=dict(type='Magic'))],
    'custom_hooks': [3, [3], [dict(type='Magic')]],
    'visualizer': [3, dict(type='Magic')],
}
# Told by what is built of the config, which takes a second each: one of each kind is enough for every day.
LATE = {
    'autodfp.target',
    'autodfp.budget.preserve_ratio',
    'model.type',
    'model.backbone',
    'model.backbone.depth',
    'model.neck.in_channels',
    'val_dataloader.dataset.pipeline',
    'test_dataloader.dataset.type',
    'test_cfg',
    'default_hooks',
}
CASES = [
    pytest.param(key, value, marks=pytest.mark.slow if key in LATE and index else [], id=f'{key}={str(value)[:30]}')
    for key, values in SETTINGS.items()
    for index, value in enumerate(values)
]


@pytest.fixture(scope='module')
def base(small_demo) -> dict:
    """The demo's config as plain data, small, at the shipped weights."""
    cfg = Config.fromfile(REPO / 'configs/demo/faster_rcnn_digits_autodfp.py')
    cfg.merge_from_dict(small_demo | {'load_from': str(REPO / 'configs/demo/faster_rcnn_digits.pth')})
    return cfg.to_dict()


def change(config: dict, key: str, value) -> dict:
    config = copy.deepcopy(config)
    *path, last = key.split('.')
    place = config
    for part in path:
        place = place[part]
    place[last] = value
    return config


@pytest.fixture
def refuse():
    """Run a tool in this process; its one sentence, after checking the exit code."""

    def run(tool: str, *arguments: str) -> str:
        outcome = run_tool(tool, *arguments)
        assert outcome.returncode == 2
        assert 'Traceback' not in outcome.stderr
        sentence = outcome.stderr.strip().splitlines()[-1]
        assert sentence.startswith('error: ')
        assert 20 < len(sentence) < 600
        return sentence

    return run


@pytest.mark.parametrize(('key', 'value'), CASES)
def test_a_bad_setting_ends_with_code_2_and_a_sentence(base, refuse, tmp_path, key, value):
    config = tmp_path / 'bad.py'
    content = change(base, key, value)
    config.write_text('nan, inf = float("nan"), float("inf")\n' + ''.join(f'{k} = {v!r}\n' for k, v in content.items()))
    refuse('prune', str(config), f'--work-dir={tmp_path}/w')
    assert not (tmp_path / 'w/bad.py').exists()  # a run that fails keeps no config beside earlier results


@pytest.mark.parametrize(
    ('key', 'value', 'said'),
    [('autodfp.p_min', 0, 'p_min'), ('autodfp.racing', dict(speed=2), 'speed'), ('autodfp.agent.tau', 2, 'tau')],
)
def test_settings_of_the_search_are_told_before_a_model_is_built(base, refuse, tmp_path, key, value, said):
    config = tmp_path / 'bad.py'
    content = change(change(base, key, value), 'model', 'nothing that could be built')
    config.write_text(''.join(f'{k} = {v!r}\n' for k, v in content.items()))
    assert said in refuse('prune', str(config), f'--work-dir={tmp_path}/w')


PICTURES = ['--images', 'pictures']
LEAST_SQUARES = ['--cfg-options', 'autodfp.reconstructor.type=SyntheticLeastSquares']


@pytest.mark.parametrize(
    ('tool', 'arguments', 'said'),
    [
        ('prune', ['--preserve-ratio', '0.5', '--cfg-options', 'autodfp.budget=3'], 'asked for budget=3; it must be'),
        ('prune', ['--preserve-ratio', '0.5', '--cfg-options', 'autodfp.budget.limit=1M'], 'both set the limit; leave'),
        ('prune', [*PICTURES, '--cfg-options', 'autodfp.reconstructor=none'], "reconstructor='none'; it"),
        ('prune', [*PICTURES, *LEAST_SQUARES, 'autodfp.reconstructor.images=3'], 'asked for images=3; it must be'),
        ('prune', [*PICTURES, *LEAST_SQUARES], 'read from pictures, but there is no such folder'),
        ('frontier', [*PICTURES, *LEAST_SQUARES], 'read from pictures, but there is no such folder'),
        ('frontier', ['--points', '1', '--cfg-options', 'model=3'], 'asked for points=1; it must be'),
        ('frontier', ['--cfg-options', 'autodfp.budget=3'], 'asked for budget=3; it must be'),
        ('frontier', ['--no-data', '--cfg-options', 'autodfp.reward=mAP'], "asked for reward='mAP'; it must be"),
        ('frontier', ['--no-data', '--cfg-options', 'autodfp.reconstructor=none'], "reconstructor='none'; it must be"),
    ],
)
def test_a_bad_setting_that_the_command_line_adds_to_is_told_in_a_sentence(refuse, tmp_path, tool, arguments, said):
    config = str(REPO / 'configs/demo/vgg_digits_autodfp.py')
    assert said in refuse(tool, config, '--work-dir', str(tmp_path), *arguments)


FILES = {
    'syntax.py': b'model = dict(\n',
    'raises.py': b'raise RuntimeError("no")\n',
    'divides.py': b'x = 1 / 0\n',
    'imports.py': b'import absent_package\n',
    'based.py': b"_base_ = './absent.py'\n",
    'empty.py': b'',
    'binary.py': b'\x00\xff\xfe' * 9,
    'list.json': b'[1, 2]',
    'broken.json': b'{"model": ',
    'config.txt': b'model = 3',
}


@pytest.mark.parametrize(('tool', 'extra'), [('prune', ()), ('test', ('absent.pth',)), ('export_onnx', ())])
@pytest.mark.parametrize('name', FILES)
def test_a_bad_config_file_ends_with_code_2_and_a_sentence(refuse, tmp_path, tool, extra, name):
    (tmp_path / name).write_bytes(FILES[name])
    sentence = refuse(tool, str(tmp_path / name), *extra, f'--work-dir={tmp_path / "w"}')
    if name == 'syntax.py':
        assert 'cannot be read: SyntaxError' in sentence


CHECKPOINTS = dict(
    list='holds a list',
    nothing='are missing',
    number="holds no 'state_dict'",
    strings="holds no 'state_dict'",
    missing='does not fit the model of the config: of its',
    reshaped='have other shapes',
    code='--trust-checkpoint',
    truncated='damaged',
    text='damaged',
    void='damaged',
    folder='there is no such file',
    absent='there is no such file',
)


def write_checkpoints(folder) -> None:
    state = torch.load(REPO / 'configs/demo/faster_rcnn_digits.pth')['state_dict']
    first, *rest = state
    contents = dict(
        list=[1, 2],
        nothing={},
        number=dict(state_dict=3),
        strings=dict(state_dict=dict(a='b')),
        missing=dict(state_dict={name: state[name] for name in rest}),
        reshaped=dict(state_dict=state | {first: torch.zeros(2, 2)}),
        code=dict(state_dict=state, hook=itertools.count()),
    )
    for name, content in contents.items():
        torch.save(content, folder / f'{name}.pth')
    whole = (REPO / 'configs/demo/faster_rcnn_digits.pth').read_bytes()
    (folder / 'truncated.pth').write_bytes(whole[: len(whole) // 2])
    (folder / 'text.pth').write_text('weights')
    (folder / 'void.pth').write_bytes(b'')
    (folder / 'folder.pth').mkdir()


def test_bad_checkpoints_end_with_code_2_and_a_sentence(base, refuse, digits_root, tmp_path):
    config = tmp_path / 'good.py'
    config.write_text(''.join(f'{key} = {value!r}\n' for key, value in base.items()))
    write_checkpoints(tmp_path)
    sources = {str(tmp_path / f'{name}.pth'): said for name, said in CHECKPOINTS.items()}
    for source, said in (sources | {'http://localhost:9/x.pth': 'cannot be fetched'}).items():
        for tool in ('prune', 'test'):
            sentence = refuse(tool, str(config), source, f'--work-dir={tmp_path}/w')
            assert 'checkpoint' in sentence
            assert said in sentence


def test_a_work_dir_that_cannot_be_made_is_not_blamed_on_the_config(base, refuse, digits_root, tmp_path):
    config = tmp_path / 'good.py'
    config.write_text(''.join(f'{key} = {value!r}\n' for key, value in base.items()))
    sentence = refuse('prune', str(config), f'--work-dir={config}/inside')
    assert f'run in the work dir {config}/inside, but a file or folder cannot be used: [Errno 20] Not a' in sentence


@pytest.mark.parametrize(
    'arguments',
    [
        ['configs/demo/absent.py', '--ratios', '0.5'],
        ['configs/demo/faster_rcnn_digits_autodfp.py', '--ratios', '1.5'],
        ['configs/demo/faster_rcnn_digits_autodfp.py', '--ratios', 'nan'],
        ['configs/demo/faster_rcnn_digits.py', '--ratios', '0.5'],
    ],
)
def test_a_bad_sweep_ends_with_code_2_and_a_sentence(refuse, tmp_path, arguments):
    refuse('sweep', *arguments, f'--work-dir={tmp_path}')


def test_a_model_that_cannot_be_built_is_told_in_a_sentence_by_ranks_on_a_cpu_too(base, monkeypatch, tmp_path):
    monkeypatch.setattr('torch.distributed.init_process_group', lambda *_: None)
    monkeypatch.setattr('mmengine.runner.Runner.from_cfg', lambda cfg: MODELS.build(cfg.model))
    (tmp_path / 'x.py').write_text('')
    content = change(base, 'model.type', 'Magic') | dict(launcher='pytorch', work_dir=str(tmp_path))
    cfg = Config(content, filename=str(tmp_path / 'x.py'))
    with pytest.raises(AutoDFPError, match=r'x\.py does not describe what can be built: KeyError .*Magic'):
        build_runner(cfg)
