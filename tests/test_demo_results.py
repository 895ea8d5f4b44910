"""The figures of docs/measurements.md and docs/results.md are those of the files in the configs' results folders.

What `make demo` wrote is measured again.
"""

import hashlib
import re
import statistics

import pytest
from conftest import REPO
from doc_figures import row_of, story_of, text_of
from mmengine.config import Config
from mmengine.runner import Runner

from mmautodfp.experiments.benchmark_search import EPISODE, FINISHED
from mmautodfp.experiments.shares import OURS
from mmautodfp.experiments.sweep import markdown
from mmautodfp.reconstruction import Distillation, NeuronMerging, PruneOnly, SimilarityReconstructor
from mmautodfp.surgery import PruningPlan, apply_plan
from mmautodfp.utils.fileio import load_json
from mmautodfp.utils.registry import HOOKS, build

RESULTS = REPO / 'configs/demo/results'
PAGE, STORY = text_of('docs/measurements.md'), story_of('docs/measurements.md')
COST_STEPS = ('moments', 'ranking', 'allocation', 'episode', 'full')


@pytest.fixture(scope='module')
def recorded() -> dict[str, dict]:
    summary = load_json(RESULTS / 'summary.json', 'the recorded summary')
    assert summary['episodes'] >= 100
    assert summary['budget'] == dict(type='ParamBudget', preserve_ratio=0.7, scope='module')
    assert summary['held_out_images'] == 800
    return {row['name']: row for row in summary['results']}


@pytest.mark.slow
def test_the_recorded_figures_are_measured_again(recorded, digits_root, tmp_path):
    cfg = Config.fromfile('configs/demo/faster_rcnn_digits_autodfp.py')
    cfg.work_dir = str(tmp_path)
    hook = build(HOOKS, cfg.autodfp.to_dict())
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    hook.prepare(runner)
    found, uniform = PruningPlan.from_json(RESULTS / 'strategy.json'), hook.task.uniform_plan()
    candidates = [
        ('dense', PruningPlan({}), PruneOnly()),
        ('uniform, pruned only', uniform, PruneOnly()),
        ('uniform, Neuron Merging', uniform, NeuronMerging()),
        ('AutoDFP', found, SimilarityReconstructor()),
    ]
    for name, plan, reconstructor in candidates:
        with apply_plan(hook.task.module, plan, reconstructor):
            # Another processor rounds differently, and a detection near the threshold may come or go.
            assert hook.held_out(hook.task.model) == pytest.approx(recorded[name]['held_out_metric'], abs=0.005)


@pytest.mark.parametrize('name', ['faster_rcnn', 'retinanet', 'fcos', 'mask_rcnn', 'vgg', 'resnet'])
def test_a_shipped_checkpoint_is_the_one_of_its_record_and_small(name):
    path = REPO / f'configs/demo/{name}_digits.pth'
    record = load_json(path.with_suffix('.json'), 'the record')
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record['sha256']
    assert path.stat().st_size == record['bytes'] < 6e6
    assert path.with_suffix('.log').stat().st_size > 0
    least = dict(vgg=0.95, resnet=0.95).get(name, 0.6)
    assert next(iter(record['test'].values())) > least


def test_the_docs_show_the_demo_as_it_was_recorded(recorded):
    rows = {
        'dense': 'dense',
        'uniform, pruned only': 'uniform, pruned only',
        'uniform, Neuron Merging': 'uniform, Neuron Merging',
        'uniform, Eq. 12 + 16 (lambda 0.5)': 'uniform, same compensation',
        '**AutoDFP**': 'AutoDFP',
    }
    for label, name in rows.items():
        row = recorded[name]
        params, flops = row['module_params'], row['module_flops']
        cells = [label, f'{row["search_metric"]:.3f}', f'{row["held_out_metric"]:.3f}']
        cells += [f'{params["count"]:,} ({params["ratio"]:.0%})']
        cells += [f'{flops["count"] / 1e6:.1f} M ({flops["ratio"]:.0%})']
        assert row_of(*cells) in PAGE


def test_the_docs_show_the_sweep_as_it_was_measured():
    cells = load_json(RESULTS / 'sweep.json', 'the recorded sweep')
    assert len(cells) == 16
    for line in markdown(cells):
        assert line in PAGE


