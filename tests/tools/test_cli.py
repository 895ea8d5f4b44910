"""The tools as a user types them: arguments, messages and exit codes; each is started once in a process of its own."""

import os
import signal
import subprocess
import sys
from importlib import import_module
from inspect import signature

import pytest
from conftest import REPO
from in_process import TOOLS, load_tool, run_tool

from mmautodfp.utils.command_line import told

NAMES = sorted(path.stem for path in TOOLS.glob('*.py'))
DEMO = 'configs/demo/faster_rcnn_digits_autodfp.py'


def start(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(REPO)))


@pytest.mark.parametrize('tool', NAMES)
def test_help_shows_an_example_and_every_argument(tool):
    result = run_tool(tool, '--help')
    assert result.returncode == 0
    assert 'Example:' in result.stdout
    expected = {
        'prune': ['config', 'checkpoint', '--preserve-ratio', '--episodes', '--seed', '--resume', '--search'],
        'test': ['config', 'checkpoint'],
    }
    common = ['--work-dir', '--device', '--launcher', '--cfg-options', '--trust-checkpoint']
    for argument in expected.get(tool, []) + (common if tool in expected else []):
        assert argument in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize('tool', NAMES)
def test_every_tool_starts_in_a_process_of_its_own(tool, tmp_path):
    result = start(str(TOOLS / f'{tool}.py'), '--help', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f'usage: {tool}.py')


