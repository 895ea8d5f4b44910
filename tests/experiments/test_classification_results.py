"""The classifiers' figures in the docs: they are those of the files that the commands wrote."""

import re

import pytest
from conftest import REPO
from doc_figures import story_of, text_of
from in_process import load_tool

from mmautodfp.utils.fileio import load_json

RESULTS = REPO / 'configs/classification/results'
REPRODUCTION = text_of('docs/reproduction.md')


def cells(start: str) -> list[str]:
    """Of the row of docs/measurements.md that begins with ``start``."""
    line = next(line for line in text_of('docs/measurements.md').splitlines() if line.startswith(f'| {start} |'))
    return [cell.strip() for cell in line.strip('|').split('|')]


def rows_of(name: str) -> dict[tuple[float, str], dict]:
    rows = load_json(RESULTS / f'{name}.json', 'the rows')['rows']
    return {(row['preserve_ratio'], row['method']): row for row in rows}


def test_the_table_of_networks_is_the_recorded_one():
    assert load_tool('tables').tables(RESULTS) in REPRODUCTION


def test_more_episodes_bring_what_the_docs_say():
    summary = load_json(RESULTS / 'resnet56_cifar10_60_percent_1000_episodes.json', 'the summary')
    found = 100 * summary['results'][-1]['held_out_metric']
    before = rows_of('resnet56_cifar10')[0.6, 'autodfp']
    assert f'another 500 of them raise {before["ours"]:.2f} to {found:.2f}' in REPRODUCTION
    assert (summary['episodes'], summary['held_out_images'], before['episodes']) == (1000, 3991, 500)


def test_the_search_on_vgg16_is_told_as_it_was_judged():
    summary = load_json(RESULTS / 'vgg16_cifar10_40_percent_500_episodes.json', 'the summary')
    dense, pruned, merged, same, found = (f'{100 * row["held_out_metric"]:.2f}' for row in summary['results'])
    text = story_of('docs/reproduction.md')
    assert f'it brings {found}, where the uniform plan has {pruned} pruned only, {merged} with Neuron Merging' in text
    assert f'and {same} with Eq. 12 + 16, and the dense model {dense}' in text
    assert (summary['episodes'], summary['held_out_images'], summary['budget']['preserve_ratio']) == (500, 3991, 0.4)


def test_the_table_of_searches_is_the_recorded_one():
    recorded = load_json(REPO / 'configs/demo/results/searches_vgg_digits.json', 'the searches')
    names = {
        'random': 'random',
        'random, around the uniform plan': 'random around the uniform plan',
        "SAC, as published (`credit='td'`, random warm-up)": 'SAC as published',
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
