"""The README's and the docs' how-tos do what they say, and the README's table is what the files hold."""

import hashlib
import re

import pytest
import torch
from conftest import REPO, enliven, random_plan
from mmdet.models import Darknet
from mmengine.config import Config

from mmautodfp import runs
from mmautodfp.graph import GROUP_FINDERS, survey_groups
from mmautodfp.reconstruction import SimilarityReconstructor
from mmautodfp.surgery import apply_plan
from mmautodfp.utils.fileio import load_json

RESULTS = REPO / 'configs/demo/results'


def blocks(page: str, heading: str) -> list[str]:
    """Python code below a heading."""
    section = (REPO / page).read_text().partition(f'\n## {heading}\n')[2].partition('\n## ')[0]
    return re.findall(r'```python\n(.*?)```', section, re.DOTALL)


@pytest.fixture(scope='module')
def how_tos():
    """The block and the reward of one's own, run once."""
    finders = list(GROUP_FINDERS)
    names: dict = {}
    for heading in ('Another block', 'Another reward'):
        (block,) = blocks('docs/extending.md', heading)
        exec(compile(block, heading, 'exec'), names)
    yield names
    GROUP_FINDERS[:] = finders


@pytest.fixture
def darknet(monkeypatch, how_tos):
    """YOLOv3's backbone with two blocks in each of three narrow stages."""
    narrow = (2, 2, 2), ((8, 16), (16, 32), (32, 64))
    monkeypatch.setitem(Darknet.arch_settings, 53, narrow)
    torch.manual_seed(0)
    network = Darknet(depth=53, out_indices=(1, 2, 3), norm_eval=False)
    network.conv1 = type(network.conv1)(3, 8, 3, padding=1, norm_cfg=dict(type='BN'))
    return enliven(network)


def test_the_new_block_is_found_pruned_and_brought_back(darknet):
    survey = survey_groups(darknet)
    assert len(survey.groups) == 6
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


def test_pruning_channels_of_the_new_block_that_are_zero_changes_nothing(darknet):
    plan = random_plan(darknet)
    for group in survey_groups(darknet).groups:
        pruned = [c for c in range(group.num_channels) if c not in plan.groups[group.name].keep]
        norm = darknet.get_submodule(group.norm)
        norm.weight.data[pruned] = 0
        norm.bias.data[pruned] = 0
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        dense = darknet(image)
        with apply_plan(darknet, plan):
            for before, after in zip(dense, darknet(image), strict=True):
                assert (before - after).abs().max() < 1e-4 * before.abs().max()


@pytest.mark.slow
def test_the_new_reward_rewards_a_search(how_tos, small_demo, tmp_path):
    options = {key: value for key, value in small_demo.items() if not key.startswith('autodfp.reward')}
    options |= {
        'autodfp.reward': dict(_delete_=True, type='ConfidenceReward', num_images=3),
        'autodfp.num_episodes': 3,
        'autodfp.agent.warmup_episodes': 1,
    }
    runs.prune('configs/demo/faster_rcnn_digits_autodfp.py', work_dir=str(tmp_path), cfg_options=options)
    summary = load_json(tmp_path / 'summary.json', 'the summary')
    assert (summary['metric'], summary['search_images']) == ('confidence', 3)
    assert 0.5 < summary['results'][0]['search_metric'] <= 1


