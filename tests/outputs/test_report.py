"""The page of a run: what it shows, and that a run does not depend on it."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO, build_resnet, random_plan
from mmengine.config import Config

from mmautodfp import runs as apis
from mmautodfp.api import PruningTask
from mmautodfp.graph import group_statistics
from mmautodfp.kernels import BatchNormStats
from mmautodfp.outputs import RunArtifacts
from mmautodfp.outputs.report import Evidence, Report
from mmautodfp.outputs.report.evidence import ChannelMap, choose_layers, map_channels
from mmautodfp.outputs.report.pictures import Finding, Picture
from mmautodfp.outputs.report.plots import search_figure
from mmautodfp.reconstruction import NeuronMerging, PruneOnly, SimilarityReconstructor
from mmautodfp.runs.report import remake_report
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_json, save_json, save_text

SECTIONS = ['result', 'search', 'strategy', 'channels', 'merges', 'pictures', 'again']
SETTINGS = {'autodfp.num_episodes': 3, 'autodfp.agent.warmup_episodes': 1, 'autodfp.reward.num_images': 50}
PIXEL = base64.b64encode(b'no image at all').decode()


class Page(HTMLParser):
    """What a page is made of: tags with their attributes, and its words."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.text = [], [], text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for found, attributes in self.tags if found == tag]

    @property
    def absent(self):
        return re.findall(r'Not shown: (.*)\.</p>', self.text)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A short run of the classifier's demo."""
    work_dir = tmp_path_factory.mktemp('classifier') / 'run'
    apis.prune('configs/demo/vgg_digits_autodfp.py', work_dir=str(work_dir), cfg_options=SETTINGS)
    return work_dir


@pytest.fixture
def page(run):
    return Page((run / 'report.html').read_text())


def test_evidence_is_read_as_it_was_written_and_refused_in_a_sentence_if_it_is_damaged(tmp_path):
    path = tmp_path / 'evidence.json'
    found = ChannelMap('conv1', labels=[0, -1], kept=[0], partner=[0, 0], scale=[1.0, 0.5])
    Evidence(channels=[found]).to_json(path)
    assert Evidence.from_json(path) == Evidence(channels=[found])
    whole = load_json(path, 'the evidence')
    for content in ({}, [], whole | dict(channels=[dict(group='conv1')]), whole | dict(sizes=3)):
        save_json(content, path)
        with pytest.raises(AutoDFPError, match=r'evidence\.json, but that is not as a run leaves it \(\w+Error: .*\);'):
            Evidence.from_json(path)


