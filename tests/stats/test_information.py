"""Entropy and mutual information by hand, and their bounds on random tables."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.stats.information import (
    entropy,
    mutual_information,
    normalised_mutual_information,
    normaliser,
)

WEIGHTS = st.lists(
    st.lists(st.floats(0.0, 100.0, width=32), min_size=3, max_size=3), min_size=2, max_size=6
)


def test_entropy_of_weights():
    weight = torch.tensor([[1.0, 1.0], [5.0, 0.0], [0.0, 0.0], [3.0, 1.0]])
    # ln 2; certain; empty; −(.75 ln .75 + .25 ln .25) = .5623
    expected = [math.log(2), 0.0, 0.0, 0.5623351446188083]
    assert entropy(weight).tolist() == pytest.approx(expected, abs=1e-12)


def test_three_one_one_three():
    joint = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    # p = 3/8 on the diagonal, 1/8 off it; I = 2·3/8·ln(3/2) + 2·1/8·ln(1/2) = .13081 nats,
    # H(U) = H(D) = ln 2, and .13081/.69315 = .18872.
    assert mutual_information(joint) == pytest.approx(0.130812, abs=1e-6)
    assert normaliser(joint) == pytest.approx(math.log(2), abs=1e-12)
    assert normalised_mutual_information(joint) == pytest.approx(0.188722, abs=1e-6)


def test_the_smaller_entropy_normalises():
    # Four units, two domains, each unit in one domain: I = ln 2 = H(D) < H(U) = ln 4.
    joint = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert normalised_mutual_information(joint) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    "joint",
    [
        [[2.0, 4.0], [3.0, 6.0]],  # independent
        [[5.0, 5.0], [0.0, 0.0]],  # one unit takes all
        [[1.0, 0.0], [9.0, 0.0]],  # one domain only
        [[0.0, 0.0], [0.0, 0.0]],
    ],
)
def test_nothing_to_tell(joint: list[list[float]]):
    assert normalised_mutual_information(torch.tensor(joint)) == pytest.approx(0.0, abs=1e-12)


@given(WEIGHTS)
def test_bounds_and_symmetry(rows: list[list[float]]):
    joint = torch.tensor(rows, dtype=torch.float64)
    value = normalised_mutual_information(joint)
    # 1e-9: a few roundings of logarithms around 1.
    assert 0.0 <= value <= 1.0 + 1e-9
    assert value == pytest.approx(normalised_mutual_information(joint.t()), abs=1e-9)


@given(WEIGHTS, st.floats(0.1, 50.0))
def test_scale_does_not_matter(rows: list[list[float]], scale: float):
    joint = torch.tensor(rows, dtype=torch.float64)
    assert mutual_information(joint * scale) == pytest.approx(mutual_information(joint), abs=1e-9)
