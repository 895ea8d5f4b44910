"""The classifiers' figures in the README: they are those of the files that the commands wrote."""

import re

import pytest
from conftest import REPO
from in_process import load_tool

from mmautodfp.utils.fileio import load_json

RESULTS = REPO / 'configs/classification/results'
README = (REPO / 'README.md').read_text()


def cells(start: str) -> list[str]:
    """Of the README's table row that begins with ``start``."""
    line = next(line for line in README.splitlines() if line.startswith(f'| {start} |'))
    return [cell.strip() for cell in line.strip('|').split('|')]


def rows_of(name: str) -> dict[tuple[float, str], dict]:
    rows = load_json(RESULTS / f'{name}.json', 'the rows')['rows']
    return {(row['preserve_ratio'], row['method']): row for row in rows}


def test_the_table_of_networks_is_the_recorded_one():
    assert load_tool('tables').tables(RESULTS) in README


@pytest.mark.parametrize('ratio', [0.7, 0.6, 0.5])
def test_uniform_rows_are_within_two_and_a_half_points_of_the_paper(ratio):
    found = rows_of('resnet56_cifar10')
    for method in ('prune', 'merging'):
        row = found[ratio, method]
        assert abs(row['ours'] - row['paper']) < 2.5
        assert row['images'] == 4991


@pytest.mark.parametrize(
    ('name', 'ratio'),
    [
        *((name, ratio) for name in ('resnet56_cifar10', 'resnet56_cifar10_top1') for ratio in (0.7, 0.6, 0.5)),
        *((name, ratio) for name in ('vgg16_cifar10', 'mobilenet_v1_cifar10') for ratio in (0.4, 0.3, 0.2)),
        *(('mobilenet_v2_cifar10', ratio) for ratio in (0.5, 0.4, 0.3)),
    ],
)
def test_searches_are_ahead_of_neuron_merging_on_images_that_they_have_not_seen(name, ratio):
    found = rows_of(name)
    assert found[ratio, 'autodfp']['ours'] > found[ratio, 'merging']['ours'] + 2
    assert (found[ratio, 'autodfp']['images'], found[ratio, 'autodfp']['episodes']) == (3991, 500)
    assert found[ratio, 'autodfp']['params_ratio'] <= ratio


@pytest.mark.parametrize('ratio', [0.5, 0.4, 0.3])
def test_each_part_of_the_papers_ablation_pays_on_mobilenet_v2(ratio):
    found = {method: row['ours'] for (kept, method), row in rows_of('mobilenet_v2_cifar10').items() if kept == ratio}
    assert found['prune'] < found['search'] < found['search+merging'] < found['autodfp']


def test_more_episodes_bring_what_the_readme_says():
    summary = load_json(RESULTS / 'resnet56_cifar10_60_percent_1000_episodes.json', 'the summary')
    found = 100 * summary['results'][-1]['held_out_metric']
    before = rows_of('resnet56_cifar10')[0.6, 'autodfp']
    assert f'another 500 of them raise {before["ours"]:.2f} to {found:.2f}' in README
    assert found > before['paper']
    assert (summary['episodes'], summary['held_out_images'], before['episodes']) == (1000, 3991, 500)


def test_the_search_on_vgg16_is_told_as_it_was_judged():
    summary = load_json(RESULTS / 'vgg16_cifar10_40_percent_500_episodes.json', 'the summary')
    dense, pruned, merged, same, found = (f'{100 * row["held_out_metric"]:.2f}' for row in summary['results'])
    text = ' '.join(README.split())
    assert f'it brings {found}, where the uniform plan has {pruned} pruned only, {merged} with Neuron Merging' in text
    assert f'and {same} with Eq. 12 + 16, and the dense model {dense}' in text
    assert (summary['episodes'], summary['held_out_images'], summary['budget']['preserve_ratio']) == (500, 3991, 0.4)


def test_the_table_of_searches_is_the_recorded_one():
    recorded = load_json(REPO / 'configs/demo/results/searches_vgg_digits.json', 'the searches')
    names = {
        'random': 'random',
        'random, around the uniform plan': 'random around the uniform plan',
        'SAC, as published (credit by bootstrap, random warm-up)': 'SAC as published',
        'CMA-ES': 'CMA-ES',
        '**SAC**, credited with the episode (the default)': 'SAC',
    }
    for row, name in names.items():
        _, mean, deviation, seeds = cells(row)
        search = recorded['searches'][name]
        assert float(mean) == pytest.approx(search['mean'], abs=0.0006)
        assert float(deviation) == pytest.approx(search['deviation'], abs=0.0006)
        assert [float(value) for value in re.split(' ', seeds)] == pytest.approx(search['held_out'], abs=0.0006)
    assert (recorded['episodes'], recorded['held_out_images']) == (100, 497)
    means = {name: search['mean'] for name, search in recorded['searches'].items()}
    assert means['SAC'] > max(means['random'], means['random around the uniform plan'], means['SAC as published']) + 0.1
