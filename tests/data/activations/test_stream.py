"""Streaming: the rows of a harvest, shuffled as far as a pool reaches."""

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pellucid.core.errors import AddressError, ConfigError, DataError
from pellucid.core.host import Host
from pellucid.core.unit import Site
from pellucid.data.activations import (
    ActivationSource,
    ActivationStream,
    HarvestConfig,
    harvest,
)
from pellucid.data.activations.windows import train_windows
from pellucid.data.store import Corpus

Config = Callable[..., HarvestConfig]
A, B = Site(module="a", port="out"), Site(module="b", port="in")
MODEL = {"name": "m"}


@pytest.fixture
def stream(
    corpus: Corpus, config: Config, token_host: Callable[..., Host]
) -> Callable[..., ActivationStream]:
    def make(pool_rows: int = 40, **fields: object) -> ActivationStream:
        return ActivationStream(
            token_host(), corpus, config(**fields), model=MODEL, pool_rows=pool_rows
        )

    return make


def tokens(stream: ActivationStream, steps: range, size: int, seed: int = 0) -> list[int]:
    return [t for step in steps for t in stream.batch(step, size, seed=seed).token.tolist()]


def test_facts(stream: Callable[..., ActivationStream], corpus: Corpus, config: Config) -> None:
    found = stream()
    assert isinstance(found, ActivationSource)
    assert not found.exact
    assert found.rows == train_windows(corpus, config()).rows
    assert found.validation_rows == 12
    assert found.widths == {A: 3, B: 2}
    assert found.origin.model == MODEL
    with pytest.raises(DataError, match=r"^stream: model\.name: expected 'x', found 'm'"):
        found.expect(model={"name": "x"})


def test_rows_are_aligned(stream: Callable[..., ActivationStream], corpus: Corpus) -> None:
    found = stream()
    for step in range(9):
        rows = found.batch(step, 30)
        document = np.searchsorted(corpus.train.start, rows.token.numpy() - 1, side="right") - 1
        assert rows.document.tolist() == document.tolist()
        a = torch.stack((rows.token, rows.position, torch.full_like(rows.token, 7)), -1)
        assert torch.equal(rows.x[A], a.float())
        assert torch.equal(rows.x[B][:, 0], -rows.token.float())
        assert rows.position.min() >= 1


