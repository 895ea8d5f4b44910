"""How a tool ends, and which GPU it takes."""

import os
import signal
import subprocess
import sys

import pytest

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.command_line import add_device, new_parser, read_arguments, read_options

WAITING = """
import time
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.command_line import told

def wait():
    print('waiting', flush=True)
    time.sleep(60)

class Waiting:
    def __del__(self):
        wait()

def build():
    try:
        try:
            wait()
        except:
            raise SyntaxError('Failed to format the config file')  # as mmengine says
    except SyntaxError as error:
        raise AutoDFPError(f'cannot be built: {{error}}') from None

with told('all is kept'):
    {how}
    time.sleep(60)
"""


@pytest.mark.parametrize('how', ['wait()', 'waiting = Waiting(); del waiting', 'build()'])
def test_a_job_that_is_stopped_says_so_wherever_it_is(how):
    script = WAITING.format(how=how)
    tool = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert tool.stdout.readline() == 'waiting\n'
    tool.send_signal(signal.SIGTERM)
    _, said = tool.communicate(timeout=30)
    assert said == 'interrupted; all is kept\n'
    assert tool.returncode == 130


@pytest.mark.parametrize(
    ('given', 'device', 'taken'),
    [('4,6', 'cuda:0', '4'), ('4,6', 'cuda:1', '6'), ('4,6', 'cuda:2', None), ('4,6', 'cpu', ''), ('', 'cuda:0', None)],
)
def test_a_gpu_is_one_of_those_that_the_job_was_given(monkeypatch, given, device, taken):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    parser = new_parser('')
    add_device(parser)
    if taken is None:
        with pytest.raises(AutoDFPError, match=f"CUDA_VISIBLE_DEVICES='{given}' allows {2 if given else 0} of them"):
            read_arguments(parser, ['--device', device])
        taken = given
    else:
        read_arguments(parser, ['--device', device])
    assert os.environ['CUDA_VISIBLE_DEVICES'] == taken


@pytest.mark.parametrize('value', ['dict(type=FlopBudget)', ' dict(type="x", y=1)', "{'type': 'FlopBudget'}", '[(1,2'])
def test_an_entry_that_is_written_as_python_is_refused_as_one_that_is_named_with_dots(value):
    with pytest.raises(AutoDFPError, match=r'--cfg-options cannot read .*; values within an entry are named with dots'):
        read_options([f'autodfp.budget={value}'])


def test_texts_numbers_and_lists_are_read_as_mmengine_does():
    found = read_options(['a.b=0.5', 'c=[1,2]', 'd={{fileDirname}}/x.pth', 'e=predict(', 'f=x=dict('])
    assert found == {'a.b': 0.5, 'c': [1, 2], 'd': '{{fileDirname}}/x.pth', 'e': 'predict(', 'f': 'x=dict('}
