"""The page of a detector that was pruned as a whole: where its parameters and FLOPs were and are."""

import copy
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmautodfp.api import PruningTask, SearchResult
from mmautodfp.graph import samples_of
from mmautodfp.outputs import RunArtifacts, compare
from mmautodfp.outputs.report import Evidence, Report
from mmautodfp.outputs.report.part_plots import parts_figure, strategy_figure
from mmautodfp.outputs.report.parts import PartCounts, count_parts, part_of
from mmautodfp.runs.report import remake_report
from mmautodfp.search import History
from mmautodfp.utils.fileio import load_json, save_json

SHAPE = [1, 3, 64, 64]


FLOPS = dict(type='FlopBudget', preserve_ratio=0.6, scope='model')


def write_run(work_dir, name, target, checkpoint, limit=FLOPS):
    """Leave what a run does, without a search and with random weights; returns its task and plan."""
    torch.manual_seed(0)
    cfg = Config.fromfile(REPO / f'configs/demo/{name}_digits_zero_data.py')
    model = MODELS.build(cfg.model)
    model.eval()
    torch.save(dict(state_dict=copy.deepcopy(model.state_dict())), checkpoint)
    cfg.load_from = str(checkpoint)
    cfg.autodfp.target, cfg.autodfp.reconstructor = target, dict(type='PruneOnly')
    images = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    example = dict(inputs=images, data_samples=samples_of(images), mode='tensor')
    task = PruningTask.build(model, target, example, [limit], dict(type='PruneOnly'))
    found = SearchResult(task.uniform_plan(), 0.5, History(rewards=[0.5], seconds=[1.0]), 1.0, {}, episode=0)
    rows = compare(task, found, [lambda _: 0.5, None])
    work_dir.mkdir()
    cfg.dump(work_dir / 'zero_data.py')
    cfg = Config.fromfile(work_dir / 'zero_data.py')
    how = dict(agent=dict(type='SAC'), reconstructor=dict(type='PruneOnly'))
    artifacts = RunArtifacts(cfg, work_dir, task, found, how)
    assert len(task.layer_states) == len(task.groups)  # of the dense model, as a search has seen them
    with task.apply(found.plan) as pruned:
        artifacts.write_model(pruned, {})
    reward = SimpleNamespace(name='likeness', reported_name='likeness', images=[0])
    artifacts.write_summary(reward, None, None, rows, seed=0)
    return task, found.plan


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Of a Faster R-CNN; its work dir, task and plan."""
    folder = tmp_path_factory.mktemp('whole')
    init_default_scope('mmdet')
    return folder / 'run', *write_run(folder / 'run', 'faster_rcnn', 'model', folder / 'dense.pth')


def test_parts_are_counted_so_that_they_add_up_to_the_whole(run):
    work_dir, task, plan = run
    parts = {part.name: part for part in count_parts(work_dir)}
    assert list(parts) == ['backbone', 'neck', 'rpn_head', 'roi_head.bbox_head']
    counts = task.summary(plan)
    for index, total in enumerate((task.costs.flops['model'](task.dense_widths), counts['model_flops']['count'])):
        assert sum(part.flops[index] for part in parts.values()) == total
    for index, total in enumerate((task.costs.params['model'](task.dense_widths), counts['model_params']['count'])):
        assert sum(part.params[index] for part in parts.values()) == total
    # By hand: a 3x3 convolution of 64 channels and its two predictors of 3 anchors, on maps of 16 to 1 pixels.
    weights = 64 * 64 * 9 + 64 * 15
    assert parts['rpn_head'].params[0] == weights + 64 + 15
    assert parts['rpn_head'].flops[0] == weights * (16**2 + 8**2 + 4**2 + 2**2 + 1)


def test_flops_of_a_second_stage_follow_the_regions_of_the_run(run, tmp_path):
    work_dir, *_ = run
    before = {part.name: part.flops for part in count_parts(work_dir)}
    copied = shutil.copytree(work_dir, tmp_path / 'run')
    summary = load_json(copied / 'summary.json', 'the summary')
    added = before['roi_head.bbox_head']  # as of twice as many regions
    for row in summary['results']:
        dense, pruned = added
        row['model_flops']['count'] += dense if row['name'] == 'dense' else pruned
        whole = sum(flops[0] for flops in before.values()) + dense
        row['model_flops']['ratio'] = row['model_flops']['count'] / whole
    save_json(summary, copied / 'summary.json')
    after = {part.name: part.flops for part in count_parts(copied)}
    assert after.pop('roi_head.bbox_head') == [2 * flops for flops in before.pop('roi_head.bbox_head')]
    assert after == before


def test_the_page_shows_each_part_and_can_be_made_again_from_the_files(run):
    work_dir, task, plan = run
    text = remake_report(work_dir).read_text()
    evidence = Evidence.from_json(work_dir / 'report/evidence.json')
    assert evidence.missing == dict(pictures='the run opened no data set')
    assert evidence.parts == count_parts(work_dir)
    assert set(evidence.latency) == {'dense', 'uniform', 'AutoDFP'}
    assert [found.group for found in evidence.channels] == [group.name for group in task.groups]
    words = ' '.join(re.sub('<[^>]*>', ' ', text).split())
    assert 'the whole model of' in words
    assert 'FLOPs of the whole model' in words
    widths = {name: width for name, width in plan.widths.items() if part_of(name) == 'neck'}
    assert list(widths.values()) == [widths['neck.lateral_convs.0.conv']] * 2
    assert f'neck 2 {sum(widths.values())} of 128 ' in words
    for name in ('parts', 'strategy'):
        assert (work_dir / f'report/{name}.png').read_bytes()[:4] == b'\x89PNG'
    assert '<a href="#parts">' in text
    assert '60&thinsp;% (FlopBudget, model)' in text
    assert remake_report(work_dir).read_text() == text  # from what was kept


def test_several_parts_are_named_and_what_is_not_pruned_stays_as_it_was(tmp_path):
    work_dir = tmp_path / 'run'
    limit = dict(type='MemoryBudget', limit='8.5MB', scope='model')
    task, plan = write_run(work_dir, 'retinanet', ['neck', 'bbox_head'], tmp_path / 'dense.pth', limit)
    assert task.target == 'neck,bbox_head'
    words = ' '.join(re.sub('<[^>]*>', ' ', remake_report(work_dir).read_text()).split())
    assert 'neck,bbox_head of' in words
    assert 'budget 8.5MB (MemoryBudget, model)' in words
    held = task.summary(plan)['module_memory']
    assert held['count'] <= 8_500_000
    assert f'{held["count"] / 1e6:.4g} MB {held["ratio"]:.0%}'.replace('%', ' %') in words.replace('&thinsp;', ' ')
    parts = {part.name: part for part in Report(work_dir).evidence.parts}
    dense, pruned = parts['backbone'].flops
    assert dense == pruned > 0
    assert parts['bbox_head'].flops[1] < parts['bbox_head'].flops[0]
    assert re.search(r'backbone – – ', words)


def test_a_part_alone_has_no_parts_and_its_page_no_section_of_them(run, tmp_path):
    copied = shutil.copytree(run[0], tmp_path / 'run')
    summary = load_json(copied / 'summary.json', 'the summary')
    save_json(summary | dict(module='backbone'), copied / 'summary.json')
    assert count_parts(copied) == []
    Evidence(channels=[]).to_json(copied / 'report/evidence.json')
    text = remake_report(copied).read_text()
    assert 'id="parts"' not in text
    assert '#parts' not in text


def test_parts_that_cannot_be_counted_are_told_with_the_reason(run, tmp_path):
    copied = shutil.copytree(run[0], tmp_path / 'run', ignore=shutil.ignore_patterns('report', '*.pth'))
    whole = remake_report(copied).read_text().partition('<section id="parts">')[2].partition('</section>')[0]
    assert re.search(r'Not shown: .*pruned\.pth', whole)
    summary = load_json(copied / 'summary.json', 'the summary')
    save_json(summary | dict(module='backbone', target='backbone'), copied / 'summary.json')
    assert 'id="parts"' not in remake_report(copied).read_text()


def test_many_groups_stand_below_the_names_of_their_parts():
    names = [f'backbone.layer{i}.conv' for i in range(50)] + [
        'neck.a',
        'roi_head.bbox_head.fc',
        'roi_head.mask_head.up',
    ]
    figure = strategy_figure(names, [0.5] * 53, [1.0] * 53, [0.1] * 53, [], by_part=True)
    left, right = figure.axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels[:2] == ['backbone', 'layer0.conv']
    assert labels[51:] == ['neck', 'a', 'roi_head.bbox_head', 'fc', 'roi_head.mask_head', 'up']
    assert len(left.patches) == len(right.patches) == 53
    bold = [label.get_text() for label in left.get_yticklabels() if label.get_fontweight() == 'bold']
    assert bold == ['backbone', 'neck', 'roi_head.bbox_head', 'roi_head.mask_head']
    assert [len(line.get_xdata()) for line in left.lines if line.get_marker() == 'o'] == [50, 1, 1, 1]
    assert figure.get_figheight() < 12
    alone = strategy_figure(names[:50], [0.5] * 50, [1.0] * 50, [], [], by_part=True)
    assert [label.get_text() for label in alone.axes[0].get_yticklabels()] == names[:50]


def test_bars_of_the_parts_are_as_long_as_their_counts():
    figure = parts_figure(
        [PartCounts('backbone', [4000, 1000], [8_000_000, 2_000_000]), PartCounts('neck', [0, 0], [0, 0])]
    )
    flops, params = figure.axes
    assert [bar.get_width() for bar in flops.patches] == [8, 0, 2, 0]
    assert [bar.get_width() for bar in params.patches] == [4, 0, 1, 0]
    assert [text.get_text() for text in flops.texts] == [' 25%']
    assert (flops.get_xlabel(), params.get_xlabel()) == ('FLOPs, M', 'parameters, k')
