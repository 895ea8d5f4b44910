"""Work shared among the ranks of a distributed run; if one rank fails, all of them end."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from mmengine.dist import all_gather_object, get_dist_info, get_world_size

from mmautodfp.utils import AutoDFPError

T = TypeVar('T')


def share_out(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run each task on one rank: task i on rank i modulo their number. All ranks must call it with as many tasks.

    Returns:
        list[T]: On every rank, the results of all tasks in order.

    Raises:
        AutoDFPError: A task failed on another rank, which is named; the rank itself raises what went wrong.
    """
    rank, world_size = get_dist_info()
    if world_size == 1:
        return [task() for task in tasks]
    own: list[T] = []
    failure = None
    try:
        own += [task() for task in tasks[rank::world_size]]
    except BaseException as error:  # raised below: the other ranks wait for the gathering
        failure = error
    gathered = all_gather_object((own, failure and f'{type(failure).__name__}: {failure}'))
    if failure is not None:
        raise failure
    for number, (_, message) in enumerate(gathered):
        if message is not None:
            raise AutoDFPError(f'rank {number} failed, which ends the job on all ranks: {message}')
    return [gathered[index % world_size][0][index // world_size] for index in range(len(tasks))]


def on_every_rank(call: Callable[[], T]) -> T:
    """Run the same on each rank; if one fails, all of them end. The call itself must not wait for other ranks.

    Returns:
        T: The result on this rank.
    """
    own: list[T] = []
    share_out([lambda: own.append(call())] * get_world_size())  # not all results can be sent to other ranks
    return own[0]


def on_main(call: Callable[[], T]) -> T:
    """Run something on rank 0 alone and send the result to all ranks. All ranks must call it.

    Raises:
        AutoDFPError: It failed on rank 0, which itself raises what went wrong.
    """
    return share_out([call])[0]
