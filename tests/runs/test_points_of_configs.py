"""Frontiers of whole configs, and points of them that are pruned: what a file says is what a pruned model is."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import mmcv
import pytest
import torch
from conftest import REPO
from in_process import run_tool
from sklearn.datasets import load_digits

from mmautodfp.frontier import Frontier
from mmautodfp.outputs.report.frontier_page import write_frontier
from mmautodfp.runs import evaluate, frontier, load_config, prune
from mmautodfp.runs.frontier import _identify, take_point
from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.fileio import load_json, save_json

CLASSIFIER = 'configs/demo/vgg_digits_autodfp.py'
OPTIONS = {
    'autodfp.reconstructor.type': 'SyntheticLeastSquares',
    'autodfp.reconstructor.images.size': 8,
    'autodfp.reconstructor.images.num_images': 16,
}


def typed(options: dict) -> list[str]:
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A frontier of six points."""
    work_dir = tmp_path_factory.mktemp('classifier')
    return frontier(CLASSIFIER, work_dir=str(work_dir), points=6, cfg_options=dict(OPTIONS)), work_dir


def require_as_told(found: Frontier, index: int, work_dir) -> dict:
    """Compare a run's files with a point; its row of the summary."""
    point, row = found.points[index], load_json(work_dir / 'summary.json', 'the summary')['results'][-1]
    assert (row['search_metric'], row['held_out_metric']) == (point.metric, point.held_out)
    for name in ('module_params', 'model_params', 'module_flops', 'model_flops'):
        assert row[name] == point.costs[name]
    assert list(row['widths'].values()) == point.widths
    state = torch.load(work_dir / 'pruned.pth', weights_only=True)['state_dict']
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    weights = [tensor for name, tensor in state.items() if not name.endswith(buffers)]
    assert sum(tensor.numel() for tensor in weights) == point.costs['model_params']['count']
    return row


def test_a_frontier_that_learned_from_pictures_is_pruned_with_them_alone(tmp_path):
    pictures, options = tmp_path / 'pictures', dict(OPTIONS)
    digits = load_digits().images[:16]
    for number, digit in enumerate(digits):
        mmcv.imwrite((digit * 15.9375).round().astype('uint8'), str(pictures / f'{number}.png'))
    work_dir = tmp_path / 'work'
    told = dict(work_dir=str(work_dir), points=3, cfg_options=options)
    found = frontier(CLASSIFIER, images=str(pictures), **told)
    file, limits = str(work_dir / 'frontier.json'), dict(max_flops='60%')
    asked = dict(work_dir=str(tmp_path / 'pruned'), cfg_options=options, from_frontier=file, limits=limits)
    with pytest.raises(AutoDFPError, match='other reconstructor'):
        prune(CLASSIFIER, **asked)
    prune(CLASSIFIER, images=str(pictures), **asked)
    able = [index for index, point in enumerate(found.points) if point.cost('flops')['ratio'] <= 0.6]
    require_as_told(found, max(able, key=lambda index: found.points[index].metric), tmp_path / 'pruned')
    mmcv.imwrite(digits[0].astype('uint8'), str(pictures / '0.png'))
    with pytest.raises(AutoDFPError, match='other reconstructor'):
        frontier(CLASSIFIER, images=str(pictures), **told)


def test_a_classifiers_point_is_pruned_to_what_the_file_says(classifier, tmp_path):
    found, folder = classifier
    file = str(folder / 'frontier.json')
    metrics = prune(
        CLASSIFIER, work_dir=str(tmp_path), cfg_options=dict(OPTIONS), from_frontier=file, limits=dict(max_flops='50%')
    )
    able = [index for index, point in enumerate(found.points) if point.cost('flops')['ratio'] <= 0.5]
    index = max(able, key=lambda index: (found.points[index].metric, index))
    require_as_told(found, index, tmp_path)
    # All of the digits' test split is held out, so MMEngine's own loop must come to the same.
    assert metrics['accuracy/top1'] == pytest.approx(found.points[index].held_out)
    again = evaluate(tmp_path / 'pruned.py', str(tmp_path / 'pruned.pth'), str(tmp_path / 'test'))
    assert again == metrics
    summary = load_json(tmp_path / 'summary.json', 'the summary')
    assert summary['frontier'] == dict(file=file, point=index, limits=dict(max_flops='50%'))
    assert (summary['episodes'], summary['best_episode']) == (0, None)
    (log,) = tmp_path.glob('*/*.log')
    said = f'point {index} of {file} is pruned, the best within --max-flops 50%: top1 {found.points[index].metric:.4f}'
    assert said in log.read_text()
    assert not (tmp_path / 'search.pth').exists()
    page = (tmp_path / 'report.html').read_text()
    assert f'--from-frontier {file} --max-flops 50%' in page
    assert 'id="search"' not in page


