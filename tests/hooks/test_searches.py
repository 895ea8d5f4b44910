"""Searches that are resumed, kept, raced, or end in mid-way."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from demo_helpers import CONFIG, read

from mmautodfp import runs as apis
from mmautodfp.rewards import CocoReward
from mmautodfp.surgery import PruningPlan
from mmautodfp.utils import AutoDFPError

pytestmark = pytest.mark.slow  # whole runs


def test_the_same_seed_gives_the_same_plan_and_resume_goes_on_from_it(demo_run, small_demo, tmp_path):
    settings = small_demo | {'autodfp.compare': False}
    apis.prune(CONFIG, work_dir=str(tmp_path / 'a'), episodes=2, cfg_options=settings)
    apis.prune(CONFIG, work_dir=str(tmp_path / 'a'), episodes=4, resume=True, cfg_options=settings)
    for name in ('rewards', 'widths', 'lams'):
        folders = (tmp_path / 'a', demo_run[0])
        ours, first = (torch.load(path / 'search.pth', weights_only=True)['history'][name] for path in folders)
        assert torch.equal(ours, first)
    assert PruningPlan.from_json(tmp_path / 'a' / 'strategy.json') == PruningPlan.from_json(
        demo_run[0] / 'strategy.json'
    )
    # The config that MMEngine left there, whose settings are in another order, is the same.
    written = shutil.copy(tmp_path / 'a' / f'{Path(CONFIG).stem}.py', tmp_path)
    apis.prune(written, work_dir=str(tmp_path / 'a'), resume=True)
    with pytest.raises(AutoDFPError, match=r"saved with constraint=.*0.9, 'module'.* but .*0.5, 'module'"):
        apis.prune(CONFIG, work_dir=str(tmp_path / 'a'), preserve_ratio=0.5, resume=True, cfg_options=settings)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'autodfp.clustering.eps': 1.0}, 'clustering='),
        ({'autodfp.reconstructor.type': 'NeuronMerging'}, 'reconstructor='),
        ({'val_dataloader.dataset.pipeline.1.scale': (64, 64)}, r'data\.pipeline='),
        ({'model.test_cfg.rcnn.score_thr': 0.3}, r'model\.test_cfg\.rcnn\.score_thr='),
        ({'autodfp.reward.seed': 3}, r'other images that reward it \(by .* seed of the reward\) than'),
        ({'autodfp.agent.batch_size': 64}, 'batch_size='),
        ({'autodfp.racing': True}, 'stages='),
        ({'autodfp.reward.stages': (0.1,)}, 'reward='),
    ],
)
def test_a_search_for_something_else_is_not_resumed(demo_run, small_demo, tmp_path, change, message):
    shutil.copy(demo_run[0] / 'search.pth', tmp_path)
    with pytest.raises(AutoDFPError, match=f'saved with {message}'):
        apis.prune(CONFIG, work_dir=str(tmp_path), episodes=5, resume=True, cfg_options=small_demo | change)


def test_an_image_that_vanishes_in_mid_search_is_named_and_the_search_kept(
    digits_root, small_demo, tmp_path, monkeypatch
):
    shutil.copytree(digits_root / 'val', tmp_path / 'val')
    rewarded = []

    def vanish(reward, model):
        rewarded.append(1)
        if len(rewarded) == 3:
            os.remove(reward.images[0])
        return CocoReward.score(reward, reward.detect(model))

    monkeypatch.setattr(CocoReward, '__call__', vanish)
    options = {'autodfp.reward.cache_gb': 0, 'val_dataloader.dataset.data_prefix.img': str(tmp_path / 'val') + '/'}
    with pytest.raises(AutoDFPError, match=r'the reward needs image .*/val/.*\.png, which cannot be read'):
        apis.prune(CONFIG, work_dir=str(tmp_path / 'w'), cfg_options=small_demo | options)
    assert len(torch.load(tmp_path / 'w/search.pth')['history']['rewards']) == 2


def test_a_race_is_run_where_it_is_asked_for(small_demo, tmp_path):
    options = {
        'autodfp.racing': dict(warmup=4, risk=0.2),
        'autodfp.num_episodes': 12,
        'autodfp.agent.warmup_episodes': 12,
        'autodfp.budget.preserve_ratio': 0.6,
        'autodfp.compare': False,
    }
    apis.prune(CONFIG, work_dir=str(tmp_path), cfg_options=small_demo | options)
    evaluations = read(tmp_path / 'summary.json')['image_evaluations']
    history = torch.load(tmp_path / 'search.pth')['history']
    stages = torch.tensor([2, 4, 8])[(~history['stages'].isnan()).sum(1) - 1]
    assert evaluations == dict(done=int(stages.sum()), without_racing=12 * 8)


def test_a_single_plan_leaves_no_search_and_takes_none_away(small_demo, tmp_path):
    options = small_demo | {'autodfp.compare': False}
    apis.prune(CONFIG, work_dir=str(tmp_path), episodes=1, cfg_options=options)
    assert not (tmp_path / 'search.pth').exists()
    assert 'id="search"' not in (tmp_path / 'report.html').read_text()
    apis.prune(CONFIG, work_dir=str(tmp_path), episodes=2, cfg_options=options)
    assert 'id="search"' in (tmp_path / 'report.html').read_text()
    search = (tmp_path / 'search.pth').read_bytes()
    apis.prune(CONFIG, work_dir=str(tmp_path), episodes=1, cfg_options=options)
    assert [(file.name, file.read_bytes()) for file in tmp_path.glob('search*')] == [('search.pth', search)]
