"""The pool: what comes is served once, half a pool at a time."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.unit import Site
from pellucid.data.activations.permutation import generator
from pellucid.data.activations.pool import RowPool
from pellucid.data.activations.rows import Columns, Layout

LAYOUT = Layout(sites=(Site(module="a", port="out"),), widths=(2,), dtype="float32")


def rows(first: int, sizes: Iterator[int]) -> Iterator[Columns]:
    """Rows numbered from ``first`` on, in batches of the given sizes."""
    for size in sizes:
        n = np.arange(first, first + size)
        index = np.stack((n, n, n), -1).astype(np.int32)
        yield index, np.stack((n, -n), -1).astype(np.float32)
        first += size


def endless(size: int) -> Iterator[int]:
    while True:
        yield size


def served(pool: RowPool, count: int) -> list[int]:
    index, vectors = pool.take(count, (0, 1))
    assert vectors[:, 0].tolist() == index[:, 0].tolist()
    assert vectors[:, 1].tolist() == (-index[:, 0]).tolist()
    return index[:, 0].tolist()


def test_by_hand() -> None:
    """A pool of 4 with rows 0 to 3. Cycle 0 serves two of them; 4 and 5 take their room."""
    pool = RowPool(LAYOUT, 2, rows(0, endless(3)), seed=7, cycle=0)
    first = generator("pool", 7, 0).permutation(4).tolist()
    second = generator("pool", 7, 1).permutation(4).tolist()
    held = [0, 1, 2, 3]
    assert served(pool, 2) == [held[place] for place in first[:2]]
    held[first[0]], held[first[1]] = 4, 5
    assert served(pool, 1) == [held[second[0]]]
    assert served(pool, 1) == [held[second[1]]]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_some_columns(size: int) -> None:
    pool = RowPool(LAYOUT, 4, rows(0, endless(size)), seed=0, cycle=0)
    other = RowPool(LAYOUT, 4, rows(0, endless(size)), seed=0, cycle=0)
    (vectors,) = pool.take(5, (1,))
    assert vectors[:, 0].tolist() == served(other, 5)


@settings(max_examples=40)
@given(
    st.integers(1, 9), st.integers(1, 7), st.integers(0, 3), st.integers(1, 30), st.integers(1, 6)
)
def test_nothing_is_served_twice_or_lost(
    half: int, size: int, seed: int, takes: int, count: int
) -> None:
    """Rows served and rows still held are the first so many, each once, whatever the batches."""
    pool = RowPool(LAYOUT, half, rows(0, endless(size)), seed=seed, cycle=0)
    found = [number for _ in range(takes) for number in served(pool, count)]
    whole = RowPool(LAYOUT, half, rows(0, endless(5)), seed=seed, cycle=0)
    assert served(whole, takes * count) == found
    cycles = (takes * count - 1) // half
    held = 2 * half + cycles * half  # what had come when the last row was served
    assert max(Counter(found).values()) == 1
    assert max(found) < held
    rest = served(pool, 40 * half)
    # A row stays with a chance of a half each cycle: of 2⁻³⁵ · 27 that one is still there.
    assert set(range(held)) <= {*found, *rest} or half == 1


def test_skipping_is_serving_to_nobody() -> None:
    one = RowPool(LAYOUT, 8, rows(0, endless(5)), seed=1, cycle=3)
    two = RowPool(LAYOUT, 8, rows(0, endless(5)), seed=1, cycle=3)
    two.skip(5)
    assert served(one, 30)[5:] == served(two, 25)


def test_cycles_and_seeds_differ() -> None:
    """Of 32! / 16! orders no two of four agree by chance."""
    orders = {
        tuple(served(RowPool(LAYOUT, 16, rows(0, endless(9)), seed=seed, cycle=cycle), 16))
        for seed in (0, 1)
        for cycle in (0, 1)
    }
    assert len(orders) == 4


def test_rows_wait_a_pool_on_average() -> None:
    """Behind the first filling a row is served in its j-th cycle with a chance of 2⁻ʲ.

    The mean of j is 2 and its deviation √2, so over 4,000 rows it is known to .022, and 2 cycles
    are one pool. Permuting each cycle makes the waits of one filling hypergeometric, narrower.
    """
    half = 100
    pool = RowPool(LAYOUT, half, rows(0, endless(64)), seed=0, cycle=0)
    waits: list[int] = []
    for cycle in range(60):
        for number in served(pool, half):
            came = max(0, number // half - 1)  # the first two halves are there from cycle 0 on
            if 10 <= came < 50:
                waits.append(cycle - came + 1)
    assert len(waits) > 3900
    assert abs(np.mean(waits) - 2) < 6 * 0.022
