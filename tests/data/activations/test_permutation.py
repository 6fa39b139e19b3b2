"""The permutation: one to one, the same in any order of asking, and as even as chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.activations.permutation import Permutation, generator


@given(st.integers(1, 3000), st.integers(0, 2**64))
def test_every_place_is_taken_once(size: int, seed: int) -> None:
    places = Permutation(size, seed)(np.arange(size))
    assert places.dtype == np.int64
    assert np.array_equal(np.sort(places), np.arange(size))


@pytest.mark.parametrize("bits", range(17))
def test_powers_of_two_and_their_neighbours(bits: int) -> None:
    """Halves of equal and of unequal size, and sizes where hardly a number or half of them walk."""
    for size in {max(1, 2**bits - 1), 2**bits, 2**bits + 1}:
        places = Permutation(size, 3)(np.arange(size))
        assert np.array_equal(np.sort(places), np.arange(size))


@given(st.integers(1, 500), st.data())
def test_a_place_depends_on_its_number_alone(size: int, data: st.DataObject) -> None:
    whole = Permutation(size, 5)(np.arange(size))
    asked = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=20)), dtype=np.int64)
    assert np.array_equal(Permutation(size, 5)(asked), whole[asked])


def test_far_numbers_of_a_large_permutation_stay_inside_and_apart() -> None:
    size = 10**13 + 7
    index = np.concatenate((np.arange(5000), size - 1 - np.arange(5000)))
    places = Permutation(size, 0)(index)
    assert places.min() >= 0
    assert places.max() < size
    assert len(np.unique(places)) == 10_000


def test_places_are_even_over_seeds() -> None:
    """12 numbers, 1,200 seeds: each of 144 (number, place) pairs is expected 100 times, with a
    deviation of √(1200 · 1/12 · 11/12) = 9.6; the largest of 144 stays below 5 of them (1e-4)."""
    counts = np.zeros((12, 12))
    for seed in range(1200):
        counts[np.arange(12), Permutation(12, seed)(np.arange(12))] += 1
    assert np.abs(counts - 100).max() < 5 * 9.6


def test_pairs_of_places_are_even_over_seeds() -> None:
    """The places of numbers 0 and 1 in 5: 20 ordered pairs, 1,000 seeds, 50 expected each.

    χ² over 19 degrees of freedom exceeds 50 with a chance of 1.3e-4.
    """
    counts = np.zeros((5, 5))
    for seed in range(1000):
        first, second = Permutation(5, seed)(np.arange(2))
        counts[first, second] += 1
    assert np.diag(counts).sum() == 0
    off = counts[~np.eye(5, dtype=bool)]
    assert ((off - 50) ** 2 / 50).sum() < 50


def test_neighbours_are_scattered() -> None:
    """|p(i+1) − p(i)| of a uniform permutation has mean (N + 1) / 3 and about N / √18 deviation.

    Over 99,999 pairs its mean is known to 75 for N = 100,000; the bound is 6 of them.
    """
    places = Permutation(100_000, 1)(np.arange(100_000))
    assert abs(np.abs(np.diff(places)).mean() - 100_001 / 3) < 6 * 75


def test_another_seed_or_size_is_another_permutation() -> None:
    """Two of 1,000! orders agree in one place on average; 20 would be no chance."""
    index = np.arange(1000)
    first = Permutation(1000, 0)(index)
    assert (first == Permutation(1000, 1)(index)).sum() < 20
    assert (first == Permutation(1001, 0)(index)).sum() < 20


def test_generators_are_told_apart_by_purpose_and_numbers() -> None:
    """A trailing zero counts, too; numpy's own seeding drops it."""
    draws = {
        tuple(generator(purpose, *numbers).integers(0, 2**62, size=2).tolist())
        for purpose, numbers in [
            ("a", (1, 2)),
            ("b", (1, 2)),
            ("a", (1,)),
            ("a", (1, 2, 0)),
            ("a", (12,)),
        ]
    }
    assert len(draws) == 5
    assert generator("a", 1).random() == generator("a", 1).random()
