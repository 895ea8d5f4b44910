"""Finalists of a whole run: whose images judge, what is pruned in the end, and what the files say."""

import copy
import logging

import pytest
import torch
from demo_helpers import CLASSIFIER, QUICK, read
from mmengine.config import Config
from mmengine.runner import Runner

from mmautodfp import runs as apis
from mmautodfp.outputs.report import Report
from mmautodfp.rewards import AccuracyReward
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils.registry import HOOKS, build

SETTINGS = QUICK | {'autodfp.num_episodes': 6}
LEAST_SQUARES = dict(type='SyntheticLeastSquares')


def hook_of(**settings):
    return build(HOOKS, Config.fromfile(CLASSIFIER).autodfp.to_dict() | settings)


def test_ten_are_judged_where_a_full_pass_changes_plans_unless_told_otherwise():
    assert hook_of().num_finalists == 0
    assert hook_of(finalists=3).num_finalists == 3
    assert hook_of(reconstructor=LEAST_SQUARES).num_finalists == 10
    assert hook_of(reconstructor=LEAST_SQUARES | dict(refinement=False)).num_finalists == 0
    assert hook_of(reconstructor=LEAST_SQUARES, finalists=0).num_finalists == 0
    assert hook_of(reconstructor=LEAST_SQUARES, num_episodes=1).num_finalists == 0
    hook = hook_of(reconstructor=LEAST_SQUARES)
    hook.choice = object()  # a point of a frontier: nothing is searched
    assert hook.num_finalists == 0


@pytest.mark.parametrize(('num_images', 'sizes'), [(50, (50, 50, 200)), (200, (200, 50, 50)), (300, (300, 0, 0))])
def test_rewarding_judging_and_reported_images_share_none(tmp_path, num_images, sizes):
    """Even where one loader serves for validation and test."""
    cfg = Config.fromfile(CLASSIFIER)
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg.work_dir, cfg.log_level = str(tmp_path), 'ERROR'
    hook = hook_of(finalists=4, compare=True, reward=dict(type='AccuracyReward', num_images=num_images))
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.logger.setLevel(logging.INFO)
    hook.prepare(runner)
    parts = [set(part.images) if part else set() for part in (hook.reward, hook.judge, hook.held_out)]
    assert tuple(map(len, parts)) == sizes
    assert len(set.union(*parts)) == 300
    (line,) = [line for line in told if 'the best plans' in line]
    if sizes[1]:
        assert line == f'the best plans, 4 at most, are judged with top1 on {sizes[1]} other images after the full pass'
    else:
        assert line == (
            'AccuracyReward has no further images to judge the best plans by: the one with the best reward stays'
        )


def test_the_judges_choice_is_pruned_and_told_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    judged, call = [], AccuracyReward.__call__

    def reverse(reward, model):
        """The judge alone, which keeps no image in memory, likes what the search does not."""
        if reward.cache_gb:
            return call(reward, model)
        judged.append(reward)
        return -call(reward, model)

    monkeypatch.setattr(AccuracyReward, '__call__', reverse)
    options = SETTINGS | {'autodfp.finalists': 4}
    apis.prune(CLASSIFIER, work_dir=str(tmp_path), cfg_options=options)
    summary = read(tmp_path / 'summary.json')
    finalists, state = summary['finalists'], torch.load(tmp_path / 'search.pth')
    assert (summary['judge_metric'], summary['judge_images'], len(finalists), len(judged)) == ('top1', 50, 4, 4)
    rewards = [row['reward'] for row in finalists]
    assert rewards == sorted(rewards, reverse=True)
    assert rewards == [state['history']['rewards'][row['episode']].item() for row in finalists]
    (chosen,) = [row for row in finalists if row['chosen']]
    images = summary['search_images']
    for row in finalists:
        assert row['together'] == pytest.approx((images * row['reward'] + 50 * row['metric']) / (images + 50))
    assert chosen['together'] == max(row['together'] for row in finalists)
    assert summary['best_episode'] == chosen['episode']
    assert summary['results'][-1]['search_metric'] == chosen['reward']
    plan = PruningPlan.from_json(tmp_path / 'strategy.json')
    assert list(plan.widths.values()) == state['history']['widths'][chosen['episode']].tolist()
    apis.prune(CLASSIFIER, work_dir=str(tmp_path), resume=True, cfg_options=options)
    assert read(tmp_path / 'summary.json')['finalists'] == finalists
    assert len(judged) == 4
    page = Report(tmp_path).write().read_text()
    for row in finalists:
        assert f'<td>episode {row["episode"] + 1}{", chosen" if row["chosen"] else ""}</td>' in page
        assert f'<td>{row["reward"]:.3f}</td><td>{row["metric"]:.3f}</td>' in page
        assert f'<td>{row["together"]:.3f}</td></tr>' in page
    assert 'on 50 images' in page

    apis.prune(CLASSIFIER, work_dir=str(tmp_path / 'off'), cfg_options=SETTINGS | {'autodfp.finalists': 0})
    apis.prune(CLASSIFIER, work_dir=str(tmp_path / 'plain'), cfg_options=SETTINGS)
    off, plain = (read(tmp_path / name / 'summary.json') for name in ('off', 'plain'))
    assert off['finalists'] == plain['finalists'] == []
    assert off['results'] == plain['results']
    assert off['results'][-1]['search_metric'] == max(state['history']['rewards'].tolist())
    assert len(judged) == 4
    assert '<th>finalist</th>' in page
    assert '<th>finalist</th>' not in Report(tmp_path / 'off').write().read_text()
