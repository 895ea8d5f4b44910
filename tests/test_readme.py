"""The README's how-tos do what they say."""

import re

import pytest
import torch
from conftest import REPO, enliven, random_plan
from mmdet.registry import MODELS
from mmengine.config import Config

from mmautodfp import runs as apis
from mmautodfp.graph import UNIT_FINDERS, survey_units
from mmautodfp.reconstruction import SimilarityReconstructor
from mmautodfp.surgery import apply_plan
from mmautodfp.utils.fileio import load_json

README = (REPO / 'README.md').read_text()


@pytest.fixture(scope='module')
def how_tos():
    """The code blocks of the section, run once."""
    section = README.partition('## Extend it')[2].partition('\n## ')[0]
    finders = list(UNIT_FINDERS)
    names: dict = {}
    for block in re.findall(r'```python\n(.*?)```', section, re.DOTALL):
        exec(compile(block, 'README.md', 'exec'), names)
    yield names
    UNIT_FINDERS[:] = finders


def test_the_config_of_a_data_set_of_ones_own_overrides_what_it_says(tmp_path):
    text = re.search(r'```python\n(_base_ = \'./faster_rcnn_autodfp.py\'.*?)```', README, re.DOTALL)[1]
    (tmp_path / 'orchard.py').write_text(text.replace("'./faster", f"'{REPO}/configs/faster"))
    cfg = Config.fromfile(tmp_path / 'orchard.py')
    assert cfg.autodfp.type == 'mmautodfp.AutoDFPHook'
    for loader, name in ((cfg.val_dataloader, 'val'), (cfg.test_dataloader, 'test')):
        assert loader.dataset.metainfo.classes == ('ripe apple', 'leaf')
        assert loader.dataset.data_root + loader.dataset.ann_file == f'data/orchard/{name}.json'
        assert cfg[f'{name}_evaluator'].ann_file == f'data/orchard/{name}.json'
        assert loader.dataset.type == 'CocoDataset'
    assert cfg.model.roi_head.bbox_head.num_classes == 2
    assert cfg.model.backbone.depth == 50


def test_the_new_block_is_found_pruned_and_brought_back(how_tos):
    darknet = enliven(MODELS.build(dict(type='mmdet.Darknet', depth=53, norm_eval=False)))
    survey = survey_units(darknet)
    assert len(survey.units) == 23
    assert survey.left['conv_res_block1.res0.conv2.conv'] == 'feeds a residual sum'
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        dense = darknet(image)
        with apply_plan(darknet, random_plan(darknet), SimilarityReconstructor()):
            pruned = darknet(image)
        again = darknet(image)
    for before, between, after in zip(dense, pruned, again, strict=True):
        assert torch.equal(before, after)
        assert before.shape == between.shape
        assert not torch.allclose(before, between)


def test_pruning_channels_of_the_new_block_that_are_zero_changes_nothing(how_tos):
    darknet = enliven(MODELS.build(dict(type='mmdet.Darknet', depth=53, norm_eval=False)))
    plan = random_plan(darknet)
    for unit in survey_units(darknet).units:
        pruned = [c for c in range(unit.num_channels) if c not in plan.units[unit.name].keep]
        norm = darknet.get_submodule(unit.norm)
        norm.weight.data[pruned] = 0
        norm.bias.data[pruned] = 0
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        dense = darknet(image)
        with apply_plan(darknet, plan):
            for before, after in zip(dense, darknet(image), strict=True):
                assert (before - after).abs().max() < 1e-4 * before.abs().max()


def test_the_new_reward_rewards_a_search(how_tos, small_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    options = {key: value for key, value in small_demo.items() if not key.startswith('autodfp.reward')}
    options |= {
        'autodfp.reward': dict(_delete_=True, type='ConfidenceReward', num_images=3),
        'autodfp.num_episodes': 3,
        'autodfp.agent.warmup_episodes': 1,
    }
    apis.prune('configs/demo/faster_rcnn_digits_autodfp.py', work_dir=str(tmp_path), cfg_options=options)
    summary = load_json(tmp_path / 'summary.json', 'the summary')
    assert (summary['metric'], summary['search_images']) == ('confidence', 3)
    assert 0.5 < summary['results'][0]['search_metric'] <= 1