def test_the_work_dir_gets_a_page_a_picture_and_a_table(classifier):
    found, folder = classifier
    page = (folder / 'frontier.html').read_text()
    assert page.count('<tr>') == 1 + 6
    assert page.count('>dominated<') == sum(found.dominated())
    assert f'--from-frontier {folder}/frontier.json' in page
    assert (folder / 'frontier.png').stat().st_size > 10_000
    assert len((folder / 'frontier.csv').read_text().splitlines()) == 1 + 6


def test_the_page_tells_a_command_that_works_for_what_was_pruned_before_and_for_a_checkpoint_to_be_trusted(
    classifier, tmp_path
):
    found, _ = classifier
    before = replace(found, about=found.about | dict(config='work_dirs/run/pruned.py', trust_checkpoint=True))
    page = write_frontier(before, tmp_path).read_text()
    assert f'prune {tmp_path}/pruned_before.py --from-frontier' in page  # the name under which a run keeps it
    assert '--trust-checkpoint</pre>' in page
    assert found.about['trust_checkpoint'] is False


def test_it_is_measured_once(classifier, monkeypatch, tmp_path):
    found, folder = classifier
    monkeypatch.setattr('mmautodfp.frontier.measure._measure', None)
    moved = tmp_path / 'moved.py'
    load_config(CLASSIFIER).dump(moved)  # its keys are in another order
    for config in (CLASSIFIER, moved):
        assert frontier(config, work_dir=str(folder), points=6, cfg_options=dict(OPTIONS)) == found


def test_a_frontier_of_other_points_is_refused_before_a_model_is_built(classifier, monkeypatch):
    monkeypatch.setattr(sys.modules['mmautodfp.runs.frontier'], 'build_runner', None)
    with pytest.raises(AutoDFPError, match=r'frontier\.json was measured with other number of points than'):
        frontier(CLASSIFIER, work_dir=str(classifier[1]), points=7, cfg_options=dict(OPTIONS))


def test_a_frontier_of_other_weights_is_refused(classifier, other_weights, tmp_path):
    _, folder = classifier
    options = dict(checkpoint=other_weights, cfg_options=dict(OPTIONS))
    message = 'frontier.json was measured with other weights than what is asked for now'
    with pytest.raises(AutoDFPError, match=message):
        frontier(CLASSIFIER, work_dir=str(folder), points=6, **options)
    with pytest.raises(AutoDFPError, match=message):
        prune(
            CLASSIFIER,
            work_dir=str(tmp_path),
            from_frontier=str(folder / 'frontier.json'),
            limits=dict(max_flops='50%'),
            **options,
        )


def test_a_frontier_under_other_settings_of_the_model_or_the_data_is_refused(classifier):
    _, folder = classifier
    other = {'model.data_preprocessor.mean': [200.0], 'test_dataloader.dataset.split': 'train'}
    message = (
        'frontier.json was measured with other held out images and other model.data_preprocessor and other '
        'test_dataloader.dataset.split than what is asked for now; name another work dir'
    )
    with pytest.raises(AutoDFPError, match=message):
        frontier(CLASSIFIER, work_dir=str(folder), points=6, cfg_options=OPTIONS | other)