def test_the_docs_show_the_searches_of_other_agents_as_they_were_measured():
    section = PAGE.partition('### Other agents')[2].partition('| search | mean')[0]
    found = re.findall(r'^\| \w.*\| (\S+) \| (\S+) \|$', section, re.MULTILINE)
    names = ('random_search', 'credit_bootstrap', 'credit_monte_carlo', 'summary')
    for figures, name in zip(found, names, strict=True):
        row = load_json(RESULTS / f'{name}.json', 'the summary')['results'][-1]
        assert figures == (f'{row["search_metric"]:.3f}', f'{row["held_out_metric"]:.3f}')


def test_the_docs_tell_what_an_episode_costs_as_it_was_measured():
    names = ['Faster R-CNN', 'RetinaNet', 'FCOS', 'Mask R-CNN, boxes and masks']
    for label, name in zip(names, ('faster_rcnn', 'retinanet', 'fcos', 'mask_rcnn'), strict=True):
        found = load_json(RESULTS / f'reward_{name}.json', 'the costs')
        val, episode = found['seconds']['mmdet_val'], found['seconds']['episode']
        assert row_of(label, f'{val:.2f} s', f'{episode:.2f} s', f'{found["ratio"]:.1f}') in PAGE


def test_the_docs_tell_the_tools_own_costs_as_they_were_measured():
    of = lambda name: load_json(RESULTS / f'{name}.json', 'the costs')
    first, second = of('precision_faster_rcnn'), of('precision_retinanet')
    assert f'Spearman {first["spearman"]:.4f} on Faster R-CNN, {second["spearman"]:.4f} on RetinaNet' in STORY
    assert f'{first["largest_difference"]:.4f} and {second["largest_difference"]:.4f}' in STORY
    race, whole = (of('racing')['means'][name] for name in ('racing', 'whole'))
    assert f'{race["evaluated"]:.0%} of the image evaluations' in STORY
    assert f'best reward {race["best_reward"]:.4f} against {whole["best_reward"]:.4f} without racing' in STORY
    assert f'held-out {race["held_out"]:.4f} against {whole["held_out"]:.4f}' in STORY
    assert f'{of("ranks")["ratio"]:.2f} times as fast as one' in STORY
    kernels = of('kernels')
    assert f'takes {kernels["seconds"]["kernels"]:.2f} s' in STORY
    assert f'{kernels["seconds"]["loops"]:.0f} s, {kernels["ratio"]:.0f} times as long' in STORY
    assert f'adds {of("search_overhead")["overhead"]:.0%}' in STORY
    cost = of('least_squares/cost_full_size')
    moments, ranking, allocation, episode, full = (round(seconds, 1) for seconds in cost['seconds'].values())
    assert f'{moments:.0f} s for the moments, {ranking:.0f} s to rank the channels, {allocation} s to allocate' in STORY
    assert f'{full:.0f} s for the full pass; {episode:.0f} s to prune in an episode' in STORY
    assert f'at most {cost["peak_memory_gb"]["after"]} GB' in STORY
    cost = of('least_squares/cost_whole')
    moments, ranking, allocation, episode, full = (round(cost['seconds'][name]) for name in COST_STEPS)
    assert f'{moments} s for the moments, {ranking} s to rank, {allocation} s to allocate' in STORY
    told = f'{full} s for the full pass; {episode} s to prune in an episode'
    assert f'{told}; at most {cost["peak_memory_gb"]["after"]} GB' in STORY
    cost = of('least_squares/cost_distilled')
    full, steps = cost['seconds']['full'], cost['settings']['distillation']['steps']
    more = cost['seconds']['distilled'] - full
    assert f'the full pass took {full:.0f} s, {steps} steps of distillation' in STORY
    assert f'took another {more:.0f} s, and at most {cost["peak_memory_gb"]["after"]} GB' in STORY
    assert Distillation().steps * more / steps == pytest.approx(3600, rel=0.1)


def test_the_rows_of_whole_detectors_are_those_of_their_files():
    files = sorted(RESULTS.glob('whole_*.json'))
    assert files
    for path in files:
        found = load_json(path, 'a whole detector')
        for share in ('0.7', '0.5', '0.35'):
            for name, row in found['rows'][share].items():
                if 'metric' in row:
                    assert row['flops'] <= float(share) + 1e-9
                    assert f'{row["metric"]:.3f} ({row["metric"] / found["dense"]:.1%})' in PAGE, (path.name, name)


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('fcos', 'FCOS keeps {} of its mAP at half of the FLOPs instead of {}, and {} at 35% instead of {};'),
        ('retinanet', 'RetinaNet keeps {} instead of {}, and {} instead of {}. At 70%'),
    ],
)
def test_what_distillation_brings_detectors_of_digits_is_told_as_it_was_measured(name, told):
    both = [load_json(RESULTS / f'{kind}_{name}.json', 'a detector') for kind in ('distilled', 'whole')]
    assert both[0]['dense'] == both[1]['dense']
    kept = [found['rows'][share][OURS]['metric'] / found['dense'] for share in ('0.5', '0.35') for found in both]
    assert told.format(*(f'{share:.1%}' for share in kept)) in STORY