def test_a_run_leaves_a_page_with_every_section(run, page):
    assert [attributes['id'] for attributes in page.all('section')] == SECTIONS
    assert page.absent == []
    for name in ('search', 'strategy', 'channels', 'pictures'):
        assert (run / 'report' / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
        assert {'href': f'report/{name}.png'} in page.all('a')
    assert not list(run.glob('.*'))


def test_the_page_needs_nothing_but_itself(page):
    assert not page.all('script')
    sources = [attributes[key] for _, attributes in page.tags for key in ('src', 'srcset') if key in attributes]
    assert sources
    assert all(source.startswith('data:image/') for source in sources)
    links = [attributes['href'] for tag in ('a', 'link', 'image') for attributes in page.all(tag)]
    assert all(link.startswith(('#', 'data:', 'report/')) for link in links)
    assert 'url(' not in page.text
    assert '@import' not in page.text


def test_its_plots_follow_the_readers_colours(page):
    for image in page.all('img'):
        kind, _, content = image['src'].partition(';base64,')
        if kind == 'data:image/svg+xml':
            svg = base64.b64decode(content).decode()
            assert 'prefers-color-scheme:dark' in svg
            assert 'var(--ink)' in svg
    assert 'prefers-color-scheme: dark' in page.text


def test_the_table_shows_what_the_summary_and_the_files_say(run, page):
    summary = load_json(run / 'summary.json', 'the summary')
    words = ' '.join(' '.join(page.words).split())
    for row in summary['results']:
        assert row['name'] in words
        assert f'{row["search_metric"]:.3f}' in words
        assert f'{row["module_params"]["count"]:,}' in words
    evidence = Evidence.from_json(run / 'report/evidence.json')
    assert list(evidence.latency) == ['dense', 'uniform', 'AutoDFP']
    assert all(seconds > 0 for seconds in evidence.latency.values())
    # pruned.pth also holds what is known of the plan
    weights = sum(t.numel() * t.element_size() for t in torch.load(run / 'pruned.pth')['state_dict'].values())
    assert weights < evidence.sizes['AutoDFP'] <= (run / 'pruned.pth').stat().st_size
    assert evidence.sizes['dense'] > evidence.sizes['AutoDFP']


def test_a_row_has_the_latency_that_was_measured_of_its_shapes(run, tmp_path):
    summary, latency = load_json(run / 'summary.json', 'the summary'), dict(dense=4.0, uniform=3.0, AutoDFP=2.0)
    *others, found = summary['results']
    summary['results'] = [*others, found | dict(name='AutoDFP, before distillation'), found]
    save_json(summary, tmp_path / 'summary.json')
    Evidence(latency=latency).to_json(tmp_path / 'report/evidence.json')
    rows = {row['name']: row['latency'] for row in Report(tmp_path)._rows()}
    uniform = [name for name in rows if name.startswith('uniform')]
    assert len(uniform) == 3
    assert rows == {'dense': 4, **dict.fromkeys(uniform, 3), 'AutoDFP, before distillation': 2, 'AutoDFP': 2}


def test_classified_images_that_differ_come_first(run):
    evidence = Evidence.from_json(run / 'report/evidence.json')
    differs = [picture.dense != picture.pruned for picture in evidence.pictures]
    assert differs == sorted(differs, reverse=True)
    assert {picture.truth for picture in evidence.pictures} <= set('0123456789')


def test_a_report_can_be_made_again_with_and_without_the_models(run, page):
    assert Report(run).write() == run / 'report.html'
    assert (run / 'report.html').read_text() == page.text
    before = Evidence.from_json(run / 'report/evidence.json')
    (run / 'report/evidence.json').unlink()
    remake_report(run)
    after = Evidence.from_json(run / 'report/evidence.json')
    for name in ('channels', 'sizes', 'pictures', 'missing'):
        assert getattr(after, name) == getattr(before, name)


def test_the_command_runs_the_same_search_again(run):
    command = Report(run)._command()
    assert command == f'python -m mmautodfp prune {run}/vgg_digits_autodfp.py --work-dir {run}_again'


def test_a_page_without_some_files_says_what_is_missing(run, tmp_path):
    for name in ('summary.json', 'vgg_digits_autodfp.py'):
        save_text((run / name).read_text(), tmp_path / name)
    page = Page(Report(tmp_path).write().read_text())
    assert [attributes['id'] for attributes in page.all('section')] == SECTIONS
    for name in ('search.pth', 'strategy.json', 'evidence.json'):
        assert any(name in reason for reason in page.absent), name
    missing = Report(tmp_path).missing
    assert {name for name, reason in missing.items() if 'evidence.json' in reason} == {
        *('evidence', 'channels', 'sizes', 'latency', 'pictures')
    }
    assert '<table>' in page.text


def test_a_folder_without_a_run_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(
        AutoDFPError, match=r'summary of a run was to be read from .*summary.json, but there is no such'
    ):
        remake_report(tmp_path)
    save_json([], tmp_path / 'summary.json')
    with pytest.raises(AutoDFPError, match='expected to hold the results of a run'):
        remake_report(tmp_path)


@pytest.mark.parametrize(
    'change',
    [
        lambda summary: summary.pop('module'),
        lambda summary: summary.pop('versions'),
        lambda summary: summary['results'][-1].pop('name'),
        lambda summary: summary['results'][-1].update(search_metric='x'),
        lambda summary: summary.update(test=['x']),
    ],
)
def test_a_summary_that_was_edited_is_refused_in_a_sentence(run, tmp_path, change):
    summary = json.loads((run / 'summary.json').read_text())
    change(summary)
    for file, content in (('summary.json', summary), ('report/evidence.json', {})):
        save_json(content, tmp_path / file)
    with pytest.raises(AutoDFPError, match=r'summary.json, or another of them, is not as a run leaves it \(\w+Error: '):
        remake_report(tmp_path)


def test_what_cannot_be_gathered_is_told_with_its_reason():
    evidence = Evidence()
    evidence.gather('sizes', lambda: 1 / 0)
    assert evidence.missing == {'sizes': 'ZeroDivisionError: division by zero'}
    evidence.gather('sizes', lambda: {'dense': 1})
    assert (evidence.sizes, evidence.missing) == ({'dense': 1}, {})


def test_the_figure_of_a_search_draws_every_row_of_a_comparison():
    baselines = {f'baseline {number}': 0.1 * number for number in range(5)}
    figure = search_figure([0.3, 0.5], baselines, 'bbox_mAP')
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert [text for text in texts if text.startswith('baseline')] == [f'{k} ({v:.3f})' for k, v in baselines.items()]
    levels = [line.get_ydata()[0] for line in figure.axes[0].lines[-5:]]
    assert levels == list(baselines.values())


def test_what_a_test_loop_tells_beside_numbers_is_left_out_of_the_summary(tmp_path):
    work = RunArtifacts(SimpleNamespace(), tmp_path, None, None, {})
    metrics = dict(mAP=torch.tensor(0.5), rare=float('nan'), confusion=[[3, 1]], per_class=torch.zeros(2), note='fine')
    work.add_test_metrics(metrics)
    assert load_json(tmp_path / 'summary.json', 'the summary') == dict(test=dict(mAP=0.5, rare=None))


def test_a_report_that_fails_does_not_fail_the_run(run, tmp_path, monkeypatch):
    found = SimpleNamespace(history=[], objectives=None)
    work = RunArtifacts(Config(), tmp_path / 'absent', None, found, {})
    work.evidence = Evidence()
    assert 'summary of a run was to be read' in work.write_report()
    assert 'report.html' not in work.next_steps()[0]

    def broken(*_):
        raise RuntimeError('no fonts')

    monkeypatch.setattr('mmautodfp.outputs.report.page.search_figure', broken)
    work = RunArtifacts(Config(), run, None, found, {})
    work.evidence = Evidence.from_json(run / 'report/evidence.json')
    before = (run / 'report.html').read_text(), (run / 'report/evidence.json').read_text()
    assert work.write_report() is None
    assert 'report.html' in work.next_steps()[0]
    assert Page((run / 'report.html').read_text()).absent == ['RuntimeError: no fonts']
    for name, text in zip(('report.html', 'report/evidence.json'), before, strict=True):
        save_text(text, run / name)


@pytest.mark.parametrize(('episodes', 'objectives', 'hints'), [(1, True, 0), (2, False, 1), (2, True, 2)])
def test_going_on_is_a_hint_where_there_was_a_search_alone(tmp_path, episodes, objectives, hints):
    found = SimpleNamespace(history=[0] * episodes, objectives=objectives or None)
    steps = RunArtifacts(Config(), tmp_path, None, found, {}).next_steps()
    assert sum('--resume' in step for step in steps) == hints
    assert ('search.pth' in steps[0]) == (hints > 0)


def test_what_a_config_lacks_for_a_training_is_told(tmp_path):
    found, hints = SimpleNamespace(history=[], objectives=None), []
    for name in ('demo/vgg_digits.py', 'classification/vgg16_cifar10_autodfp.py'):
        steps = RunArtifacts(Config.fromfile(REPO / 'configs' / name), tmp_path, None, found, {}).next_steps()
        hints += [step for step in steps if step.startswith('fine-tune it:   ')]
    config = tmp_path / 'pruned.py'
    assert f'hand {config} to tools/train.py' in hints[0]
    assert f'add train_dataloader, train_cfg, optim_wrapper to {config} and hand it to tools/train.py' in hints[1]


def test_a_run_without_a_report_leaves_none_of_an_earlier_run(run, tmp_path):
    bare = SETTINGS | {'autodfp.report': False, 'autodfp.compare': False}
    shutil.copytree(run, tmp_path / 'run')
    for own in ('notes.txt', 'mine.png'):
        save_text('mine', tmp_path / f'run/report/{own}')
    apis.prune('configs/demo/vgg_digits_autodfp.py', work_dir=str(tmp_path / 'run'), cfg_options=bare)
    assert not (tmp_path / 'run/report.html').exists()
    assert {file.name for file in (tmp_path / 'run/report').iterdir()} == {'notes.txt', 'mine.png'}
    save_text('mine', tmp_path / 'run/report.html')  # no run has written it
    apis.prune('configs/demo/vgg_digits_autodfp.py', work_dir=str(tmp_path / 'run'), cfg_options=bare)
    assert (tmp_path / 'run/report.html').read_text() == 'mine'


def test_words_of_the_user_stay_words(run, tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'
    summary = load_json(run / 'summary.json', 'the summary')
    for key in ('model', 'module', 'metric'):
        summary[key] = evil
    summary['config'] = f'configs/{evil.replace("/", "")}.py'
    summary['results'][0]['name'] = evil
    summary['test'] = {evil: 0.5}
    save_json(summary, tmp_path / 'summary.json')
    save_text(f'classes = ({evil!r},)', tmp_path / f'{evil.replace("/", "")}.py')
    boxes = [Finding(evil, 0.9, [0.1, 0.1, 0.5, 0.5])]
    evidence = Evidence(
        channels=[ChannelMap(evil, [0, -1], [0], [0, 0], [1, 1.5])],
        pictures=[Picture(evil, PIXEL, 20, 10, None, boxes, boxes)],
        missing=dict(latency=evil),
    )
    evidence.to_json(tmp_path / 'report/evidence.json')
    page = Page(Report(tmp_path).write().read_text())
    assert not page.all('script')
    assert not [attributes for _, attributes in page.tags if 'onerror' in attributes]
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in Page((run / 'report.html').read_text()).tags} | {
        *('svg', 'image', 'rect', 'text')
    }
    words = ' '.join(page.words)
    assert words.count(evil) >= 9
    assert evil[:20] in words  # the label of a box is cut


def test_stand_ins_are_those_of_the_delivery_matrix():
    task = PruningTask.build(build_resnet(18), '', reconstructor=SimilarityReconstructor())
    plan = random_plan(task.module)
    maps = map_channels(task, plan)
    assert [found.group for found in maps] == [group.name for group in task.groups]
    for group, found in zip(task.groups, maps, strict=True):
        keep = plan.groups[group.name].keep
        delivery = task.reconstructor.reconstruct(group, torch.tensor(keep), plan.groups[group.name].lam).delivery
        weight, bn = group_statistics(task.module, group)
        assert isinstance(bn, BatchNormStats)
        assert len(found.labels) == len(weight)
        for channel, (partner, scale) in enumerate(zip(found.partner, found.scale, strict=True)):
            assert delivery[channel, keep.index(partner)].item() == pytest.approx(scale)
            assert delivery[channel].count_nonzero() == 1
            if channel in keep:
                assert (partner, scale) == (channel, 1)


def test_what_is_dropped_has_no_stand_in():
    model = build_resnet(18)
    plan = random_plan(model)
    for reconstructor in (PruneOnly(), NeuronMerging(min_cosine=1.0)):
        for found in map_channels(PruningTask.build(model, '', reconstructor=reconstructor), plan):
            alone = [channel for channel, partner in enumerate(found.partner) if partner == -1]
            assert alone == sorted(set(range(len(found.labels))) - set(found.kept))


def test_the_layers_shown_are_those_with_most_clusters_then_most_pruned():
    def layer(clusters, kept, total=16):
        labels = [channel % clusters if clusters else -1 for channel in range(total)]
        return ChannelMap('x', labels, list(range(kept)), [0] * total, [1] * total)

    maps = [layer(0, 16), layer(3, 16), layer(0, 4), layer(2, 16), layer(9, 2, total=4), layer(0, 8)]
    assert choose_layers(maps, 4) == [1, 2, 3, 5]
    assert choose_layers(maps, 1) == [1]
    assert choose_layers(maps[4:5], 4) == []  # four channels are no map
