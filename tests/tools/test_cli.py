"""The tools as a user starts them, in a process of their own."""

import os
import subprocess
import sys

import pytest
from conftest import REPO


def run(*arguments: str, cwd=REPO) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(REPO)))


@pytest.mark.parametrize(
    'tool',
    [
        'prune.py',
        'test.py',
        'report.py',
        'train_demo.py',
        'make_digits.py',
        'benchmark.py',
        'reproduce.py',
        'export_onnx.py',
        'export_mmdeploy.py',
    ],
)
def test_help_shows_an_example_and_every_argument(tool):
    result = run(f'tools/{tool}', '--help')
    assert result.returncode == 0
    assert 'Example:' in result.stdout
    expected = {
        'prune.py': ['config', 'checkpoint', '--preserve-ratio', '--episodes', '--seed', '--resume'],
        'test.py': ['config', 'checkpoint'],
    }
    common = ['--work-dir', '--device', '--launcher', '--cfg-options', '--trust-checkpoint']
    for argument in expected.get(tool, []) + (common if tool in expected else []):
        assert argument in result.stdout


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['absent.py'], 'config absent.py was asked for, but there is no such file'),
        (['configs/demo/faster_rcnn_digits_autodfp.py', 'absent.pth'], 'there is no such file'),
        (['configs/demo/faster_rcnn_digits_autodfp.py', '--preserve-ratio', '7'], 'lies in (0, 1], got 7'),
        (['configs/demo/faster_rcnn_digits_autodfp.py', '--cfg-options', 'nonsense'], 'takes KEY=VALUE'),
        (['configs/demo/faster_rcnn_digits_autodfp.py', '--device', 'tpu'], "'tpu' is no device"),
        (['configs/demo/faster_rcnn_digits_autodfp.py', '--launcher', 'pytorch'], 'not started by torchrun'),
        (['configs/demo/faster_rcnn_digits_autodfp.py', '--resume'], 'there is no search.pth in'),
    ],
)
def test_bad_requests_end_with_code_2_and_a_sentence_without_traceback(arguments, message, tmp_path):
    result = run('tools/prune.py', *arguments, '--work-dir', str(tmp_path))
    assert result.returncode == 2
    assert message in result.stderr
    assert 'Traceback' not in result.stderr


def test_a_report_of_no_run_ends_with_code_2_and_a_sentence(tmp_path):
    result = run('tools/report.py', str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith('error: the summary of a run was to be read from')
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['ablation.py', 'absent.py', '--out', 'x.json'], 'config absent.py was asked for'),
        (['rank_plans.py', 'absent.py', '--out', 'x.json'], 'config absent.py was asked for'),
        (['benchmark.py', 'reward', 'absent.py'], 'config absent.py was asked for'),
        (['tables.py', 'nope'], 'tables were to be made of nope, but it holds none of faster_rcnn'),
        (['train_demo.py', 'absent.py'], 'config absent.py was asked for'),
        (['export_onnx.py', 'absent.py'], 'config absent.py was asked for, but there is no such file'),
        (['export_mmdeploy.py', 'absent.py'], 'config absent.py was asked for, but there is no such file'),
        (['benchmark.py', 'latency', 'absent.py'], 'config absent.py was asked for, but there is no such file'),
        (['benchmark.py', 'search'], 'search needs a config'),
        (['sweep.py', 'absent.py', '--ratios', '3'], 'a sweep was asked for the ratio 3'),
        (['reproduce.py', '--tables', '5'], "table '5' was asked for"),
    ],
)
def test_every_tool_tells_bad_requests_in_a_sentence(arguments, message, tmp_path):
    result = run(str(REPO / 'tools' / arguments[0]), *arguments[1:], cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert f'error: {message}' in result.stderr
    assert 'Traceback' not in result.stderr


def test_reproduce_finds_its_configs_from_any_folder(tmp_path):
    arguments = ['--tables', '2', '--networks', 'vgg16_cifar10', '--checkpoints', str(tmp_path), '--out', 'out']
    result = run(str(REPO / 'tools/reproduce.py'), *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'no weights: vgg16_cifar10.pth is not there' in (tmp_path / 'out/reproduce.md').read_text()


def test_the_evaluation_tool_reports_the_shipped_checkpoints_map(small_demo, tmp_path):
    options = [f'{key}={value}' for key, value in small_demo.items() if key.startswith('test_')]
    result = run(
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
