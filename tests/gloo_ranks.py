"""Functions run on several gloo ranks of one machine."""

import os
import queue
import tempfile
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing


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
    context = multiprocessing.get_context('spawn')
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
