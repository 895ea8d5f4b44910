import random
import time

import pytest
import torch
from gloo_ranks import forkserver
from test_environment import make_env

from mmautodfp.search import SAC, AgentSpec
from mmautodfp.search.searcher import Searcher, load_search
from mmautodfp.utils import AutoDFPError


def taste(plan) -> float:
    """A reward that likes the first group wide and lambda near 0.3."""
    first, *_, last = plan.groups.values()
    return first.width / first.num_channels - 0.1 * last.width / last.num_channels - abs(last.lam - 0.3)


def make_searcher(episodes, path=None, reward=taste, seed=0):
    spec = AgentSpec(3, uniform_action=(0.5, 0.5), seed=seed)
    searcher = Searcher(
        make_env(0.7),
        SAC(spec, warmup_episodes=3, batch_size=8, hidden_sizes=(16,), buffer_episodes=5),
        lambda plan: (worth for worth in [reward(plan)]),
        episodes,
        checkpoint=path,
        identity=dict(weights='a'),
    )
    searcher.opening = [torch.full((3, 2), 0.5)]
    return searcher


def plans_of(searcher):
    return searcher.history.rewards, searcher.history.widths, searcher.history.lams


def test_the_same_seed_gives_the_same_search_and_another_seed_another():
    first, second, other = (make_searcher(8, seed=seed) for seed in (5, 5, 6))
    for searcher in (first, second, other):
        searcher.run()
    assert plans_of(first) == plans_of(second) != plans_of(other)


@pytest.mark.parametrize('interruption', [KeyboardInterrupt, OSError('an image has vanished')])
def test_an_interrupt_in_mid_episode_loses_no_finished_one(tmp_path, interruption):
    path = tmp_path / 'search.pth'
    calls = []

    def reward(plan):
        calls.append(plan)
        if len(calls) == 6:
            raise interruption
        return taste(plan)

    with pytest.raises(type(interruption) if isinstance(interruption, OSError) else interruption):
        make_searcher(9, path, reward=reward).run()
    resumed = make_searcher(9, path)
    resumed.load_state_dict(load_search(path))
    assert len(resumed.history) == 5
    whole = make_searcher(9)
    for searcher in (resumed, whole):
        searcher.run()
    assert plans_of(resumed) == plans_of(whole)


def search_until_killed(path, ready) -> None:
    searcher = make_searcher(60, path)
    if path.exists():
        searcher.load_state_dict(load_search(path))
    ready.set()
    searcher.run()


@pytest.mark.slow
def test_kill_9_at_20_random_moments_changes_nothing(tmp_path):
    context = forkserver()
    path, rng = tmp_path / 'search.pth', random.Random(0)
    readable = 0
    for _ in range(20):
        ready = context.Event()
        process = context.Process(target=search_until_killed, args=(path, ready))
        process.start()
        assert ready.wait(60)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        if path.exists():
            readable += len(torch.load(path, weights_only=True)['history']['rewards']) > 0
    assert readable >= 10
    whole, last = make_searcher(60), make_searcher(60, path)
    last.load_state_dict(load_search(path))
    for searcher in (last, whole):
        searcher.run()
    assert plans_of(last) == plans_of(whole)


def test_the_checkpoint_is_written_while_the_search_goes_on(tmp_path):
    path = tmp_path / 'search.pth'
    lengths = []

    def reward(plan):
        lengths.append(len(torch.load(path, weights_only=True)['history']['rewards']) if path.exists() else 0)
        return taste(plan)

    make_searcher(5, path, reward=reward).run()
    assert lengths == [0, 1, 2, 3, 4]
    assert len(torch.load(path, weights_only=True)['history']['rewards']) == 5
    assert [file.name for file in tmp_path.iterdir()] == ['search.pth']


def test_a_missing_or_damaged_search_is_refused(tmp_path):
    path = tmp_path / 'search.pth'
    with pytest.raises(AutoDFPError, match='no such file'):
        load_search(path)
    make_searcher(2, path).run()
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(AutoDFPError, match='damaged'):
        load_search(path)
    torch.save(dict(state_dict={}), path)
    with pytest.raises(AutoDFPError, match=r'search\.pth, but that holds none; name a search\.pth'):
        load_search(path)


def test_a_search_that_lacks_a_part_is_refused(tmp_path):
    path = tmp_path / 'search.pth'
    make_searcher(2, path).run()
    state = load_search(path)
    for name in ('identity', 'rankings', 'start', 'curves', 'agent', 'history'):
        torch.save({key: value for key, value in state.items() if key != name}, path)
        with pytest.raises(AutoDFPError, match=f'lacks the {name} of a search; start a new one'):
            load_search(path)


@pytest.mark.parametrize(
    ('part', 'name', 'change', 'said'),
    [
        ('history', 'rewards', lambda column: column * torch.nan, 'a reward is not finite'),
        ('history', 'rewards', lambda column: column[:1], "equally many and at least one, but are {'rewards': 1, 'wid"),
        ('history', 'rewards', lambda column: 'x', 'AttributeError'),
        ('history', 'widths', lambda column: column * 100, 'channels was to keep'),
        ('history', 'widths', lambda column: -column, 'channels was to keep -'),
        ('history', 'widths', lambda column: column.double(), 'channels was to keep'),
        ('history', 'widths', lambda column: column[:, :2], 'ValueError'),
        ('history', 'lams', lambda column: column + 2, 'at lambda 2.'),
        ('history', 'stages', lambda column: None, 'AttributeError'),
        ('agent', 'config', lambda config: 3, 'AttributeError'),
        ('agent', 'random', lambda state: [], 'TypeError'),
        ('agent', 'actor', lambda state: {}, 'RuntimeError'),
        (None, 'rankings', lambda rankings: rankings[:2], 'ValueError'),
        (None, 'rankings', lambda rankings: [ranking * 0 for ranking in rankings], 'its rankings are not of all'),
        (None, 'rankings', lambda rankings: [ranking.float() for ranking in rankings], 'IndexError'),
        (None, 'start', lambda start: 'x', 'TypeError'),
        (None, 'curves', lambda curves: [torch.zeros(2)], 'its error curves are not of all channels'),
    ],
)
def test_a_search_of_damaged_content_is_refused(part, name, change, said, tmp_path):
    path = tmp_path / 'search.pth'
    make_searcher(4, path).run()
    state = load_search(path)
    place = state[part] if part else state
    place[name] = change(place[name])
    searcher = make_searcher(6, path)
    with pytest.raises(AutoDFPError, match=rf'^the search to resume is damaged \(.*{said}.*\); start a new one'):
        searcher.load_state_dict(state)
    assert not len(searcher.history)


def test_progress_is_told_after_each_episode():
    told, worth = [], iter((0.2, 0.1, 0.2))
    searcher = make_searcher(3, reward=lambda plan: next(worth))
    searcher.report = told.append
    searcher.run()
    assert [(p.episode, p.num_episodes, p.improved) for p in told] == [(0, 3, True), (1, 3, False), (2, 3, False)]
    assert told[-1].eta == 0
    assert told[0].eta > 0
