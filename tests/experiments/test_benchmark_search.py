import pytest

from mmautodfp.experiments.benchmark_search import benchmark_search, candidates
from mmautodfp.utils import AutoDFPError

pytestmark = pytest.mark.slow  # whole runs

CONFIG = 'configs/demo/vgg_digits_autodfp.py'


def test_every_search_gets_the_same_task_and_opening():
    pytest.importorskip('cmaes')
    told = []
    result = benchmark_search(CONFIG, episodes=6, seeds=2, tell=told.append)
    names = ['random', 'random around the uniform plan', 'CMA-ES', 'SAC as published', 'SAC']
    assert list(result['searches']) == names
    assert len(told) == 10
    assert (result['search_images'], result['held_out_images'], result['episodes']) == (300, 497, 6)
    assert result['dense'] > 0.97
    for search in result['searches'].values():
        assert len(search['held_out']) == 2
        assert search['mean'] == pytest.approx(sum(search['held_out']) / 2)
        assert min(search['search']) >= 0.49  # the best of the three opening plans
    # Warm-up is all that six episodes allow: SAC as published is random search until it learns.
    assert result['searches']['SAC as published']['search'] == result['searches']['random']['search']


def test_the_published_sac_differs_in_what_the_paper_says():
    agent = dict(type='SAC', credit='monte_carlo', warmup='around_uniform', warmup_episodes=40)
    found = candidates(agent)
    assert found['SAC'] == agent
    assert found['SAC as published'] == agent | dict(credit='td', warmup='random')
    assert list(candidates(dict(type='CMAES')))[-1] == "the config's own"


def test_impossible_counts_are_refused():
    with pytest.raises(AutoDFPError, match='seeds=0'):
        benchmark_search(CONFIG, seeds=0)
