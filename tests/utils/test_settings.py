"""What settings and arguments take, and the sentence that a wrong one ends in."""

import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass
from typing import Annotated, Any, Literal

import pytest
import torch
from mmengine.registry import Registry
from pydantic import Field

from mmautodfp.utils import AutoDFPError
from mmautodfp.utils.registry import build, build_settings
from mmautodfp.utils.settings import Count, Share, check_arguments, checked, settings

LAMPS = Registry('lamp', scope='mmautodfp')


@settings('a lamp')
class Lamp:
    watts: Count = 4
    dim: Share = 1.0
    spots: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    kind: Literal['warm', 'cold'] = 'warm'
    name: Annotated[str, Field(min_length=1)] | None = None

    def __post_init__(self):
        if self.kind == 'cold' and self.dim < 1:
            raise AutoDFPError('a cold lamp was to be dimmed, which it cannot be; make it warm')


@dataclass
class Socket:
    volts: torch.Tensor


@LAMPS.register_module()
class Chandelier:
    def __init__(
        self,
        lamps: Sequence[float] = (1.0,),
        size: tuple[int, int] = (1, 2),
        names: list[str] | None = None,
        scale: float | None = None,
        lit: bool = True,
        socket: Socket | None = None,
        weight: torch.Tensor | None = None,
        more: 'dict | bool' = False,
        anything=None,
    ):
        self.given = dict(lamps=lamps, size=size, scale=scale)


def test_settings_are_frozen_and_hold_what_was_given():
    lamp = Lamp(7, spots=[1, 2])
    assert (lamp.watts, lamp.dim, lamp.spots, lamp.kind) == (7, 1.0, (1, 2), 'warm')
    assert Lamp(dim=1) == Lamp()  # a whole number is a number
    with pytest.raises(FrozenInstanceError):
        lamp.watts = 8


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(watts=0), 'a lamp was asked for watts=0; it must be greater than or equal to 1'),
        (dict(watts=1.5), 'a lamp was asked for watts=1.5; it must be a whole number'),
        (dict(watts=True), 'a lamp was asked for watts=True; it must be a whole number'),
        (dict(dim=math.nan), 'a lamp was asked for dim=nan; it must be a finite number'),
        (dict(dim=math.inf), 'a lamp was asked for dim=inf; it must be a finite number'),
        (dict(dim='half'), "a lamp was asked for dim='half'; it must be a number"),
        (dict(dim=None), 'a lamp was asked for dim=None; it must be a number'),
        (dict(spots=[3, 0]), 'a lamp was asked for spots=[3, 0]; item 2 of it must be greater than or equal to 1'),
        (dict(spots='many'), "a lamp was asked for spots='many'; it must be a list"),
        (dict(kind='blue'), "a lamp was asked for kind='blue'; it must be 'warm' or 'cold'"),
        (dict(name=''), "a lamp was asked for name=''; string should have at least 1 character"),
        (dict(colour=3), 'a lamp was asked for colour, which it does not know; it knows watts, dim, spots, kind, name'),
        (dict(kind='cold', dim=0.5), 'a cold lamp was to be dimmed, which it cannot be; make it warm'),
        (
            dict(spots=[0] * 99),
            f'a lamp was asked for spots={str([0] * 99)[:57]}...; item 1 of it must be greater than',
        ),
    ],
)
def test_a_wrong_setting_is_told_by_name_with_what_it_takes(given, message):
    with pytest.raises(AutoDFPError) as caught:
        Lamp(**given)
    assert str(caught.value).startswith(message)
    assert '\n' not in str(caught.value)


def test_settings_given_by_their_place_are_told_by_name_too():
    with pytest.raises(AutoDFPError, match=r'^a lamp was asked for dim=2\.5; it must be less than or equal to 1$'):
        Lamp(4, 2.5)


def test_a_setting_without_default_is_missed():
    @settings('a bulb')
    class Bulb:
        watts: int

    with pytest.raises(AutoDFPError, match=r'^a bulb needs watts, which is not given$'):
        Bulb()


