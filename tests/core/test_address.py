"""Units by name: what each form names, and what is refused."""

from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.address import format_unit, parse_units, split_address
from pellucid.core.errors import AddressError
from pellucid.core.unit import PoolSpec, Site

SITE = Site(module="blocks.3.ffn", port="in")


def _spec(*axes: tuple[str, int]) -> PoolSpec:
    return PoolSpec(name="blocks.3.ffn", reads=SITE, writes=SITE, axes=axes, d_in=2, d_out=2)


POOLS = _spec(("pool", 4), ("slot", 3))
CUBE = _spec(("row", 2), ("col", 3), ("channel", 4))


def test_an_address_has_a_name_and_units():
    assert split_address("blocks.3.ffn@pool=3,slot=1") == ("blocks.3.ffn", "pool=3,slot=1")


@pytest.mark.parametrize("text", ["blocks.3.ffn", "@3", "blocks.3.ffn@", ""])
def test_half_an_address_is_refused(text):
    with pytest.raises(AddressError, match="expected NAME@UNITS"):
        split_address(text)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("*", list(range(12))),
        ("7", [7]),
        ("10,2,10", [2, 10]),  # sorted, once each
        (" 1, 2 ", [1, 2]),
        ("pool=3", [9, 10, 11]),  # 3 · 3 + {0, 1, 2}
        ("pool=3,slot=1", [10]),
        ("slot=1,pool=3", [10]),
        ("slot=2", [2, 5, 8, 11]),
    ],
)
def test_what_each_form_names(units, expected):
    assert parse_units(units, POOLS).tolist() == expected


def test_a_middle_axis_is_a_plane():
    # unit = (row · 3 + col) · 4 + channel; col = 1: 4..7 and 16..19
    assert parse_units("col=1", CUBE).tolist() == [4, 5, 6, 7, 16, 17, 18, 19]


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ("12", "no such unit; it goes from 0 to 11"),
        ("-1", "no such unit"),
        ("pool=4", "no such pool; it goes from 0 to 3"),
        ("pol=1", "no axis 'pol'; did you mean 'pool'"),
        ("expert=1", "no axis 'expert'; expected one of: pool, slot"),
        ("pool=two", "pool must be a whole number from 0 to 3, found 'two'"),
        ("pool=", "pool must be a whole number"),
        ("1,,2", "unit must be a whole number from 0 to 11, found ''"),
        ("1,pool=2", "no axis '1'"),
        ("pool=1,pool=2", "pool is fixed twice"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(units, message):
    with pytest.raises(AddressError, match=message) as caught:
        parse_units(units, POOLS)
    assert str(caught.value).startswith(f"blocks.3.ffn@{units}: ")
    assert "\n" not in str(caught.value)


def test_a_unit_by_its_axes():
    # 10 = 3 · 3 + 1; 17 = (1 · 3 + 1) · 4 + 1
    assert format_unit(10, POOLS) == "blocks.3.ffn@pool=3,slot=1"
    assert format_unit(17, CUBE) == "blocks.3.ffn@row=1,col=1,channel=1"


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(sizes, st.data())
def test_formatting_and_parsing_are_inverse(axis_sizes, data):
    spec = _spec(*((f"axis{i}", size) for i, size in enumerate(axis_sizes)))
    unit = data.draw(st.integers(0, prod(axis_sizes) - 1))
    _, units = split_address(format_unit(unit, spec))
    assert parse_units(units, spec).tolist() == [unit]


@given(sizes, st.data())
def test_fixing_one_axis_names_the_units_on_it(axis_sizes, data):
    spec = _spec(*((f"axis{i}", size) for i, size in enumerate(axis_sizes)))
    axis = data.draw(st.integers(0, len(axis_sizes) - 1))
    place = data.draw(st.integers(0, axis_sizes[axis] - 1))
    cells = product(*(range(size) for size in axis_sizes))
    expected = [flat for flat, cell in enumerate(cells) if cell[axis] == place]
    assert parse_units(f"axis{axis}={place}", spec).tolist() == expected


def test_indices_can_index():
    assert parse_units("pool=1", POOLS).dtype == torch.long
    assert torch.arange(12)[parse_units("1,2", POOLS)].tolist() == [1, 2]
