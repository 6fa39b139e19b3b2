"""Costs add up field by field."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.cost import Cost

NOTHING = Cost(total=0, active=0, forward=0, training=0)

costs = st.builds(
    Cost,
    total=st.integers(0, 10**12),
    active=st.integers(0, 10**12),
    forward=st.integers(0, 10**12),
    training=st.integers(0, 10**12),
)


def test_by_hand():
    one = Cost(total=1, active=2, forward=3, training=4)
    two = Cost(total=10, active=20, forward=30, training=40)
    assert one + two == Cost(total=11, active=22, forward=33, training=44)


@given(costs, costs, costs)
def test_addition_is_that_of_numbers(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + NOTHING == a
    assert sum((a, b), NOTHING) == a + b


def test_a_cost_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NOTHING.total = 1  # pyright: ignore[reportAttributeAccessIssue]