@pytest.mark.parametrize(
    'given',
    [
        dict(lamps=[1, 2.5]),
        dict(lamps=(1.0,)),
        dict(size=[3, 4]),
        dict(names=('a', 'b')),
        dict(scale=2),
        dict(socket=Socket(torch.ones(1))),
        dict(weight=torch.ones(2)),
        dict(more={}),
        dict(anything=object()),
    ],
    ids=lambda given: next(iter(given)),
)
def test_arguments_that_fit_their_annotations_are_handed_on_as_they_are(given):
    chandelier = build(LAMPS, dict(type='Chandelier', **given))
    for name, value in given.items():
        assert chandelier.given.get(name, value) is value


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(lamps='two'), "asked for lamps='two'; "),
        (dict(lamps=[1, 'two']), "asked for lamps=[1, 'two']; item 2 of it must be a number"),
        (dict(lamps=[math.nan]), 'asked for lamps=[nan]; item 1 of it must be a finite number'),
        (dict(size=(1, 2, 3)), 'asked for size=(1, 2, 3); it has too many items'),
        (dict(size=[1]), 'asked for size=[1]; it has too few items'),
        (dict(names=[3]), 'asked for names=[3]; item 1 of it must be a string'),
        (dict(scale=math.inf), 'asked for scale=inf; it must be a finite number'),
        (dict(scale=True), 'asked for scale=True; it must be a number'),
        (dict(lit=1), 'asked for lit=1; it must be True or False'),
        (dict(socket=dict(volts=1)), "asked for socket={'volts': 1}; it must be an instance of Socket"),
        (dict(weight=[1.0]), 'asked for weight=[1.0]; it must be an instance of Tensor'),
        (dict(more=[]), 'asked for more=[]; it must be a dict, True or False'),
    ],
)
def test_an_argument_that_does_not_fit_is_told_with_what_it_takes(given, message):
    with pytest.raises(AutoDFPError) as caught:
        build(LAMPS, dict(type='Chandelier', **given))
    assert str(caught.value).startswith(f"lamp 'Chandelier' was {message}")


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='Candle'), "lamp type 'Candle' is not known; known are Chandelier"),
        (dict(), 'lamp type None is not known'),
        ('Chandelier', "a lamp is described by a dict such as dict(type='...'), got 'Chandelier'"),
        (dict(type='Chandelier', wax=1), "unexpected keyword argument 'wax'; its arguments are lamps, size, names"),
    ],
)
def test_what_cannot_be_built_is_told_with_what_can(config, message):
    with pytest.raises(AutoDFPError) as caught:
        build(LAMPS, config)
    assert message in str(caught.value)


def test_a_group_of_settings_is_built_from_its_part_of_a_config():
    assert build_settings(Lamp, None, 'lamp') == Lamp()
    assert build_settings(Lamp, dict(watts=3), 'lamp', watts=1, dim=0.5) == Lamp(3, 0.5)
    with pytest.raises(AutoDFPError, match=r'^lamp takes a dict of settings, got 3; known are watts, dim, spots'):
        build_settings(Lamp, 3, 'lamp')
    with pytest.raises(AutoDFPError, match='asked for colour, which it does not know'):
        build_settings(Lamp, dict(colour=1), 'lamp')


def test_a_checked_function_looks_at_its_arguments_before_it_does_a_thing():
    done = []

    @checked('a switch')
    def switch(times: Count, *, gently: bool = False, **more: Any) -> list:
        done.append((times, gently, more))
        return done

    assert switch(2, gently=True, hand='left') is done
    assert done == [(2, True, dict(hand='left'))]
    for arguments, options in (((0,), {}), ((1,), dict(gently=1))):
        with pytest.raises(AutoDFPError, match=r'^a switch was asked for (times=0|gently=1); it must be '):
            switch(*arguments, **options)
    assert len(done) == 1
    check_arguments(switch, dict(times=3, unknown=4), 'a switch')  # what is not annotated is not looked at
