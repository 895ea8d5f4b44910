"""Timing several calls in turns, and describing the machine."""

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


def median_in_turns(calls: dict[str, Callable[[], Any]], repeat: int, inference: bool = True) -> dict[str, float]:
    """Median seconds of each call; each round calls all of them once.

    Args:
        calls (dict[str, Callable]): What is measured, by name.
        repeat (int): Rounds that count; three more come before them.
        inference (bool): Use ``torch.inference_mode()``; not if the tensors of a call are used afterwards. Defaults to
            True.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode(inference):
        for _ in range(repeat + 3):
            for name, call in calls.items():
                seconds[name].append(seconds_of(call))
    return {name: statistics.median(values[3:]) for name, values in seconds.items()}  # the first ones are slower


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes, its work on a GPU included."""
    wait_for_gpu()
    start = time.perf_counter()
    call()
    wait_for_gpu()
    return time.perf_counter() - start


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_at_hand() -> str:
    """'cuda' if there is a GPU, else 'cpu'."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def wait_for_gpu() -> None:
    """Wait until a GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def describe_machine() -> dict[str, Any]:
    """Processor, threads and versions, to go with a measurement."""
    models = []
    with contextlib.suppress(OSError):
        models = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
    return dict(
        processor=models[0].partition(': ')[2] if models else platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        torch=str(torch.__version__),
    )


def minutes_of(seconds: float) -> str:
    """Seconds as minutes and seconds, such as '2:05'."""
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes}:{rest:02d}'


def machine_line(machine: dict[str, Any]) -> str:
    """What :func:`describe_machine` gave, in short: the GPU, or the processor and its threads."""
    threads = f'{machine["threads"]} thread{"" if machine["threads"] == 1 else "s"}'
    return machine['gpu'] or f'{machine["processor"]}, {threads}'
