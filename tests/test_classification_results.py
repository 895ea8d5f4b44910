"""The classifiers' figures in the README: they are those of the files that the commands wrote."""

import re

import pytest
from conftest import REPO

from mmautodfp.fileio import load_json

README = (REPO / 'README.md').read_text()


def cells(start: str) -> list[str]:
    """Of the README's table row that begins with ``start``."""
    line = next(line for line in README.splitlines() if line.startswith(f'| {start} |'))
    return [cell.strip() for cell in line.strip('|').split('|')]


@pytest.mark.parametrize(('share', 'ratio'), [('70 %', 0.7), ('60 %', 0.6), ('50 %', 0.5)])
def test_uniform_rows_are_within_two_and_a_half_points_of_the_paper(share, ratio):
    rows = load_json(REPO / 'configs/classification/results/resnet56_table2.json', 'the rows')['rows']
    found = {row['method']: row for row in rows if row['preserve_ratio'] == ratio}
    _, prune, prune_paper, merging, merging_paper = cells(share)
    for method, ours, paper in (('prune', prune, prune_paper), ('merging', merging, merging_paper)):
        assert float(ours) == pytest.approx(found[method]['ours'], abs=0.006)
        assert float(paper) == found[method]['paper']
        assert abs(found[method]['ours'] - found[method]['paper']) < 2.5
        assert found[method]['images'] == 4991


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