def test_the_config_of_a_data_set_of_ones_own_overrides_what_it_says(tmp_path):
    (text,) = blocks('docs/own_data.md', 'With a search')
    (tmp_path / 'orchard.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'orchard.py')
    for loader, name in ((cfg.val_dataloader, 'val'), (cfg.test_dataloader, 'test')):
        assert loader.dataset.metainfo.classes == ('ripe apple', 'leaf')
        assert loader.dataset.data_root + loader.dataset.ann_file == f'data/orchard/{name}.json'
        assert cfg[f'{name}_evaluator'].ann_file == f'data/orchard/{name}.json'
        assert loader.dataset.type == 'CocoDataset'
    assert cfg.model.roi_head.bbox_head.num_classes == 2
    assert cfg.model.backbone.depth == 50


def test_configs_of_ones_own_have_the_settings_that_they_name_and_ours_for_the_rest(tmp_path):
    text, python_style = blocks('docs/usage.md', 'Settings')
    (tmp_path / 'my_retinanet.py').write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n")
    (tmp_path / 'own.py').write_text(text)
    cfg = runs.configs.load_config(tmp_path / 'own.py')
    assert runs.configs.add_settings(cfg, 'zero_data')
    assert cfg.model.type == 'RetinaNet'
    assert (cfg.autodfp.budget.type, cfg.autodfp.budget.preserve_ratio) == ('ParamBudget', 0.7)
    assert (cfg.autodfp.channel_divisor, cfg.autodfp.reconstructor.type) == (8, 'SyntheticLeastSquares')
    (tmp_path / 'my_retinanet.py').write_text("model = dict(type='RetinaNet', backbone=dict(depth=50))\n")
    (tmp_path / 'python_style.py').write_text(python_style)
    cfg = runs.configs.load_config(tmp_path / 'python_style.py')
    assert (cfg.autodfp.num_episodes, cfg.autodfp.reconstructor.type) == (500, 'SimilarityReconstructor')
    assert cfg.model.backbone.depth == 50


def test_the_readmes_table_is_what_the_files_hold():
    text = (REPO / 'README.md').read_text()
    sweep = {(cell['model'], cell['preserve_ratio']): cell for cell in load_json(RESULTS / 'sweep.json', 'the sweep')}
    for name in ('Faster R-CNN', 'RetinaNet', 'FCOS', 'Mask R-CNN'):
        cell = sweep[name.replace(' ', '').replace('-', ''), 0.5]
        file = f'least_squares/{name.lower().replace(" ", "_").replace("-", "")}.json'
        own = load_json(RESULTS / file, 'the figures')['variants']['full, allocated plan']
        names = ('dense', 'uniform, pruned only', 'uniform, Neuron Merging', 'AutoDFP')
        figures = [f'{cell["held_out"][name][0]:.3f}' for name in names]
        figures += [f'**{own[ratio]["metric"]:.3f}**' for ratio in ('0.5', '0.3')]
        assert f'| {name} | {" | ".join(figures)} |' in text
        assert own['0.5']['params'] <= 0.5
        assert own['0.3']['params'] <= 0.3


def test_the_readmes_two_minutes_are_what_the_file_holds():
    seconds = load_json(RESULTS / 'least_squares/cost_full_size.json', 'the cost')['seconds']
    once = [seconds[name] for name in ('moments', 'ranking', 'allocation', 'full')]
    assert round(sum(once) / 60) == 2
    assert 'without data takes about two minutes on two cores' in ' '.join((REPO / 'README.md').read_text().split())


@pytest.mark.parametrize('folder', ['demo', 'bccd'])
def test_a_card_is_that_of_the_records_and_of_the_shipped_checkpoints(folder):
    card = (REPO / f'configs/{folder}/README.md').read_text()
    names = {'coco/bbox_mAP': 'box mAP', 'coco/segm_mAP': 'mask mAP', 'accuracy/top1': 'top-1'}
    records = list((REPO / f'configs/{folder}').glob('*.json'))
    assert records
    for path in (path.with_suffix('.pth') for path in records):
        record = load_json(path.with_suffix('.json'), 'the record')
        start = f'| `{path.name}` |' if path.exists() else '| not kept here |'
        (row,) = [line for line in card.splitlines() if line.startswith(start)]
        cells = [
            ', '.join(f'{value:.3f} {names[key]}' for key, value in record[split].items() if key in names)
            for split in ('val', 'test')
            if split in record  # the digits' records are of the test split alone
        ]
        assert row.endswith(f'| {" | ".join(cells)} | {record["bytes"]:,} | {record["epochs"]} |')
        if path.exists():
            assert path.stat().st_size == record['bytes']
            assert hashlib.sha256(path.read_bytes()).hexdigest() == record['sha256']
