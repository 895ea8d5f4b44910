from functools import partial

import pytest
from gloo_ranks import on_ranks
from test_searcher import make_searcher, taste

from mmautodfp.search import on_every_rank, on_main, share_out
from mmautodfp.search.searcher import load_search

pytestmark = pytest.mark.slow  # two processes each


def squares(rank):
    done = []
    results = share_out([lambda number=number: done.append(number) or number**2 for number in range(5)])
    return results, done


def test_tasks_are_shared_out_and_every_rank_gets_all_results_in_order():
    everything = [number**2 for number in range(5)]
    assert on_ranks(squares) == [(everything, [0, 2, 4]), (everything, [1, 3])]
    assert squares(0) == (everything, [0, 1, 2, 3, 4])


def fail_on_the_second(rank):
    def task():
        if rank == 1:
            raise OSError('an image has vanished')

    share_out([task, task])


def fail_on_the_first(rank):
    def task():
        raise OSError('the disk is full')

    on_main(task)


def fail_to_prepare(rank, done, failing):
    def prepare():
        if rank == failing:
            raise OSError('the weights have vanished')
        (done / str(rank)).touch()
        return (rank for _ in range(1))  # which cannot be sent to another rank

    return next(on_every_rank(prepare))


def test_a_failing_rank_ends_the_job_on_all_with_its_error(tmp_path):
    failure = 'AutoDFPError: rank {} failed, which ends the job on all ranks: OSError: {}'
    vanished = 'the weights have vanished'
    assert on_ranks(partial(fail_to_prepare, done=tmp_path, failing=1)) == [
        failure.format(1, vanished),
        f'OSError: {vanished}',
    ]
    assert [path.name for path in tmp_path.iterdir()] == ['0']
    assert on_ranks(partial(fail_to_prepare, done=tmp_path, failing=None)) == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['0', '1']
    assert on_ranks(fail_on_the_second) == [
        failure.format(1, 'an image has vanished'),
        'OSError: an image has vanished',
    ]
    assert on_ranks(fail_on_the_first) == ['OSError: the disk is full', failure.format(0, 'the disk is full')]


def search(rank):
    evaluated = []
    searcher = make_searcher(11, reward=lambda plan: evaluated.append(1) or taste(plan))
    searcher.run()
    history = searcher.history
    return len(evaluated), history.rewards, history.widths, history.lams, searcher.agent.episode


def test_a_search_on_two_ranks_is_reproducible_and_each_rank_evaluates_half():
    first, second = on_ranks(search)
    assert (first[0], second[0]) == (6, 5)
    assert first[1:4] == second[1:4]
    assert second[4] != first[4]  # rank 0 alone acts
    assert on_ranks(search)[0][1:4] == first[1:4]
    alone = search(0)
    # The first round is the opening and an episode before anything is learned: the same by whatever number of ranks.
    assert alone[2][:2] == first[2][:2]
    assert alone[0] == 11


def resume(rank, path):
    searcher = make_searcher(5, path if rank == 0 else None)
    searcher.run()
    resumed = make_searcher(9, path if rank == 0 else None)
    resumed.load_state_dict(load_search(path))
    resumed.run()
    return resumed.history.rewards, resumed.history.widths


def test_a_search_on_two_ranks_resumes_on_both(tmp_path):
    first, second = on_ranks(partial(resume, path=tmp_path / 'search.pth'))
    assert first == second
    assert len(first[0]) == 9
