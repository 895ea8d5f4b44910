import json
import shutil

import pytest
from conftest import REPO

from mmautodfp.experiments import bench
from mmautodfp.experiments import sweep as sweeping
from mmautodfp.experiments.sweep import markdown, sweep
from mmautodfp.utils import AutoDFPError

CONFIG = 'configs/demo/faster_rcnn_digits_autodfp.py'


@pytest.fixture(scope='module')
def folder(small_demo, tmp_path_factory):
    root = tmp_path_factory.mktemp('sweep')
    cells = sweep([CONFIG], [0.9, 0.5], [0, 1], root, episodes=2, latency_repeat=1, cfg_options=dict(small_demo))
    return root, cells


@pytest.mark.slow
def test_a_cell_holds_the_runs_of_all_seeds(folder):
    root, cells = folder
    assert [cell['preserve_ratio'] for cell in cells] == [0.9, 0.5]
    for cell in cells:
        summaries = [json.loads((root / run / 'summary.json').read_text()) for run in cell['runs']]
        assert [summary['seed'] for summary in summaries] == cell['seeds'] == [0, 1]
        for name, values in cell['held_out'].items():
            rows = [next(row for row in summary['results'] if row['name'] == name) for summary in summaries]
            assert values == [row['held_out_metric'] for row in rows]
            ratios = [row['module_params']['ratio'] for row in rows]
            assert cell['params'][name] == pytest.approx(sum(ratios) / 2)
        assert cell['params']['AutoDFP'] <= cell['preserve_ratio']
        assert set(cell['latency']) == {'dense', 'uniform', 'AutoDFP'}
        assert all(latency['module'] > 0 for latency in cell['latency'].values())
    assert json.loads((root / 'sweep.json').read_text()) == cells
    assert (root / 'pareto.png').read_bytes().startswith(b'\x89PNG')


def test_the_table_shows_means_and_the_best_in_bold():
    cells = json.loads((REPO / 'configs/demo/results/sweep.json').read_text())[:2]
    names = ('dense', *sweeping.METHODS)
    names = [name for name in names if not name.startswith('allocated')]
    values = ([0.8, 0.8], [0.1, 0.2], [0.3, 0.3], [0.2, 0.2], [0.4, 0.1])
    cells[0]['held_out'] = dict(zip(names, values, strict=True))
    cells[1]['held_out']['AutoDFP'] = [None, None]
    lines = markdown(cells)
    assert lines[0].count('|') == lines[1].count('|') == lines[2].count('|')
    assert '| 90% | 0.800 | 0.150 | **0.300** | 0.200 | 0.250 |' in lines[2]
    assert '| - |' in lines[3]
    assert 'allocated' not in lines[0]
    cells[1]['held_out']['allocated, same compensation'] = [0.9, 0.9]
    lines = markdown(cells)
    assert '| same compensation | allocated | AutoDFP |' in lines[0]
    assert '| **0.300** | 0.200 | - | 0.250 |' in lines[2]
    assert '| **0.900** | - |' in lines[3]


@pytest.mark.slow
def test_finished_runs_are_not_repeated_and_a_lost_one_is_made_again(folder, small_demo, tmp_path, monkeypatch):
    root = shutil.copytree(folder[0], tmp_path / 'copy')
    played = []
    real = bench.prune
    monkeypatch.setattr(bench, 'prune', lambda *a, **k: played.append(k) or real(*a, **k))
    shutil.rmtree(root / folder[1][1]['runs'][1])
    again = sweep([CONFIG], [0.9, 0.5], [0, 1], root, episodes=2, latency_repeat=0, cfg_options=dict(small_demo))
    assert [(k['preserve_ratio'], k['seed'], k['resume']) for k in played] == [(0.5, 1, False)]
    assert [cell['held_out'] for cell in again] == [cell['held_out'] for cell in folder[1]]


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others_and_is_in_no_cell(folder, small_demo, tmp_path):
    root = shutil.copytree(folder[0], tmp_path / 'copy')
    told = r'3 runs of the sweep failed, the others are done; .*0\.05_seed0: .*reach.*0\.9_seed-1: .*seed=-1'
    with pytest.raises(AutoDFPError, match=told):
        sweep([CONFIG], [0.05, 0.9], [0, -1], root, episodes=2, latency_repeat=0, cfg_options=dict(small_demo))
    (cell,) = json.loads((root / 'sweep.json').read_text())
    assert (cell['preserve_ratio'], cell['seeds'], len(cell['runs'])) == (0.9, [0], 1)


def test_a_latency_that_cannot_be_measured_is_left_out(tmp_path, monkeypatch):
    row = dict(search_metric=0.5, held_out_metric=0.5, module_params=dict(ratio=0.5), module_flops=dict(ratio=0.5))
    rows = [row | dict(name=name) for name in ('dense', 'AutoDFP')]
    names = ('model', 'reported_metric', 'seed', 'episodes', 'search_images', 'held_out_images')
    monkeypatch.setattr(sweeping, 'search_in', lambda *_, **__: dict.fromkeys(names, 0) | dict(results=rows))

    def measure(run, repeat):
        if '0.5_seed0' in str(run):
            raise RuntimeError('expected images')
        return dict(dense=0.002, AutoDFP=0.001)

    said = []
    monkeypatch.setattr(sweeping, 'measure_latency', measure)
    monkeypatch.setattr(sweeping, 'print_log', lambda line, **_: said.append(line))
    cells = sweep([CONFIG], [0.5, 0.9], work_dir=tmp_path)
    assert ['latency' in cell for cell in cells] == [False, True]
    assert said[-1] == f'in {tmp_path}: sweep.md (the table), sweep.json, pareto.png'
    assert [line.split('|')[-2].strip() for line in markdown(cells)[2:]] == ['-', '2.0 / 1.0']


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [(dict(latency_repeat=-1), 'latency_repeat=-1'), (dict(episodes=0), 'episodes=0')],
)
def test_counts_of_a_sweep_are_checked_before_anything_is_run(tmp_path, wrong, message):
    with pytest.raises(AutoDFPError, match=f'a sweep was asked for {message}; it must be greater than or equal to'):
        sweep(['absent.py'], [0.5], work_dir=tmp_path, **wrong)


@pytest.mark.parametrize(
    ('configs', 'ratios', 'message'),
    [
        ([], [0.5], 'at least one config'),
        ([CONFIG], [1.5], r'ratios=\[1\.5\]; item 1 of it must be less than or equal to 1'),
        ([CONFIG, CONFIG], [0.5], 'same name'),
        (['absent.py'], [0.5], r'^no run of the sweep succeeded; .*0\.5_seed0: config absent\.py was asked for, but'),
    ],
)
def test_a_sweep_of_nothing_or_of_the_impossible_is_refused(tmp_path, configs, ratios, message):
    with pytest.raises(AutoDFPError, match=message):
        sweep(configs, ratios, work_dir=tmp_path)