@pytest.mark.slow
def test_a_bad_request_of_a_process_ends_with_code_2_and_a_sentence_without_traceback(digits_root, tmp_path):
    result = start('tools/prune.py', DEMO, 'absent.pth', '--work-dir', str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith('error: the checkpoint was to be read from absent.pth')
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['absent.py'], 'config absent.py was asked for, but there is no such file'),
        ([DEMO, 'absent.pth'], 'there is no such file'),
        ([DEMO, '--seed', '3', '--cfg-options', 'a=1', 'b=2', '--resume', 'absent.pth'], 'there is no search.pth in'),
        ([DEMO, '--preserve-ratio', '7'], 'lies in (0, 1], got 7'),
        ([DEMO, '--cfg-options', 'nonsense'], 'takes KEY=VALUE'),
        ([DEMO, '--cfg-options', 'a=dict(b=1,c=dict(d=2,e=3))'], 'cannot read'),
        ([DEMO, '--device', 'tpu'], "'tpu' is no device"),
        ([DEMO, '--launcher', 'pytorch'], 'not started by torchrun'),
        ([DEMO, '--resume'], 'there is no search.pth in'),
        ([DEMO, '--search'], "has an 'autodfp' entry; leave out --search"),
    ],
)
def test_bad_requests_end_with_code_2_and_a_sentence(arguments, message, tmp_path):
    result = run_tool('prune', *arguments, '--work-dir', str(tmp_path))
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        ('ablation', ['absent.py', '--out', 'x.json', 'a.pth'], 'config absent.py was asked for'),
        (
            'ablation',
            [DEMO, '--only', 'fill', '--out', 'x.json'],
            "variants that match only='fill' were asked for, but",
        ),
        ('ablation', ['absent.py', '--whole', '--image-size', '128', '--out', 'x.json'], '--whole has no --image-size'),
        ('ablation', ['absent.py', 'a.pth', '--cost', '--out', 'x.json'], '--cost has no checkpoint'),
        ('rank_plans', ['absent.py', '--out', 'x.json', 'a.pth'], 'config absent.py was asked for'),
        (
            'rank_plans',
            [DEMO, '--plans', '0', '--out', 'x.json'],
            'a ranking of plans was asked for num_plans=0; it must',
        ),
        ('benchmark', ['reward', '--repeat', '2', 'absent.py'], 'config absent.py was asked for'),
        ('benchmark', ['latency', 'absent.py'], 'config absent.py was asked for, but there is no such file'),
        ('benchmark', ['ranks', 'nothing'], 'config nothing was asked for, but there is no such file'),
        ('benchmark', ['search'], 'search needs a config'),
        ('benchmark', ['racing', DEMO, '--lr-factors', '1'], 'racing has no --lr-factors'),
        ('benchmark', ['kernels', '--repeat', '0'], '--repeat must be 1 or more, got 0'),
        ('benchmark', ['memory', DEMO, '--size', '-5', '64'], '--size takes a height and a width of 1 or more, got -5'),
        ('benchmark', ['kernels', DEMO], 'kernels takes no config'),
        ('benchmark', ['memory', DEMO, '--repeat', '2'], 'memory has no --repeat'),
        ('benchmark', ['overhead', DEMO, '--episodes', '2'], 'overhead has no --episodes'),
        ('benchmark', ['latency', DEMO, '--divisors', '4'], '--divisors is for latency --whole'),
        ('benchmark', ['fine_tuning', 'absent.py', '--share', '2'], 'fine-tuning was asked for share=2.0'),
        ('benchmark', ['robustness', 'absent.py'], 'config absent.py was asked for, but there is no such file'),
        ('tables', [str(REPO / 'configs/demo/results')], 'tables were to be made of'),
        ('tables', ['nope'], 'tables were to be made of nope, but it holds none of faster_rcnn'),
        ('frontier', ['faster_rcnn_zero_data', '--points', '3', 'absent.pth'], 'the checkpoint was to be read from'),
        ('report', ['absent'], 'the summary of a run was to be read from'),
        ('train_demo', ['absent.py'], 'config absent.py was asked for'),
        ('train_demo', ['retinanet_zero_data'], 'retinanet_zero_data was to be trained, but it has no metainfo and no'),
        ('make_bccd', ['absent'], 'absent was to be the BCCD data set, but it has no folder JPEGImages'),
        ('export_onnx', ['absent.py'], 'config absent.py was asked for, but there is no such file'),
        ('export_mmdeploy', ['absent.py'], 'config absent.py was asked for, but there is no such file'),
        (
            'sweep',
            ['absent.py', '--ratios', '3'],
            'a sweep was asked for ratios=[3.0]; item 1 of it must',
        ),
        ('reproduce', ['--tables', '5', '8'], "table '8' was asked for; known are 1, 2, 3, 4, fig6, 6, 7; 5, of"),
        (
            'reproduce',
            ['--tables', '5', '--detectors', 'absent.py', '--out', '.'],
            'no detector of table 5 was measured to the end; of the first: config absent.py was asked for',
        ),
    ],
)
def test_every_tool_tells_bad_requests_in_a_sentence(tool, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_tool(tool, *arguments)
    assert result.returncode == 2
    assert f'error: {message}' in result.stderr


def test_what_a_benchmark_repeats_is_a_parameter_of_it():
    tool = load_tool('benchmark')
    for place, repeated in (tool.WHOLE, *tool.KINDS.values()):
        module, function = place.split('.')
        takes = signature(getattr(import_module(f'mmautodfp.experiments.{module}'), function)).parameters.keys()
        assert takes & {'repeat', 'seeds', 'plans'} <= {repeated} <= {*takes, None}


def test_an_interrupted_tool_ends_with_code_130_and_says_what_is_kept(capsys):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end, told('what was finished is kept'):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 130
    assert capsys.readouterr().err == 'interrupted; what was finished is kept\n'


def test_reproduce_finds_its_configs_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ['--tables', '2', '--networks', 'vgg16_cifar10', '--checkpoints', str(tmp_path), '--out', 'out']
    assert run_tool('reproduce', *arguments).returncode == 0
    assert 'no weights: vgg16_cifar10.pth is not there' in (tmp_path / 'out/reproduce.md').read_text()


@pytest.mark.slow
def test_the_evaluation_tool_reports_the_shipped_checkpoints_map(small_demo, tmp_path):
    options = [f'{key}={value}' for key, value in small_demo.items() if key.startswith('test_')]
    result = start(
        'tools/test.py',
        'configs/demo/faster_rcnn_digits.py',
        'configs/demo/faster_rcnn_digits.pth',
        '--device=cpu',
        f'--work-dir={tmp_path}',
        '--cfg-options',
        *options,
    )
    assert result.returncode == 0, result.stderr
    value = float(result.stdout.split('coco/bbox_mAP: ')[1].split()[0])
    assert 0.7 < value < 0.95
