"""What cannot be done is told in one sentence."""

import re

import pytest
from demo_helpers import CHECKPOINT, CONFIG

from mmautodfp import runs as apis
from mmautodfp.hooks import read_settings
from mmautodfp.utils import AutoDFPError


def complaint(config: str, checkpoint: str, work_dir, **options) -> str:
    """The one sentence that a run ends in."""
    with pytest.raises(AutoDFPError) as caught:
        apis.prune(config, checkpoint, work_dir=str(work_dir), cfg_options=options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


SMALL = dict(type='SyntheticLeastSquares', images=dict(size=-64))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'autodfp.target': 'trunk'},
            "'trunk' was to be pruned, but the ImageClassifier has no such.*network",
        ),
        ({'autodfp.target': ''}, "target=''; it is the path of a part"),
        ({'autodfp.agent.type': 'PPO'}, "'PPO' is not known; known are CMAES, RandomSearch, SAC"),
        ({'autodfp.agent.type': 'RandomSearch'}, '_delete_=True'),
        ({'autodfp.agent.learning_rate': 1}, 'learning_rate'),
        ({'autodfp.reward.type': 'Magic'}, "reward type 'Magic' is not known; known are AccuracyReward, CocoReward"),
        ({'autodfp.reward.images': 3}, "unexpected keyword argument 'images'.*num_images"),
        ({'autodfp.agent': 'CMAES'}, "AutoDFPHook was asked for agent='CMAES'; it must be a dict$"),
        ({'autodfp.reward.stages': [0.5, 2]}, r'asked for stages=\[0\.5, 2\]; shares of the images must ascend and'),
        (
            {'autodfp.reconstructor': SMALL},
            '^a set of images was asked for size=-64; it must be greater than',
        ),
        ({'autodfp.reconstructor.normalization': 'l1'}, "'l1'; it must be 'max' or 'minmax'"),
        ({'autodfp.budget.preserve_ratio': 0.01}, 'can only reach 0.*; raise the ratio or lower p_min'),
        ({'autodfp.budget.type': 'Price'}, 'known are FlopBudget, LatencyBudget, MemoryBudget, ParamBudget'),
        ({'autodfp.budget.limit': '30ms'}, "limit of '30ms' was asked for the params; .* units k, M, G, T or %"),
        ({'autodfp.budget.limit': '1k'}, "limit of 1k of the module's params .* can only reach .*k to .*k; raise the"),
        ({'autodfp.episodes': 3}, 'asked for episodes, which it does not know; it knows .*num_episodes'),
        ({'val_dataloader': None}, 'has no val_dataloader'),
        (  # before data is asked for
            {'val_dataloader': None, 'autodfp.racing': True, 'autodfp.objectives': dict(metric=1, params=1)},
            'racing=True was asked for together with objectives, .* leave one of the two out',
        ),
    ],
)
def test_bad_settings_end_in_one_clear_sentence(tmp_path, options, message):
    config = 'configs/demo/vgg_digits_autodfp.py'
    found = complaint(config, 'configs/demo/vgg_digits.pth', tmp_path, **{'autodfp.num_episodes': 2} | options)
    assert re.search(message, found), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'autodfp.target': 'rpn_head.rpn_cls'}, "nothing to prune in the Conv2d 'rpn_head.rpn_cls'"),
        ({'val_dataloader.dataset.ann_file': 'absent.json'}, r'val_dataloader\.dataset names .*absent\.json, but'),
        ({'test_dataloader.dataset.ann_file': 'absent.json'}, r'test_dataloader\.dataset names .*absent\.json, but'),
        ({'test_evaluator.ann_file': 'absent.json'}, r'test_evaluator names the annotations absent\.json, but'),
        ({'test_dataloader.dataset.data_prefix.img': 'absent/'}, r'24 of the 24 images .*, first .*absent/.*; put the'),
        ({'val_dataloader.dataset.data_prefix.img': 'absent/'}, r'absent/.*which cannot be read'),
        ({'val_dataloader.dataset.indices': 0}, 'the data set has none'),
    ],
)
def test_bad_settings_of_a_detector_end_in_one_clear_sentence(small_demo, tmp_path, options, message):
    found = complaint(CONFIG, CHECKPOINT, tmp_path / 'w', **small_demo | options)
    assert re.search(message, found), found


def test_settings_that_worked_before_still_do():
    assert read_settings(dict(clustering=None)).clustering is None
    limits = (dict(type='ParamBudget', preserve_ratio=0.7), dict(type='FlopBudget'))
    assert read_settings(dict(budget=limits)).budget == list(limits)
    with pytest.warns(FutureWarning, match='autodfp.module is called autodfp.target'):
        assert read_settings(dict(module='neck', target='backbone')).target == 'neck'
    with pytest.warns(FutureWarning, match='autodfp.checkpoint_interval does nothing since version 0.2'):
        assert read_settings(dict(checkpoint_interval=20, seed=3)).seed == 3
    told = read_settings(dict(agent=dict(warmup_episodes=3), reward=dict(num_images=9), budget=None))
    assert told.agent == dict(type='SAC', warmup_episodes=3)
    assert told.reward == dict(type='CocoReward', num_images=9)
