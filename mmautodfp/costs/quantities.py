"""Amounts with units as people write them: 120G, 25M, 30ms, 500MB, 60%."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from mmautodfp.utils import AutoDFPError

_DECIMAL = dict(k=10**3, M=10**6, G=10**9, T=10**12)
#: For each metric, its units with their sizes in the smallest one, which comes first.
UNITS: dict[str, dict[str, int]] = dict(
    params={'': 1, **_DECIMAL},
    flops={'': 1, **_DECIMAL},
    latency=dict(ns=1, us=10**3, ms=10**6, s=10**9),
    memory={'B': 1, **{f'{prefix}B': size for prefix, size in _DECIMAL.items()}}
    | dict(KiB=2**10, MiB=2**20, GiB=2**30, TiB=2**40),
)
_EXAMPLES = dict(params='25M', flops='120G', latency='30ms', memory='500MB')
_PERCENT = '%'
_OTHER_SPELLINGS = {'K': 'k', 'KB': 'kB', 'µs': 'us'}


@dataclass(frozen=True)
class Limit:
    """A limit on a cost, as it was asked for.

    Attributes:
        metric (str): 'params', 'flops', 'latency' or 'memory'.
        amount (int | None): In the metric's smallest unit: parameters, FLOPs, nanoseconds or bytes. None for a share.
        share (float | None): Of the dense cost, in (0, 1]. None for an amount.
        unit (str): The unit of an amount; '%' for a share.
    """

    metric: str
    amount: int | None
    share: float | None
    unit: str

    def of(self, dense: int) -> int:
        """The most that a plan may cost if the dense model costs ``dense``."""
        if self.share is None:
            return self.amount
        most = self.share * dense
        return int(most + max(1e-6, 2 * math.ulp(most)))  # so that a share of count / dense gives the count

    def show(self, cost: int, dense: int, up: bool = False) -> str:
        """A cost in the unit of the limit, to four digits; rounded down, or up, so that the result is a valid limit."""
        size = Fraction(dense, 100) if self.unit == _PERCENT else Fraction(UNITS[self.metric][self.unit])
        return f'{_rounded(cost / size, up)}{self.unit}'


def parse_limit(text: str | float, metric: str) -> Limit:
    """Read an amount such as '120G', or a share such as '60%'.

    Args:
        text (str | float): A number and a unit; for parameters and FLOPs the number alone will do. Prefixes are powers
            of 1000, those of KiB, MiB, GiB and TiB powers of 1024.
        metric (str): 'params', 'flops', 'latency' or 'memory'.

    Raises:
        AutoDFPError: ``text`` is no number with a unit of the metric, less than one smallest unit, or a share that is
            not in (0 %, 100 %].
    """
    asked, units = f'a limit of {text!r} was asked for the {metric}', UNITS[metric]
    found = re.fullmatch(r'\s*([-+]?(?:\d{1,20}\.?\d*|\.\d+)(?:[eE][-+]?\d{1,2})?)\s*([^\d\s.].*?)?\s*', str(text))
    word = '' if found is None else found[2] or ''
    unit = _OTHER_SPELLINGS.get(word, word)
    if found is None or unit not in (*units, _PERCENT):
        known = ', '.join(filter(None, units))
        bare = ', or no unit at all' if '' in units else ''
        raise AutoDFPError(
            f'{asked}; it takes a number with one of the units {known} or %{bare}, such as {_EXAMPLES[metric]} or 60%'
        )
    number = Fraction(found[1])
    if unit == _PERCENT:
        if not 0 < number <= 100:
            raise AutoDFPError(f'{asked}; a share of the dense cost is above 0% and at most 100%')
        return Limit(metric, None, float(number / 100), unit)
    amount = int(number * units[unit])
    if amount < 1:
        smallest = f'1 {next(iter(units))}'.strip()
        raise AutoDFPError(f'{asked}; it must be {smallest} or more, and a share is written with a %, such as 60%')
    return Limit(metric, amount, None, unit)


def format_quantity(amount: int, metric: str) -> str:
    """An amount in the unit that suits it, to four digits, such as '23.51M'."""
    units = {unit: size for unit, size in UNITS[metric].items() if 'i' not in unit}
    unit = max((unit for unit in units if units[unit] <= amount), key=units.get, default=next(iter(units)))
    return f'{amount / units[unit]:.4g}{unit}'


def _rounded(value: Fraction, up: bool) -> str:
    """A number to four digits, rounded up or down."""
    if not value:
        return '0'
    step = Fraction(10) ** (math.floor(math.log10(value)) - 3)
    number = float((math.ceil if up else math.floor)(value / step) * step)
    return f'{number:.4g}' if number < 1000 else f'{number:.0f}'
