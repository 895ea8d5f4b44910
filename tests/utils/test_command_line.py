"""How a tool ends."""

import signal
import subprocess
import sys

import pytest

WAITING = """
import time
from mmautodfp.utils.command_line import told

def wait():
    print('waiting', flush=True)
    time.sleep(60)

class Waiting:
    def __del__(self):
        wait()

with told('all is kept'):
    {how}
    time.sleep(60)
"""


@pytest.mark.parametrize('how', ['wait()', 'waiting = Waiting(); del waiting'])
def test_a_job_that_is_stopped_ends_with_a_sentence_even_in_a_destructor(how):
    script = WAITING.format(how=how)
    tool = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert tool.stdout.readline() == 'waiting\n'
    tool.send_signal(signal.SIGTERM)
    _, said = tool.communicate(timeout=30)
    assert said == 'interrupted; all is kept\n'
    assert tool.returncode == 130
