"""Widths that groups may keep: multiples of a divisor, or all channels."""

from collections.abc import Sequence
from math import gcd


def allowed_widths(channels: int, divisor: int = 1) -> list[int]:
    """The multiples of ``divisor`` up to ``channels``, and ``channels`` itself."""
    return [*range(divisor, channels, divisor), channels]


def floor_width(width: int, channels: int, divisor: int = 1) -> int:
    """The widest allowed width up to ``width``; ``width`` must not be below the narrowest one."""
    return channels if width >= channels else width // divisor * divisor


def divisors_of(blocks: Sequence[int], channel_divisor: int) -> list[int]:
    """Divisors [L] of widths in blocks, with which the channels, ``blocks`` [L] each, are multiples of one divisor."""
    return [channel_divisor // gcd(channel_divisor, block) for block in blocks]


def round_widths(ratio: float, dense: Sequence[int], divisors: Sequence[int] | int = 1) -> list[int]:
    """Eq. 15 for each group: max(1, round(p N)), or with a divisor the nearest of :func:`allowed_widths`.

    Args:
        ratio (float): p.
        dense (Sequence[int]): [L], the groups' dense widths N.
        divisors (Sequence[int] | int): [L], or one for all: widths are multiples of it or N. Defaults to 1.

    Returns:
        list[int]: [L], the widths.
    """
    divisors = [divisors] * len(dense) if isinstance(divisors, int) else divisors
    return [
        max(1, round(ratio * n))
        if divisor == 1
        else min(allowed_widths(n, divisor), key=lambda width: abs(width - ratio * n))
        for n, divisor in zip(dense, divisors, strict=True)
    ]