def test_what_more_steps_of_distillation_bring_is_told_as_it_was_measured():
    kinds = ('distilled_long', 'distilled', 'whole')
    long, short, without = (load_json(RESULTS / f'{kind}_fcos.json', 'a detector') for kind in kinds)
    assert long['reconstructor']['distillation'] == dict(steps=4000)
    at_half = [f'{one["rows"]["0.5"][OURS]["metric"] / one["dense"]:.1%}' for one in (short, long)]
    kept = [long['rows'][share][OURS]['metric'] / long['dense'] for share in ('0.7', '0.5', '0.35')]
    told = "it keeps {:.1%} at 70% of the FLOPs, {:.1%} at half and {:.1%} at 35% (the digits' command"
    assert told.format(*kept) in STORY
    at_70 = [one['rows']['0.7'][OURS]['metric'] / one['dense'] for one in (short, without)]
    assert 'At 70% FCOS keeps {:.1%} instead of {:.1%} ('.format(*at_70) in STORY
    assert 'FCOS of the digits {1} in place of {0}.'.format(*at_half) in story_of('docs/results.md')


def test_what_distillation_brings_resnet_56_is_told_as_it_was_measured():
    cells = []
    for share in ('0.5', '0.3'):
        found = load_json(RESULTS / f'distilled_resnet56_{share[2:]}0.json', 'an ablation')
        assert found['shares_of'] == 'channels'
        names = ('full, allocated plan, distilled', 'full, allocated plan')
        cells += [f'{found["variants"][name][share]["metric"]:.3f}' for name in names]
    told = 'ResNet-56 have {} at half of the channels instead of {}, and {} at 30% instead of {} ('
    assert told.format(*cells) in STORY


def test_the_readme_tells_what_whole_detectors_keep_as_it_was_measured():
    readme = story_of('README.md')
    kept = {}
    for name in ('faster_rcnn', 'retinanet', 'fcos', 'mask_rcnn'):
        rows = load_json(RESULTS / f'whole_{name}.json', 'a whole detector')['rows']['0.5']
        kept[name] = [f'{rows[plan]["metric"]:.3f}' for plan in ('ours, allocated', 'Neuron Merging, uniform')]
    ours, published = zip(*kept.values(), strict=True)
    assert 'Faster R-CNN {}, RetinaNet {}, FCOS {}, Mask R-CNN {}, uniform'.format(*ours) in readme
    assert 'Neuron Merging {}, {}, {} and {} ('.format(*published) in readme


def test_the_rows_of_whole_latencies_are_those_of_their_file():
    for found in load_json(RESULTS / 'latency_whole.json', 'latencies').values():
        for name, model in found['models'].items():
            if name == 'dense':
                continue
            cells = []
            for engine in ('torch', 'onnxruntime'):
                for threads in ('threads_1', 'threads_2'):
                    figures = model[threads][engine]
                    figures = figures.get('sum', figures)
                    cells.append(f'{figures["ratio"]:.0%} / {figures["cpu_ratio"]:.0%}')
            assert row_of(f'{model["flops"]["ratio"]:.1%}', *cells) in PAGE


def test_the_rows_of_latencies_on_a_gpu_are_those_of_their_file():
    models = load_json(RESULTS / 'latency_gpu.json', 'latencies')['retinanet_autodfp']['models']
    for model in models.values():
        cells = []
        for batch in ('batch_1', 'batch_8'):
            for row in (model[batch][precision] for precision in ('float32', 'float16')):
                cells.append(' / '.join(f'{row[part]["seconds"] * 1e3:.1f}' for part in ('network', 'torch')))
        assert row_of(f'{model["flops"]["ratio"]:.1%}', *cells) in PAGE
    whole = models['whole, divisor 16']['batch_8']
    full, half = (whole[precision]['network']['ratio'] for precision in ('float32', 'float16'))
    assert f'network takes {full:.0%} of the time in float32 and {half:.0%} in half precision' in STORY