def test_a_point_is_pruned_under_the_settings_of_the_model_alone_that_it_was_measured_with(classifier, tmp_path):
    file, limits = classifier[1] / 'frontier.json', dict(max_flops='50%')
    asked = dict(work_dir=str(tmp_path / 'run'), from_frontier=str(file), limits=limits)
    other = OPTIONS | {'model.data_preprocessor.mean': [200.0]}
    with pytest.raises(AutoDFPError, match=r'json was measured with other model\.data_preprocessor than what is asked'):
        prune(CLASSIFIER, cfg_options=dict(other), **asked)
    # Neither where the config lies nor on which images it reports is part of the model.
    moved = tmp_path / 'moved.py'
    load_config(CLASSIFIER).dump(moved)
    bare = {'autodfp.compare': False, 'autodfp.report': False, 'test_dataloader.dataset.split': 'train'}
    prune(moved, cfg_options=OPTIONS | bare, **asked)
    # A frontier that Python began has no such facts.
    content = load_json(file, 'it')
    del content['identity']['further']
    save_json(content, tmp_path / 'frontier.json')
    prune(CLASSIFIER, cfg_options=other | bare, **asked | dict(from_frontier=str(tmp_path / 'frontier.json')))


def test_a_frontier_of_an_earlier_version_which_does_not_tell_them_is_gone_on_with(classifier, tmp_path):
    found, folder = classifier
    content = load_json(folder / 'frontier.json', 'it')
    del content['identity']['further'], content['points'][-1]
    save_json(content, tmp_path / 'frontier.json')
    frontier(CLASSIFIER, work_dir=str(tmp_path), points=6, cfg_options=dict(OPTIONS))
    again = Frontier.load(tmp_path / 'frontier.json')
    assert again.points[:-1] == found.points[:-1]
    assert again.identity == found.identity


def test_a_file_that_python_began_without_facts_gets_those_of_the_command_line(classifier, tmp_path):
    found, folder = classifier
    content = load_json(folder / 'frontier.json', 'it') | dict(about=dict(allocated=True))
    save_json(content, tmp_path / 'frontier.json')
    again = frontier(CLASSIFIER, work_dir=str(tmp_path), points=6, cfg_options=dict(OPTIONS))
    assert again.about == Frontier.load(tmp_path / 'frontier.json').about == found.about
    assert 'vgg_digits_autodfp.py --from-frontier' in (tmp_path / 'frontier.html').read_text()


def test_a_budget_on_a_cost_that_the_points_do_not_tell_ends_in_a_sentence(classifier, tmp_path):
    content = load_json(classifier[1] / 'frontier.json', 'it')
    for point in content['points']:
        del point['costs']['module_params']
    save_json(content, tmp_path / 'frontier.json')
    with pytest.raises(AutoDFPError, match=r'the budget is on the params of the module, which the points of .*json do'):
        take_point(load_config(CLASSIFIER), tmp_path / 'frontier.json', dict(max_flops='50%'))


def test_corrected_annotations_make_another_frontier(tmp_path):
    cfg = load_config('configs/demo/faster_rcnn_digits_autodfp.py')
    reward = SimpleNamespace(needs_data=True, annotation_file=tmp_path / 'some.json')
    facts = []
    for content in ('[1]', '[2]'):
        reward.annotation_file.write_text(content)
        facts.append(_identify(cfg, dict(val=reward, test=None)))
    (differing,) = (name for name in facts[0] if facts[0][name] != facts[1][name])
    assert differing == 'annotations of val_dataloader.dataset'
    assert 'val_dataloader.dataset.pipeline' in facts[0]
    assert 'val_dataloader.dataset.data_root' not in facts[0]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--from-frontier', 'absent.json', '--max-flops', '50%'], 'there is no such file'),
        (['--from-frontier', 'FILE'], 'no limit was named'),
        (
            ['--from-frontier', 'FILE', '--max-flops', '50%', '--episodes', '3'],
            'without a search; leave out --episodes',
        ),
        (['--from-frontier', 'FILE', '--max-flops', '50%', '--resume'], 'without a search; leave out --resume'),
        (['--from-frontier', 'FILE', '--max-flops', '1%'], '--max-flops 1% was asked for, but the points of'),
        (['--min-metric', '50%'], '--min-metric chooses a point of a frontier; name it with --from-frontier'),
    ],
)
def test_bad_requests_for_a_point_end_in_a_sentence(classifier, tmp_path, arguments, message):
    file = str(classifier[1] / 'frontier.json')
    arguments = [file if argument == 'FILE' else argument for argument in arguments]
    result = run_tool('prune', CLASSIFIER, *arguments, '--work-dir', str(tmp_path), *typed(OPTIONS))
    assert result.returncode == 2
    assert message in result.stderr


