"""Effective L0 and dead units by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.stats.activity import dead_fraction, effective_units


def test_no_columns_hold_nothing():
    assert effective_units(torch.zeros(2, 0)).tolist() == [0, 0]


def test_effective_units_hold_nine_tenths():
    mass = torch.tensor(
        [
            [8.0, 1.0, 1.0, 0.0],  # 8 of 10, then 9 of 10: two units
            [1.0, 1.0, 1.0, 1.0],  # 3 of 4 is .75, so all four
            [0.0, 0.0, 5.0, 0.0],  # one unit holds everything
            [0.0, 0.0, 0.0, 0.0],  # nothing to hold
        ]
    )
    assert effective_units(mass).tolist() == [2, 4, 1, 0]
    assert effective_units(mass, share=0.5).tolist() == [1, 2, 1, 0]


def test_a_share_reached_exactly_is_reached_despite_rounding():
    # .3 + .3 + .3 is .8999999999999999 of .3·3 + .1 in float64; three units hold nine tenths.
    assert effective_units(torch.tensor([0.3, 0.3, 0.3, 0.1], dtype=torch.float64)).item() == 3


@given(st.lists(st.floats(0.0, 10.0, width=32), min_size=1, max_size=12))
def test_effective_units_are_the_fewest_and_enough(mass: list[float]):
    row = torch.tensor(mass, dtype=torch.float64)
    found = int(effective_units(row))
    top = row.sort(descending=True).values
    assert found <= int((row > 0).sum())
    # 1e-9 absorbs the tolerance that lets an exact share count as reached.
    assert top[:found].sum() >= 0.9 * row.sum() * (1 - 1e-9)
    if found > 1:
        assert top[: found - 1].sum() < 0.9 * row.sum()


def test_one_of_four_never_fires():
    assert dead_fraction(torch.tensor([3, 0, 1, 900])) == 0.25


@pytest.mark.parametrize(("fires", "share"), [([0, 0], 1.0), ([1, 2], 0.0)])
def test_dead_extremes(fires: list[int], share: float):
    assert dead_fraction(torch.tensor(fires)) == share
