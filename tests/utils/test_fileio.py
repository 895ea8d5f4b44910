import io
import os
import resource
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from conftest import REPO
from mmengine.logging import HistoryBuffer
from torch import nn

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import (
    atomic_path,
    claimed,
    earlier_result,
    fit_state,
    load_json,
    load_tensors,
    pickle_allowed,
    portable,
    save_json,
    save_tensors,
    save_text,
)


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'file.json'
    save_json([1], path)
    with pytest.raises(ValueError, match='not JSON compliant'):
        save_json([float('nan')], path)
    with pytest.raises(ZeroDivisionError), atomic_path(path) as scratch:
        scratch.write_text(f'half of {1 / 0}')
    assert load_json(path, 'it') == [1]
    assert os.listdir(tmp_path) == ['file.json']


def test_an_earlier_result_is_what_a_file_holds_if_it_can_be_one(tmp_path):
    file = tmp_path / 'result.json'
    assert earlier_result(None) is earlier_result(file) is None
    save_json(dict(dense=0.5), file)
    assert earlier_result(file) == dict(dense=0.5)
    save_json([dict(dense=0.5)], file)  # as a sweep leaves it
    with pytest.raises(AutoDFPError, match=r'result\.json was to receive a result, but it holds a list; name another'):
        earlier_result(file)


@contextmanager
def no_room_beyond(size):
    """Files may not grow beyond so many bytes, inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ('save', 'old', 'big'),
    [(save_tensors, dict(a=torch.zeros(3)), dict(a=torch.ones(10**6))), (save_text, 'old', 'x' * 10**6)],
)
def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path, save, old, big):
    path = tmp_path / 'file'
    save(old, path)
    before = path.read_bytes()
    with no_room_beyond(100_000), pytest.raises(AutoDFPError) as caught:
        save(big, path)
    assert str(caught.value).startswith(f'{path} could not be written (')
    assert 'what was there before is untouched' in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_get_the_usual_permissions_and_missing_folders(tmp_path):
    (tmp_path / 'plain').write_text('')
    save_json({}, tmp_path / 'new' / 'folder' / 'file.json')
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ('plain', 'new/folder/file.json')]
    assert modes[0] == modes[1]


def test_no_path_of_this_machine_is_kept():
    options = {'a.b': '/data/coco', 'images': dict(folder='/data/cells', sizes=('/x/y', 3)), 'c': 'data/coco'}
    kept = {'a.b': 'coco', 'images': dict(folder='cells', sizes=['y', 3]), 'c': 'data/coco'}
    assert portable(options) == kept


def test_tensors_round_trip(tmp_path):
    save_tensors(dict(state_dict=dict(a=torch.arange(3)), meta=dict(x=[1, 'b', None])), tmp_path / 'x.pth')
    content = load_tensors(tmp_path / 'x.pth')
    assert torch.equal(content['state_dict']['a'], torch.arange(3))
    assert content['meta'] == dict(x=[1, 'b', None])


def truncated() -> bytes:
    return whole()[:-700]


def whole() -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(a=torch.rand(1000)), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize('content', [b'', b'no checkpoint', b'<html>404</html>', b'auto_scale_lr = dict(', truncated()])
@pytest.mark.parametrize('trust', [False, True])
def test_files_that_are_no_checkpoints_are_refused_in_one_sentence(tmp_path, content, trust):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(AutoDFPError, match=r'x\.pth cannot be read, it is damaged or no checkpoint') as caught:
        load_tensors(tmp_path / 'x.pth', trust=trust)
    assert '\n' not in str(caught.value)
    assert str(caught.value).endswith('; put back a copy of it, or make it anew')


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(AutoDFPError, match=r'from .*absent\.pth, but there is no such file'):
        load_tensors(tmp_path / 'absent.pth')


def test_pickled_objects_need_trust(tmp_path):
    torch.save(dict(state_dict={}, message_hub=HistoryBuffer()), tmp_path / 'x.pth')
    with pytest.raises(AutoDFPError, match=r'a mmengine\..*HistoryBuffer.*--trust-checkpoint'):
        load_tensors(tmp_path / 'x.pth')
    assert isinstance(load_tensors(tmp_path / 'x.pth', trust=True)['message_hub'], HistoryBuffer)


@pytest.mark.parametrize('before', [None, '0'])
def test_only_a_trusted_checkpoint_lets_torch_unpickle_and_only_for_a_while(monkeypatch, before):
    name = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with pickle_allowed(False):
        assert os.environ.get(name) == before
    with pickle_allowed(True):
        inside = os.environ[name]
    assert inside == '1'
    assert os.environ.get(name) == before


def test_a_checkpoint_without_a_dict_is_refused(tmp_path):
    torch.save([torch.rand(1)], tmp_path / 'x.pth')
    with pytest.raises(AutoDFPError, match='holds a list'):
        load_tensors(tmp_path / 'x.pth')


def test_weights_of_another_architecture_are_refused_with_examples():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = model.state_dict()
    fit_state(state, model, 'x.pth')
    fit_state({f'module.{key}': value for key, value in state.items()}, model, 'x.pth')
    fit_state({key: value for key, value in state.items() if 'num_batches' not in key}, model, 'x.pth')

    del state['1.weight']
    state['0.weight'] = torch.rand(5, 3, 1, 1)
    with pytest.raises(AutoDFPError) as caught:
        fit_state(state, model, 'x.pth')
    assert '1 are missing (such as 1.weight)' in str(caught.value)
    assert '1 have other shapes (such as 0.weight [5, 3, 1, 1] instead of [4, 3, 1, 1])' in str(caught.value)


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ('.', str(tmp_path)):
        with pytest.raises(AutoDFPError, match='could not be written'):
            save_json({}, place)
    left = [*tmp_path.iterdir(), *tmp_path.parent.glob(f'.{tmp_path.stem}.*')]
    assert not left


HOLDER = """
import os, sys, time
from mmautodfp.utils.fileio import claimed
with claimed(sys.argv[1]):
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
    print('claimed', flush=True)
    sys.stdin.readline()
print('left', flush=True)
sys.stdin.readline()
"""


def test_a_folder_is_claimed_by_one_process_at_a_time_and_free_when_that_ends(tmp_path):
    folder = tmp_path / 'new/run'
    command, path = [sys.executable, '-c', HOLDER, str(folder)], os.environ | dict(PYTHONPATH=str(REPO))
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=path, **pipes) as holder:
        assert holder.stdout.readline() == 'claimed\n'
        with pytest.raises(AutoDFPError, match='new/run, but another run is at work there; wait'), claimed(folder):
            pass
        with claimed(tmp_path):
            pass
        print(file=holder.stdin, flush=True)
        assert holder.stdout.readline() == 'left\n'
        with claimed(folder):  # though a child of the other one is still there
            pass
        holder.kill()
    for _ in range(2):  # nothing is left behind
        with claimed(folder):
            assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_made_is_told_by_who_needs_it(tmp_path):
    (tmp_path / 'file').touch()
    with claimed(tmp_path / 'file/run'):
        pass
