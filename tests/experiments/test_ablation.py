"""The measurements of the compensation: their arithmetic, their files, and the tables in the docs."""

import json

import numpy as np
import pytest
from conftest import REPO
from doc_figures import story_of, text_of
from in_process import load_tool
from scipy.stats import spearmanr

from mmautodfp.experiments.ablation import ablate
from mmautodfp.experiments.rank_plans import rank_plans
from mmautodfp.experiments.shares import MERGING, UNIFORM, measure_shares
from mmautodfp.utils import AutoDFPError

RESULTS = REPO / 'configs/demo/results/least_squares'
CONFIG = 'configs/demo/faster_rcnn_digits_autodfp.py'


@pytest.mark.slow
def test_variants_are_measured_once_and_on_exact_shares(small_demo):
    reports = []
    settings = dict(images=dict(num_images=4, size=64), cfg_options=small_demo, only='prune only|episode')
    result = ablate(CONFIG, [0.7], **settings, report=lambda _, line: reports.append(line))
    assert [line.partition(':')[0] for line in reports[1:]] == ['0.7 prune only', '0.7 episode']
    for rows in result['variants'].values():
        assert rows['0.7']['params'] <= 0.7
        assert 0 < rows['0.7']['metric'] < 1
    known = {name: dict(rows) for name, rows in result['variants'].items()}
    again = ablate(CONFIG, [0.7], **settings, known=result, report=lambda _, line: reports.append(line))
    assert len(reports) == 3 + 1
    assert again['variants'] == known
    stored = json.loads(json.dumps(result))
    ablate(CONFIG, [0.7], **settings, known=stored)
    for other, message in (
        (dict(images=dict(num_images=8, size=64)), 'synthetic_images={.*4.*}, but synthetic_images={.*8.*} is asked'),
        (dict(of_channels=True), "shares_of='module parameters', but shares_of='channels'"),
        (dict(cfg_options=small_demo | {'autodfp.seed': 5}), 'cfg_options='),
    ):
        with pytest.raises(AutoDFPError, match=message):
            ablate(CONFIG, [0.7], **settings | other, known=stored)
    with pytest.raises(AutoDFPError, match='config='):
        ablate('configs/demo/retinanet_digits_autodfp.py', [0.7], **settings, known=stored)


@pytest.mark.parametrize('ratio', [0, 1.5])
def test_shares_that_nothing_can_have_are_refused_before_anything_is_measured(ratio):
    with pytest.raises(AutoDFPError, match=rf'ablation was asked for ratios=\[0\.5, {ratio}\]; item 2 of it must be'):
        ablate('absent.py', [0.5, ratio], of_channels=True)


def test_an_allocated_plan_is_within_the_uniform_ones_parameters(small_demo):
    settings = dict(images=dict(num_images=4, size=64), cfg_options=small_demo, of_channels=True)
    allocated = ablate(CONFIG, [0.7], only='episode, allocated plan', **settings)
    rows = ablate(CONFIG, [0.7], only='episode', known=json.loads(json.dumps(allocated)), **settings)['variants']
    assert list(rows) == ['episode', 'episode, allocated plan']  # in the tables' order
    uniform, allocated = (row['0.7']['params'] for row in rows.values())
    assert 0.99 * uniform < allocated <= uniform
    assert rows['episode']['0.7']['metric'] != rows['episode, allocated plan']['0.7']['metric']


def test_shares_of_channels_are_rounded_to_the_configs_divisor():
    options = {'autodfp.channel_divisor': 64}  # wider than any group, so that all channels stay
    config = 'configs/demo/vgg_digits_autodfp.py'
    result = ablate(config, [0.5], of_channels=True, only='prune only', cfg_options=options)
    assert result['variants']['prune only']['0.5']['params'] == 1


def test_of_the_means_of_a_whole_detector_those_named_are_measured(small_demo):
    config = 'configs/demo/retinanet_digits_whole_autodfp.py'
    images = dict(num_images=2, size=64, batch_size=2)
    settings = dict(shares=[0.5], cfg_options=small_demo | {'autodfp.reconstructor.images': images})
    rows = measure_shares(config, only='pruned only.*|Neuron.*', **settings)['rows']['0.5']
    assert list(rows) == [UNIFORM, MERGING]  # and nothing of the backbone alone
    assert 0 < rows[UNIFORM]['flops'] <= 0.5
    with pytest.raises(AutoDFPError, match="means that match only='theirs' were asked for, but there are pruned only"):
        measure_shares('absent.py', only='theirs')  # before anything is measured


def test_plans_are_ranked_by_every_reward_within_one_budget_or_several(small_demo):
    limits = [dict(type=f'{kind}Budget', preserve_ratio=0.7, scope='module') for kind in ('Param', 'Flop')]
    options = dict(small_demo) | {'autodfp.budget': limits}
    result = rank_plans(CONFIG, 3, images=dict(num_images=2, size=64), cfg_options=options)
    assert result['budget'] == limits
    assert {len(values) for values in result['values'].values()} == {3}
    for name, rho in result['correlation'].items():
        expected = spearmanr(result['values']['truth'], result['values'][name]).statistic
        assert rho['all'] == pytest.approx(0 if np.isnan(expected) else expected)
        assert -1 <= rho['better_half'] <= 1


def test_the_tables_in_the_docs_are_those_of_the_files():
    text = text_of('docs/measurements.md')
    for part in load_tool('tables').tables(RESULTS).split('\n\n'):
        assert part in text


def test_allocated_plans_are_ahead_of_searches_as_often_as_the_docs_say():
    searches = json.loads((REPO / 'configs/demo/results/sweep.json').read_text())
    short = []
    for cell in searches:
        name = cell['config'].removesuffix('_digits_autodfp')
        rows = json.loads((RESULTS / f'{name}.json').read_text())['variants']['full, allocated plan']
        short.append(cell['held_out']['AutoDFP'][0] - rows[f'{cell["preserve_ratio"]:g}']['metric'])
    ahead = sum(difference < 0 for difference in short)
    text = story_of('docs/measurements.md')
    place = '([below](#searches-with-the-papers-compensation))'
    assert f'what 120 episodes with Eq. 12 + 16 found {place} in {ahead} of {len(short)} cases' in text
    assert f'they miss it by {max(short):.3f} at most' in text