def test_the_docs_show_the_hypervolumes_as_they_were_measured():
    names = ('objectives_vgg_digits', 'objectives_vgg_digits_least_squares')
    files = [load_json(RESULTS / f'{name}.json', 'the hypervolumes') for name in names]
    labels = dict(
        conditioned='**one search for many preferences**',
        asked='one search for the asked preference',
        weighted='five searches with fixed weights',
        random='random plans',
        frontier='nested plans alone (the frontier)',
    )
    for found in files:
        assert (found['episodes'], found['held_out_images']) == (200, 497)
        assert 'autodfp.budget' not in found['cfg_options']
        assert found['objectives'] == dict(metric=0.5, params=0.25, flops=0.25)
    for name, label in labels.items():
        cells = []
        for way in (found['ways'][name] for found in files):
            for column in ('search', 'held_out', 'utility'):
                deviation = way[f'{column}_deviation']
                spread = '' if deviation is None else f' ± {deviation:.3f}'
                cells.append(f'{way[f"{column}_mean"]:.3f}{spread}')
        assert row_of(label, *cells) in PAGE


def test_the_rows_of_searches_on_top_of_least_squares_are_those_of_their_files():
    names = ('retinanet_whole_35_weights', 'retinanet_whole_25', 'resnet56_50', 'resnet56_30')
    files = [load_json(RESULTS / f'least_squares/searches_{name}.json', 'the searches') for name in names]
    for label in ('uniform', 'allocated'):
        plans = [found['plans'][label] for found in files]
        cells = [f'{plan[kind]:.3f}' for plan in plans for kind in (EPISODE, FINISHED)]
        assert row_of(f'{label}, no search', *cells) in PAGE
    kinds = {'random': 'random around the start', 'CMA-ES': 'CMA-ES', 'SAC': 'SAC'}
    for label, name in kinds.items():
        rows = [found['searches'][name] for found in files]
        assert row_of(label, *(_spread(row[kind]) for row in rows for kind in (EPISODE, FINISHED))) in PAGE
    gains = {}
    for label, name in kinds.items():
        for found, task in zip(files, names, strict=True):
            gain = found['searches'][name]['finished_mean'] - found['plans']['allocated'][FINISHED]
            gains[label, task] = f'{100 * gain:.1f}'
    on_retinanet = [gains[kind, name] for kind in ('CMA-ES', 'SAC', 'random') for name in names[:2]]
    assert (
        'CMA-ES gains {} and {} points over the allocated plan, SAC {} and {}, random {} and {}'.format(*on_retinanet)
        in STORY
    )
    seeds = [[len(found['searches'][name]['search']) for name in kinds.values()] for found in files]
    assert seeds == [[5, 5, 5]] * 4
    widths = load_json(RESULTS / 'least_squares/searches_retinanet_whole_35.json', 'the searches')['searches']
    told = ', '.join(f'{label} {widths[name]["finished_mean"]:.3f}' for label, name in kinds.items())
    assert {len(widths[name]['search']) for name in kinds.values()} == {5}
    assert f'({told}; five seeds' in STORY


@pytest.mark.parametrize(
    ('name', 'images', 'told'),
    [
        ('retinanet_whole', 128, '{} for the plan with the best reward and {} for the one that 128 other'),
        ('resnet56_50', 1000, '{} and {} at 50% of the parameters'),
        ('resnet56_30', 1000, '{} and {} at 30% (1,000 other images, 2,991 held out'),
    ],
)
def test_what_finalists_bring_is_told_as_it_was_measured(name, images, told):
    found = load_json(RESULTS / f'least_squares/finalists_{name}.json', 'the searches')
    row = found['searches']['SAC']
    assert (found['finalists'], found['judging_images']) == (10, images)
    assert len(row['chosen']) == 3
    assert told.format(_spread(row[FINISHED]), _spread(row['chosen'])) in STORY


def test_what_searches_bring_that_are_distilled_is_told_as_it_was_measured():
    told = {
        '50': 'half of its parameters has {} in the uniform plan, {} in the allocated one and {} in those of',
        '30': 'with 30% of them {}, {} and {} (',
    }
    for share, sentence in told.items():
        name = f'searches_resnet56_{share}_distilled.json'
        found = load_json(RESULTS / 'least_squares' / name, 'the searches')
        assert found['reconstructor']['distillation'] == dict(batch_size=64)
        row = found['searches']['SAC']
        assert len(row[FINISHED]) == 3
        plans = [f'{found["plans"][plan][FINISHED]:.3f}' for plan in ('uniform', 'allocated')]
        assert sentence.format(*plans, _spread(row[FINISHED])) in STORY


def _spread(values: list[float]) -> str:
    return f'{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}'
