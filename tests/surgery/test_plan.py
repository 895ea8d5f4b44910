import json

import pytest

from mmautodfp.surgery import GroupPlan, PruningPlan
from mmautodfp.utils import AutoDFPError


def test_json_round_trip_keeps_everything_in_order(tmp_path):
    plan = PruningPlan({'b.conv2': GroupPlan((0, 3, 7), 8, 0.25), 'a.conv1': GroupPlan((5,), 16, 1.0)})
    plan.to_json(tmp_path / 'plan.json', note='kept beside')
    again = PruningPlan.from_json(tmp_path / 'plan.json')
    assert again == plan
    assert list(again.groups) == ['b.conv2', 'a.conv1']
    assert again.widths == {'b.conv2': 3, 'a.conv1': 1}
    assert json.loads((tmp_path / 'plan.json').read_text())['note'] == 'kept beside'
    assert [path.name for path in tmp_path.iterdir()] == ['plan.json']


def test_a_plan_of_the_first_format_is_read():
    content = {'format': 1, 'units': {'conv1': {'keep': [0, 3], 'num_channels': 4, 'lam': 0.25}}}
    assert PruningPlan.from_dict(content) == PruningPlan({'conv1': GroupPlan((0, 3), 4, 0.25)})


@pytest.mark.parametrize('keep', [(), (1, 1), (2, 1), (-1, 2), (0, 8)])
def test_channels_that_cannot_be_kept_are_refused(keep):
    with pytest.raises(AutoDFPError, match=r'ascending channels out of 0\.\.7'):
        GroupPlan(keep, 8)


def test_lambda_out_of_range_is_refused():
    with pytest.raises(AutoDFPError, match=r'lies in \[0, 1\], got 1\.5'):
        GroupPlan((0,), 8, 1.5)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'there is no such file'),
        ('{"format": 2', 'not readable JSON'),
        ('[]', 'found list'),
        ('{"format": 99}', 'found 99'),
        ('{"format": 2}', "lacks what a pruning plan holds: KeyError 'groups'"),
        ('{"format": 2, "groups": {"conv1": {"keep": [0]}}}', 'num_channels'),
        ('{"format": 2, "groups": {"conv1": {"keep": ["a"], "num_channels": 4, "lam": 0}}}', 'lacks .* ValueError'),
        (
            '{"format": 2, "groups": {"conv1": {"keep": [0], "num_channels": 1e999, "lam": 0}}}',
            'lacks .* OverflowError',
        ),
        ('{"format": 2, "groups": {"conv1": {"keep": [4], "num_channels": 4, "lam": 0}}}', '^a plan keeps'),
        ('{"format": 2, "groups": {"conv1": {"keep": 3, "num_channels": 4, "lam": 0}}}', 'not iterable'),
    ],
)
def test_files_that_hold_no_plan_are_refused(tmp_path, content, message):
    path = tmp_path / 'plan.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(AutoDFPError, match=message):
        PruningPlan.from_json(path)
