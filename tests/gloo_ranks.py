"""Functions run on several gloo ranks of one machine, or in a process that may be killed."""

import os
import queue
import socket
import tempfile
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing as multiprocessing

TESTS = Path(__file__).parent


def forkserver():
    """A context whose processes start at once: what takes seconds to import is imported by their common parent."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['conftest', 'mmautodfp.search'])
    folders = [TESTS.parent, TESTS, os.environ.get('PYTHONPATH', '')]
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, folders))):
        ensure_running()
    return context


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def start(rank, meeting_point, world_size, function, results):
    try:
        torch.distributed.init_process_group(
            'gloo', init_method=f'file://{meeting_point}', rank=rank, world_size=world_size
        )
        results.put((rank, function(rank)))
    except Exception as error:
        results.put((rank, f'{type(error).__name__}: {error}'))
    results.close()
    results.join_thread()
    # Gloo lets go of its last tensors in threads that need Python's lock, and taking the group down waits for them with
    # that lock held (pytorch/pytorch#56297): now and then for ever.
    os._exit(0)


def on_ranks(function, world_size=2):
    """What a function returns, or the error that it ends in, on each of some gloo ranks."""
    context = forkserver()
    results = context.Queue()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (Path(scratch) / 'meeting_point', world_size, function, results)
        processes = [context.Process(target=start, args=(rank, *arguments), daemon=True) for rank in range(world_size)]
        for process in processes:
            process.start()
        try:
            found = dict(results.get(timeout=300) for _ in processes)
        except queue.Empty:
            pytest.fail(f'no answer from all ranks; exit codes {[process.exitcode for process in processes]}')
        finally:
            for process in processes:
                process.join(10)
                process.kill()  # the tests must not wait for it at their end
    return [found[rank] for rank in range(world_size)]
