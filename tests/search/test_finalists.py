"""Finalists: which plans are judged, that the judge's word counts, and that nothing judged is lost."""

import logging
from functools import partial

import pytest
import torch
from chain import brightness
from gloo_ranks import on_ranks
from test_run import Counted, Listed, Staged, episodes_of, make_task, run
from torch import nn

from mmautodfp.rewards import SyntheticReward
from mmautodfp.search import History
from mmautodfp.search.finalists import best_episodes
from mmautodfp.utils import AutoDFPError


@pytest.fixture(autouse=True)
def _full_pass(monkeypatch):
    """Finished, a model is not what it was in its episode."""

    def finalize(self, module, plan, restore):
        layer = restore.remember(module[-1])
        layer._parameters['bias'] = nn.Parameter(layer.bias * 2 + 1)

    monkeypatch.setattr(Listed, 'finalize', finalize)


def darkness(model) -> float:
    """Turns the order of the search round."""
    return -brightness(model)


def finalists_of(result):
    return [(one.episode, one.reward, one.metric, one.chosen) for one in result.finalists]


def test_finalists_are_the_best_distinct_plans_and_the_judges_best_is_chosen():
    task = make_task()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    result = run(task, 30, judge=darkness)
    history = result.history
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())
    # Slowly: one after the other, the best of those whose widths have not been taken.
    expected, taken = [], []
    for reward in sorted(set(history.rewards), reverse=True):
        for episode in range(30):
            if history.rewards[episode] == reward and history.widths[episode] not in taken and len(expected) < 10:
                expected.append(episode)
                taken.append(history.widths[episode])
    assert [one.episode for one in result.finalists] == expected
    assert len(set(map(tuple, history.widths))) > 10
    assert [one.chosen for one in result.finalists] == [False] * 9 + [True]
    for one in result.finalists:
        plan = task.env.plan(history.widths[one.episode], history.lams[one.episode])
        assert one.reward == history.rewards[one.episode] == task.evaluate(plan, brightness)
        with task.apply(plan, final=True):
            assert one.metric == darkness(task.model)
        assert one.metric != -one.reward
    last = result.finalists[-1]
    assert (result.reward, result.episode) == (last.reward, last.episode)
    assert result.plan == task.env.plan(history.widths[last.episode], history.lams[last.episode])
    assert result.reward < max(history.rewards)


class Pictured:
    """A metric that tells its name and its images."""

    def __init__(self, metric, name, count):
        self.metric, self.name, self.images = metric, name, [f'{number}.png' for number in range(count)]

    def __call__(self, model):
        return self.metric(model)


def test_the_judge_counts_as_much_as_it_has_images():
    def judged_by(name, count, own='top1'):
        reward, judge = Pictured(brightness, own, 9), Pictured(darkness, name, count)
        return run(make_task(), 12, reward, judge=judge, finalists=4).finalists

    few, many, other, nameless = (judged_by(*one) for one in (('top1', 1), ('top1', 99), ('top5', 1), (None, 1, None)))
    chosen = []
    for finalists, share in ((few, 0.1), (many, 99 / 108), (other, 1), (nameless, 1)):
        together = [one.together for one in finalists]
        assert together == pytest.approx([(1 - share) * one.reward + share * one.metric for one in finalists])
        chosen.append([one.chosen for one in finalists].index(True))
        assert together[chosen[-1]] == max(together)
    assert chosen == [0, 3, 3, 3]


def test_equal_ones_keep_the_order_of_the_search():
    plain, judged = run(make_task(), 12), run(make_task(), 12, judge=lambda model: 0.5, finalists=4)
    assert [one.chosen for one in judged.finalists] == [True, False, False, False]
    assert (judged.plan, judged.reward, judged.episode) == (plain.plan, plain.reward, plain.episode)
    history = History(
        rewards=[0.3, 0.5, 0.5, 0.5, 0.9], widths=[[1], [2], [3], [2], [1]], stages=[[0.3], [0.5], [0.5], [0.5], [0.9]]
    )
    assert best_episodes(history, 9) == [4, 1, 2]
    assert best_episodes(history, 2) == [4, 1]


def test_plans_that_a_race_stopped_are_no_finalists():
    result = run(make_task(), 30, Staged(), racing=dict(warmup=4, refresh=100), judge=darkness, finalists=30)
    stopped = [episode for episode, row in enumerate(result.history.stages) if len(row) < 3]
    assert stopped
    assert not {one.episode for one in result.finalists} & set(stopped)


@pytest.mark.parametrize('settings', [dict(finalists=0), dict(finalists=1), dict(judge=None)])
def test_without_finalists_a_search_is_what_it_was(tmp_path, settings):
    judge, path = Counted(darkness), tmp_path / 'search.pth'
    plain = run(make_task(), checkpoint=tmp_path / 'plain.pth')
    result = run(make_task(), checkpoint=path, **dict(judge=judge) | settings)
    assert (episodes_of(result), result.plan, result.reward) == (episodes_of(plain), plain.plan, plain.reward)
    assert (result.finalists, judge.calls) == ([], 0)
    kept, before = torch.load(path), torch.load(tmp_path / 'plain.pth')
    assert kept.keys() == before.keys()