def test_rows_come_in_the_order_of_the_text_pool_by_pool(
    stream: Callable[..., ActivationStream], corpus: Corpus, config: Config
) -> None:
    """The n-th half served is of the first (n + 2) halves that come, and no row of it came twice.

    Behind the first epoch its rows come again.
    """
    found = stream()
    windows = train_windows(corpus, config())
    batch = windows.read(0, len(windows))
    order = batch.tokens[batch.row].tolist()
    half, rows = 20, found.rows
    served = tokens(found, range(rows // half - 1), half)
    assert max(Counter(served).values()) == 1
    for n in range(rows // half - 1):
        assert set(served[n * half : (n + 1) * half]) <= set(order[: (n + 2) * half])
    later = tokens(found, range(rows // half - 1, 3 * rows // half), half)
    assert set(order) <= set(served + later)
    assert max(Counter(served + later).values()) in (3, 4)


def test_whatever_the_batches(stream: Callable[..., ActivationStream]) -> None:
    """200 rows in batches of 1, 25 and 200."""
    runs = [tokens(stream(), range(200 // size), size) for size in (1, 25, 200)]
    assert runs[0] == runs[1] == runs[2]


def test_seeds_of_the_pool_and_of_the_text(stream: Callable[..., ActivationStream]) -> None:
    """The batch's seed permutes the pool, the config's the documents."""
    first = tokens(stream(), range(1), 20)
    assert tokens(stream(), range(1), 20) == first
    assert tokens(stream(), range(1), 20, seed=1) != first
    assert tokens(stream(seed=1), range(1), 20) != first


def test_starting_anywhere(stream: Callable[..., ActivationStream]) -> None:
    """A fresh start is the same each time, goes on as one, and is near what a straight run gives.

    Step 3 of 20 rows stands in cycle 3: its pool is rows 60 to 100 of the text, in the straight
    run 80 to 100 and what was left of the others.
    """
    straight = stream()
    run = [straight.batch(step, 20).token.tolist() for step in range(6)]
    started = stream()
    first, second = (started.batch(step, 20).token.tolist() for step in (3, 4))
    again = stream()
    assert [again.batch(step, 20).token.tolist() for step in (3, 4)] == [first, second]
    assert first != run[3]
    seen = {t for part in run[:3] for t in part}
    assert 0 < len(seen & set(first)) < 20


def test_a_start_within_a_cycle(stream: Callable[..., ActivationStream]) -> None:
    """Row 70 is the 10th of cycle 3."""
    one, two = stream(), stream()
    assert tokens(one, range(6, 8), 10)[10:] == tokens(two, range(7, 8), 10)


def test_going_back_is_starting_anew(stream: Callable[..., ActivationStream]) -> None:
    used = stream()
    first = tokens(used, range(3), 15)
    assert tokens(used, range(3), 15) == first
    assert used.batch(1, 7).token.tolist() == stream().batch(1, 7).token.tolist()


def test_a_host_that_fails_leaves_no_wrong_rows(
    corpus: Corpus, config: Config, token_host: Callable[..., Host], killed: type[BaseException]
) -> None:
    """The step that failed, asked again, starts its pool anew."""
    host = token_host(die_at=8)
    found = ActivationStream(host, corpus, config(), model=MODEL, pool_rows=40)
    for step in itertools.count():
        try:
            found.batch(step, 20)
        except killed:
            break
    host.die_at = None
    fresh = ActivationStream(token_host(), corpus, config(), model=MODEL, pool_rows=40)
    assert found.batch(step, 20).token.tolist() == fresh.batch(step, 20).token.tolist()


def test_some_sites(stream: Callable[..., ActivationStream]) -> None:
    both, one = stream().batch(0, 9), stream().batch(0, 9, sites=[B])
    assert list(one.x) == [B]
    assert torch.equal(one.x[B], both.x[B])
    with pytest.raises(AddressError, match="was not harvested"):
        stream().batch(0, 1, sites=[Site(module="c", port="in")])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_held_out_rows_and_text_are_those_of_a_harvest(
    stream: Callable[..., ActivationStream],
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: Callable[..., Host],
    dtype: str,
) -> None:
    """Rounded alike, in the same order, and safe from who changes a batch."""
    cache = harvest(token_host(), corpus, config(dtype=dtype), tmp_path / "x", model=MODEL)
    found = stream(dtype=dtype)
    assert found.origin == cache.origin
    next(found.validation(12)).x[A].zero_()
    for size in (5, 12):
        pairs = list(zip(found.validation(size), cache.validation(size), strict=True))
        for one, two in pairs:
            assert one.token.tolist() == two.token.tolist()
            assert one.document.tolist() == two.document.tolist()
            assert all(torch.equal(one.x[site], two.x[site]) for site in (A, B))
    one, two = found.heldout(), cache.heldout()
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.targets, two.targets)
    assert torch.equal(one.document, two.document)
    assert one.num_bytes == two.num_bytes


def test_a_pool_is_no_larger_than_an_epoch(stream: Callable[..., ActivationStream]) -> None:
    """Two halves of at most its rows: nothing comes twice among the first half of the rows."""
    found = stream(pool_rows=10_000)
    half = found.rows // 2
    assert max(Counter(tokens(found, range(1), half)).values()) == 1


def test_a_pool_of_one(stream: Callable[..., ActivationStream]) -> None:
    with pytest.raises(ConfigError, match="pool_rows = 1, expected at least 2"):
        stream(pool_rows=1)


def test_too_little_text(stream: Callable[..., ActivationStream]) -> None:
    with pytest.raises(DataError, match="tokens = 999, but the training text has only"):
        stream(tokens=999)


def test_rows_that_are_not_finite(
    corpus: Corpus, config: Config, token_host: Callable[..., Host]
) -> None:
    bad = range(1, 60)
    refused = ActivationStream(token_host(bad=bad), corpus, config(), model=MODEL, pool_rows=40)
    with pytest.raises(DataError, match="NaN or inf"):
        tokens(refused, range(4), 20)
    drop = config(nonfinite="drop")
    dropped = ActivationStream(token_host(bad=bad), corpus, drop, model=MODEL, pool_rows=40)
    assert min(tokens(dropped, range(10), 20)) >= 60
    nothing = ActivationStream(token_host(bad=range(200)), corpus, drop, model=MODEL)
    with pytest.raises(DataError, match="every row of the training text holds NaN or inf"):
        nothing.batch(0, 1)


def test_held_out_rows_that_are_not_finite(
    corpus: Corpus, config: Config, token_host: Callable[..., Host]
) -> None:
    drop = config(nonfinite="drop")
    clean = ActivationStream(token_host(), corpus, drop, model=MODEL)
    bad = next(clean.validation(12)).token.tolist()[3:5]
    found = ActivationStream(token_host(bad=bad), corpus, drop, model=MODEL)
    rows = [t for part in found.validation(5) for t in part.token.tolist()]
    assert len(rows) == 10
    assert not set(bad) & set(rows)
    assert found.validation_rows == 10


def test_memory_does_not_grow_with_the_steps(
    make_corpus: Callable[..., Corpus], config: Config, token_host: Callable[..., Host]
) -> None:
    """The pool is an epoch of some 340 rows of 32 bytes, so both runs go through several.

    The 40,000 rows of the longer one are 1.3 MB. A quarter of that is allowed for objects that
    wait for the garbage collector.
    """
    corpus = make_corpus([35] * 10)
    asked = config(tokens=100, context=64, batch=4)

    def peak(rows: int) -> int:
        tracemalloc.start()
        try:
            found = ActivationStream(token_host(), corpus, asked, model=MODEL, pool_rows=400)
            for step in range(rows // 200):
                found.batch(step, 200)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(400)
    assert peak(40_000) - peak(400) < 40_000 * 32 / 4
