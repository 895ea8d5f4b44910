import random

import pytest

from mmautodfp.costs import Limit, format_quantity, parse_limit
from mmautodfp.costs.quantities import UNITS
from mmautodfp.utils import AutoDFPError


@pytest.mark.parametrize(
    ('text', 'metric', 'amount'),
    [
        ('120G', 'flops', 120_000_000_000),
        ('0.12T', 'flops', 120_000_000_000),
        ('1.5e9', 'flops', 1_500_000_000),
        ('25M', 'params', 25_000_000),
        (' 25 M ', 'params', 25_000_000),
        ('250k', 'params', 250_000),
        ('250K', 'params', 250_000),
        (25_000_000, 'params', 25_000_000),
        ('30ms', 'latency', 30_000_000),
        ('0.03s', 'latency', 30_000_000),
        ('12us', 'latency', 12_000),
        ('12µs', 'latency', 12_000),
        ('900ns', 'latency', 900),
        ('500MB', 'memory', 500_000_000),
        ('500 kB', 'memory', 500_000),
        ('1.5GiB', 'memory', 3 * 2**29),
        ('3B', 'memory', 3),
    ],
)
def test_amounts_are_read_in_the_smallest_unit(text, metric, amount):
    limit = parse_limit(text, metric)
    assert (limit.amount, limit.share) == (amount, None)
    assert limit.of(7) == amount


@pytest.mark.parametrize('metric', UNITS)
def test_a_share_is_of_the_dense_cost(metric):
    limit = parse_limit('62.5%', metric)
    assert (limit.amount, limit.share) == (None, 0.625)
    assert limit.of(1000) == 625
    assert parse_limit('100 %', metric).of(12345) == 12345


def test_the_share_that_a_count_is_of_the_dense_one_allows_that_count_and_no_more():
    """As where a point of a frontier says which share of a detector's FLOPs its plan costs."""
    rng = random.Random(0)
    for dense in (10**3, 10**7, 10**11, 3 * 10**12):
        for _ in range(2000):
            count = rng.randint(1, dense)
            assert Limit('flops', None, count / dense, '%').of(dense) == count


@pytest.mark.parametrize('metric', UNITS)
@pytest.mark.parametrize(
    'text', ['12 apples', 'many', '', 'G', '1.2.3G', '12GG', '1e400', 'nan', 'inf', 'None', '5 0G']
)
def test_what_is_no_amount_is_told_the_units_that_are_known(metric, text):
    units = ', '.join(filter(None, UNITS[metric]))
    with pytest.raises(
        AutoDFPError, match=rf'a limit of .* was asked for the {metric}; it takes .* units {units} or %'
    ):
        parse_limit(text, metric)


@pytest.mark.parametrize(
    ('text', 'metric'),
    [('30ms', 'params'), ('25M', 'latency'), ('120G', 'memory'), ('500MB', 'flops'), ('30', 'latency')],
)
def test_units_of_another_cost_are_refused(text, metric):
    with pytest.raises(AutoDFPError, match='it takes a number with one of the units'):
        parse_limit(text, metric)


@pytest.mark.parametrize('text', ['0M', '-25M', '0.5', '-0'])
def test_an_amount_of_nothing_is_refused(text):
    with pytest.raises(AutoDFPError, match=r'must be 1 or more, and a share is written with a %'):
        parse_limit(text, 'params')


@pytest.mark.parametrize('text', ['0%', '-5%', '100.1%', '250 %'])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(AutoDFPError, match='above 0% and at most 100%'):
        parse_limit(text, 'memory')


@pytest.mark.parametrize(
    ('amount', 'metric', 'text'),
    [
        (23_508_032, 'params', '23.51M'),
        (999, 'params', '999'),
        (0, 'params', '0'),
        (134_000_000_000, 'flops', '134G'),
        (12_345_678, 'latency', '12.35ms'),
        (40, 'latency', '40ns'),
        (502_841_432, 'memory', '502.8MB'),
        (12, 'memory', '12B'),
    ],
)
def test_amounts_are_shown_as_people_write_them(amount, metric, text):
    assert format_quantity(amount, metric) == text


@pytest.mark.parametrize(
    ('text', 'metric'), [('1G', 'flops'), ('1k', 'flops'), ('3', 'flops'), ('1MiB', 'memory'), ('9%', 'params')]
)
@pytest.mark.parametrize('cost', [1, 9, 23_508_032, 999_999_999, 10**12])
def test_a_cost_that_is_shown_can_be_asked_for(text, metric, cost):
    """Rounded up it is enough for what costs so much, rounded down it is not too much."""
    dense = 10**12
    limit = parse_limit(text, metric)
    assert parse_limit(limit.show(cost, dense, up=True), metric).of(dense) >= cost
    down = limit.show(cost, dense)
    if any(digit in down for digit in '123456789') and (limit.unit == '%' or cost >= UNITS[metric][limit.unit] / 1000):
        assert 0.999 * cost - 1 <= parse_limit(down, metric).of(dense) <= cost
