"""Searches that are raced, and rewards that have nothing to stop between."""

import logging

import pytest
import torch
from chain import brightness
from test_run import Staged, episodes_of, make_task, run

from mmautodfp.utils import AutoDFPError


def test_only_a_reward_with_several_stages_is_raced():
    racing = dict(warmup=4, refresh=100)
    result = run(make_task(), 30, Staged(), racing=racing)
    lengths = [len(row) for row in result.history.stages]
    assert lengths[:4] == [3] * 4
    assert min(lengths) < 3
    evaluated = sum(Staged.stages[length - 1] for length in lengths)
    assert result.image_evaluations == dict(done=evaluated, without_racing=120)
    whole = run(make_task(), 30, Staged())  # too short to be raced by itself
    assert whole.image_evaluations == dict(done=120, without_racing=120)
    assert max(whole.history.rewards) == pytest.approx(result.reward)
    plain = run(make_task(), 30, racing=racing)
    assert episodes_of(plain) == episodes_of(run(make_task(), 30))


class Whole(Staged):
    """The same in one step."""

    stages = (4,)


@pytest.mark.parametrize('reward', [brightness, Whole()], ids=['none', 'one'])
def test_a_race_without_stages_to_stop_between_says_so_and_is_none(tmp_path, monkeypatch, caplog, reward):
    path, logger = tmp_path / 'search.pth', logging.getLogger('search')
    expected = run(make_task(), 9, reward)
    run(make_task(), 4, reward, racing=True, checkpoint=path, logger=logger)
    stages = len(getattr(reward, 'stages', ()))
    needed = 'racing=True was asked for, but a race needs a reward with two or more stages'
    assert f'{needed}, and this one has {stages};' in caplog.text
    caplog.clear()
    monkeypatch.setattr('mmautodfp.search.run.LONG_SEARCH', 9)
    result = run(make_task(), 9, reward, checkpoint=path, resume=True, logger=logger)
    assert episodes_of(result) == episodes_of(expected)
    run(make_task(), 9, reward, logger=logger)  # long enough to be raced by default
    assert 'racing' not in caplog.text


def test_a_search_that_raced_with_one_stage_can_be_resumed(tmp_path):
    path = tmp_path / 'search.pth'
    run(make_task(), 4, Whole(), checkpoint=path)
    saved = torch.load(path)
    saved['identity'] |= dict(stages=[4], racing=dict(risk=0.001, warmup=20, refresh=10))
    torch.save(saved, path)
    result = run(make_task(), 9, Whole(), checkpoint=path, resume=True)
    assert episodes_of(result) == episodes_of(run(make_task(), 9, Whole()))


@pytest.mark.parametrize('stages', [(1, 4), (1, 2, 3, 4)])
def test_a_reward_that_gives_more_or_fewer_numbers_than_stages_ends_in_a_sentence(stages):
    reward = Staged()
    reward.stages = stages
    reward.evaluate = lambda model: iter([0.1, 0.2, 0.3])
    with pytest.raises(
        AutoDFPError, match=f'evaluated in {len(stages)} stages, but the reward gave 3 numbers; let its'
    ):
        run(make_task(), 3, reward, racing=True)


def test_a_resumed_search_keeps_its_race_whatever_its_length(tmp_path):
    path, racing = tmp_path / 'search.pth', dict(warmup=4, refresh=100)
    expected = run(make_task(), 30, Staged(), racing=racing)
    run(make_task(), 12, Staged(), racing=racing, checkpoint=path)
    result = run(make_task(), 30, Staged(), checkpoint=path, resume=True)
    assert episodes_of(result) == episodes_of(expected)
    with pytest.raises(AutoDFPError, match='the search to resume was saved with stages='):
        run(make_task(), 40, Staged(), racing=False, checkpoint=path, resume=True)


def test_more_episodes_do_not_make_a_race_of_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr('mmautodfp.search.run.LONG_SEARCH', 30)
    assert min(len(row) for row in run(make_task(), 30, Staged()).history.stages) < 3
    run(make_task(), 29, Staged(), checkpoint=tmp_path / 'search.pth')
    result = run(make_task(), 30, Staged(), checkpoint=tmp_path / 'search.pth', resume=True)
    assert {len(row) for row in result.history.stages} == {1}  # all images at once
