import copy
from dataclasses import replace

import pytest

from mmautodfp.experiments.benchmark_search import benchmark_search, candidates
from mmautodfp.search.finalists import judge_finalists
from mmautodfp.utils import AutoDFPError

CONFIG = 'configs/demo/vgg_digits_autodfp.py'


@pytest.mark.slow
def test_every_search_gets_the_same_task_and_opening():
    told = []
    report = lambda result, line: told.append(line)
    result = benchmark_search(CONFIG, episodes=6, seeds=2, report=report)
    names = ['random', 'random around the start', 'CMA-ES', 'SAC as published', 'SAC']
    assert list(result['searches']) == names
    assert len(told) == 1 + 10  # Eq. 12 + 16 allocate no plan
    assert (result['search_images'], result['held_out_images'], result['episodes']) == (300, 497, 6)
    assert result['dense'] > 0.97
    assert list(result['plans']) == ['uniform']
    for search in result['searches'].values():
        assert len(search['held_out']) == 2
        assert search['mean'] == pytest.approx(sum(search['held_out']) / 2)
        assert min(search['search']) >= 0.49  # the best of the three opening plans
        assert 'finished' not in search  # nor have they a full pass
    # Warm-up is all that six episodes allow: SAC as published is random search until it learns.
    assert result['searches']['SAC as published']['search'] == result['searches']['random']['search']

    before = copy.deepcopy(result)
    told.clear()
    assert benchmark_search(CONFIG, episodes=6, seeds=2, known=result, report=report) == before
    assert not told
    with pytest.raises(AutoDFPError, match='episodes=6, but episodes=7 is asked for'):
        benchmark_search(CONFIG, episodes=7, known=result)
    with pytest.raises(AutoDFPError, match=r"with cfg_options={}, but cfg_options={'autodfp\.opening_lams'"):
        benchmark_search(CONFIG, episodes=6, known=result, cfg_options={'autodfp.opening_lams': (0.5,)})


@pytest.mark.slow
def test_plans_of_least_squares_are_finished():
    options = {'autodfp.reconstructor': dict(type='SyntheticLeastSquares', images=dict(size=8, num_images=16))}
    result = benchmark_search(CONFIG, episodes=4, seeds=1, only='random.*', cfg_options=options)
    allocated, uniform = result['plans']['allocated'], result['plans']['uniform']
    assert allocated['finished'] != allocated['held_out']
    assert allocated != uniform
    for search in result['searches'].values():
        assert search['finished_mean'] == search['finished'][0]
        assert search['finished_deviation'] is None
        assert 'chosen' not in search
    with pytest.raises(AutoDFPError, match='3 finalists were to be judged, but all images of val_dataloader reward'):
        benchmark_search(CONFIG, finalists=3, cfg_options=options)


@pytest.mark.slow
def test_the_chosen_finalist_is_told_beside_the_plan_with_the_best_reward(monkeypatch):
    reconstructor = dict(type='SyntheticLeastSquares', images=dict(size=8, num_images=16))
    options = {'autodfp.reconstructor': reconstructor, 'autodfp.reward.num_images': 100}
    settings = dict(episodes=4, seeds=1, only='random', cfg_options=options)
    without = benchmark_search(CONFIG, **settings)
    worst_chosen = lambda *args, **kwargs: _choose_the_last(judge_finalists(*args, **kwargs))
    monkeypatch.setattr('mmautodfp.search.run.judge_finalists', worst_chosen)
    result = benchmark_search(CONFIG, **settings, finalists=3)
    row = result['searches']['random']
    assert row['search'] == without['searches']['random']['search']
    assert row['chosen'][0] != row['finished'][0]
    assert row['chosen_mean'] == row['chosen'][0]
    assert [result[name] for name in ('finalists', 'judging_images', 'held_out_images')] == [3, 100, 497]
    with pytest.raises(AutoDFPError, match='finalists'):
        benchmark_search(CONFIG, **settings, known=result)


def _choose_the_last(found):
    return [replace(one, chosen=one is found[-1]) for one in found]


def test_the_published_sac_differs_in_what_the_paper_says():
    agent = dict(type='SAC', credit='monte_carlo', warmup='around_uniform', warmup_episodes=40)
    found = candidates(agent)
    assert found['SAC'] == agent
    assert found['SAC as published'] == agent | dict(credit='td', warmup='random')
    assert list(candidates(dict(type='CMAES')))[-1] == "the config's own"


def test_impossible_counts_are_refused():
    with pytest.raises(AutoDFPError, match='seeds'):
        benchmark_search(CONFIG, seeds=0)
    with pytest.raises(AutoDFPError, match='finalists=-1'):
        benchmark_search(CONFIG, finalists=-1)
    with pytest.raises(AutoDFPError, match='finalists=1 was asked for, which leaves no choice'):
        benchmark_search(CONFIG, finalists=1)


@pytest.mark.parametrize(
    ('only', 'message'),
    [('sac', 'but there are random, random around the start, CMA-ES'), ('[', 'to be a regular expression')],
)
def test_a_choice_of_no_search_is_refused(only, message):
    with pytest.raises(AutoDFPError, match=message):
        benchmark_search(CONFIG, only=only)