def test_where_there_is_no_choice_nothing_is_judged():
    judge = Counted(darkness)
    result = run(make_task(allocate=False), 3, judge=judge)  # uniform plans, which differ in lambda alone
    assert len(set(map(tuple, result.history.widths))) == 1
    assert (result.finalists, judge.calls) == ([], 0)


@pytest.mark.parametrize('after', [0, 1, 4])
def test_what_was_judged_before_a_kill_is_not_judged_again(tmp_path, after):
    path, judge = tmp_path / 'search.pth', Counted(darkness)
    whole = run(make_task(), judge=judge, finalists=6)
    assert judge.calls == 6
    with pytest.raises(KeyboardInterrupt):
        run(make_task(), judge=Counted(darkness, until=after), finalists=6, checkpoint=path)
    task, judge = make_task(), Counted(darkness)
    result = run(task, judge=judge, finalists=6, checkpoint=path, resume=True)
    assert judge.calls == 6 - after
    assert finalists_of(result) == finalists_of(whole)
    assert (episodes_of(result), result.plan, result.reward) == (episodes_of(whole), whole.plan, whole.reward)
    assert list(tmp_path.iterdir()) == [path]
    torch.load(path, weights_only=True)


def test_more_episodes_judge_only_the_new_ones_and_end_as_if_they_had_been_asked_for_at_once(tmp_path):
    path = tmp_path / 'search.pth'
    whole = run(make_task(), 20, judge=Counted(darkness), finalists=6)
    first = run(make_task(), 9, judge=Counted(darkness), finalists=6, checkpoint=path)
    judge = Counted(darkness)
    result = run(make_task(), 20, judge=judge, finalists=6, checkpoint=path, resume=True)
    assert finalists_of(result) == finalists_of(whole)
    assert episodes_of(result) == episodes_of(whole)
    known = {one.episode for one in first.finalists}
    assert judge.calls == len({one.episode for one in whole.finalists} - known) < 6
    # Another judge has not seen any of them, and no judge at all is as good as ever.
    assert run(make_task(), 20, judge=darkness, finalists=6, checkpoint=path, resume=True).episode == whole.episode
    again = Counted(darkness)
    run(make_task(), 20, judge=again, finalists=6, checkpoint=path, resume=True)
    assert again.calls == 6
    assert run(make_task(), 20, checkpoint=path, resume=True).reward == max(whole.history.rewards)


def test_the_log_tells_them_in_one_table(caplog):
    with caplog.at_level(logging.INFO, 'told'):
        result = run(make_task(), judge=darkness, finalists=3, logger=logging.getLogger('told'))
    (table,) = [message for message in caplog.messages if 'chosen' in message]
    _, head, *rows = table.splitlines()
    assert head.split() == ['episode', 'reward', 'judged', 'together']
    assert [row.split() for row in rows] == [
        [str(one.episode + 1), *(f'{value:.4f}' for value in (one.reward, one.metric, one.together))]
        + ['chosen'] * one.chosen
        for one in result.finalists
    ]


def test_bad_requests_end_in_a_sentence(tmp_path):
    with pytest.raises(AutoDFPError, match='a search was asked for finalists=-1; it must be greater than or equal'):
        run(make_task(), judge=darkness, finalists=-1)
    with pytest.raises(AutoDFPError, match='judge=3; it must be callable'):
        run(make_task(), judge=3)
    path = tmp_path / 'search.pth'
    with pytest.raises(AutoDFPError, match='a SyntheticReward that is not prepared'):
        run(make_task(), judge=SyntheticReward(), checkpoint=path)
    assert not path.exists()  # it is told before the search
    task = make_task()
    dense = brightness(task.model)
    with pytest.raises(
        AutoDFPError, match=r'^the finalist of episode \d was judged with nan, but a reward is a finite'
    ):
        run(task, judge=lambda model: float('nan'), checkpoint=path)
    assert brightness(task.model) == dense
    assert len(torch.load(path)['history']['rewards']) == 9


def judged_on(rank, path):
    judge, task = Counted(darkness), make_task()
    result = run(task, judge=judge, finalists=5, checkpoint=path)
    again = Counted(darkness)
    resumed = run(make_task(), judge=again, finalists=6, checkpoint=path, resume=True)
    history = result.history
    plans = [task.env.plan(history.widths[one.episode], history.lams[one.episode]) for one in result.finalists]
    evaluated = [task.evaluate(plan, darkness, final=True) for plan in plans]
    return judge.calls, again.calls, evaluated, finalists_of(result), finalists_of(resumed), result.plan.widths


@pytest.mark.slow
def test_two_ranks_take_turns_and_agree(tmp_path):
    first, second = on_ranks(partial(judged_on, path=tmp_path / 'search.pth'))
    assert (first[:2], second[:2]) == ((3, 1), (2, 0))
    assert first[2:] == second[2:]
    assert [metric for _, _, metric, _ in first[3]] == first[2]
    assert len(first[4]) == 6