def test_without_data_a_classifier_that_says_its_size_gets_images_of_it(tmp_path):
    options = {'autodfp.reconstructor.type': 'SimilarityReconstructor'}
    found = frontier(CLASSIFIER, work_dir=str(tmp_path), points=2, no_data=True, cfg_options=options)
    assert found.about['flops_input'] == [1, 1, 8, 8]
    assert found.points[0].metric == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_without_data_a_point_is_measured_and_pruned_where_there_is_none(tmp_path):
    config = 'configs/demo/faster_rcnn_digits_autodfp.py'
    options = {
        'autodfp.reconstructor': dict(
            type='SyntheticLeastSquares', images=dict(num_images=2, size=64), recalibration=2, refinement=False
        ),
        'visualizer.name': 'no_data',
    }
    for split in ('val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = '/nowhere/digits/'
        options[f'{split}_evaluator.ann_file'] = '/nowhere/digits/annotations.json'
    work_dir = tmp_path / 'frontier'
    found = frontier(config, work_dir=str(work_dir), points=3, no_data=True, cfg_options=dict(options))
    assert [point.held_out for point in found.points] == [None] * 3
    assert found.points[0].metric == pytest.approx(1)
    assert found.about['metric'] == 'output_likeness'
    bare = {'autodfp.compare': False, 'autodfp.report': False}
    limits = dict(max_params='80%')
    file = str(work_dir / 'frontier.json')
    assert (
        prune(config, work_dir=str(tmp_path / 'run'), cfg_options=options | bare, from_frontier=file, limits=limits)
        == {}
    )
    require_as_told(found, 1, tmp_path / 'run')


@pytest.mark.slow
def test_a_process_that_is_killed_loses_no_point(tmp_path):
    command = [sys.executable, str(REPO / 'tools/frontier.py'), CLASSIFIER, '--points', '12', f'--work-dir={tmp_path}']
    env = os.environ | dict(PYTHONPATH=str(REPO))
    process = subprocess.Popen([*command, *typed(OPTIONS)], env=env, stdout=subprocess.DEVNULL)
    file, deadline = tmp_path / 'frontier.json', time.monotonic() + 300
    while process.poll() is None and not (file.exists() and len(Frontier.load(file).points) >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = Frontier.load(file)
    assert 3 <= len(kept.points) < 12
    subprocess.run([*command, *typed(OPTIONS)], env=env, check=True, stdout=subprocess.DEVNULL)
    found = Frontier.load(file)
    assert found.complete
    assert found.points[: len(kept.points)] == kept.points
    assert found.path == kept.path


@pytest.mark.slow
@pytest.mark.parametrize('config', ['faster_rcnn_digits_whole_autodfp', 'fcos_digits_whole_autodfp'])
def test_a_detectors_point_is_pruned_to_what_the_file_says(config, small_demo, tmp_path):
    options = small_demo | {
        'autodfp.reconstructor.images': dict(num_images=8, size=64),
        'autodfp.reconstructor.refinement': dict(groups_per_pass=16),
        'autodfp.report': False,
        'visualizer.name': config,
    }
    found = frontier(config, work_dir=str(tmp_path / 'frontier'), points=4, cfg_options=dict(options))
    assert {name for point in found.points for name in found.costs()} >= {'params', 'flops', 'latency'}
    file = str(tmp_path / 'frontier/frontier.json')
    limit = found.points[1].cost('flops')['count']
    prune(
        config,
        work_dir=str(tmp_path / 'run'),
        cfg_options=dict(options),
        from_frontier=file,
        limits=dict(max_flops=str(limit), min_metric=str(found.points[1].metric)),
    )
    index = load_json(tmp_path / 'run/summary.json', 'the summary')['frontier']['point']
    require_as_told(found, index, tmp_path / 'run')
