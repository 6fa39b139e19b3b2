"""Rows to shards: each to its own, in order of arrival, in few writes, synced now and then."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.errors import DataError
from pellucid.data.activations import writer as module
from pellucid.data.activations.config import HarvestConfig, Origin
from pellucid.data.activations.manifest import shard_files
from pellucid.data.activations.permutation import Permutation
from pellucid.data.activations.reader import Block
from pellucid.data.activations.writer import Place, ShardWriter, num_shards


@pytest.fixture(scope="session")
def origin() -> Origin:
    """One site of width 2."""
    config = HarvestConfig(sites=("a:out",), tokens=1, context=4, shard_rows=4)
    return Origin(model={}, tokenizer="t", corpus="c", widths=(2,), config=config)


def block(numbers: list[int]) -> Block:
    """Row n is (n, n, n) and (n, n + ½)."""
    n = np.array(numbers, dtype=np.int64)
    index = np.stack((n, n, n), -1).astype(np.int32)
    return Block((index, np.stack((n, n + 0.5), -1).astype(np.float32)), n, (0,))


def writer_of(
    out: Path, origin: Origin, place: Place, *, rows: int, written: tuple[int, ...] | None = None
) -> ShardWriter:
    shards = num_shards(rows, origin.config.shard_rows)
    return ShardWriter(
        out, origin, "train", written=written or (0,) * shards, place=place, batch_rows=5
    )


def contents(out: Path, origin: Origin, shards: int) -> list[list[int]]:
    """The row numbers in each shard's files, both of which must agree."""
    found: list[list[int]] = []
    for shard in range(shards):
        rows, site = (out / name for name in shard_files(origin, "train", shard))
        index = np.fromfile(rows, dtype=np.int32).reshape(-1, 3)
        vectors = np.fromfile(site, dtype=np.float32).reshape(-1, 2)
        assert vectors[:, 0].tolist() == index[:, 0].tolist()
        assert (vectors[:, 1] - vectors[:, 0] == 0.5).all()
        found.append(index[:, 0].tolist())
    return found


@pytest.mark.parametrize(("rows", "shards"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_number_of_shards(rows: int, shards: int) -> None:
    assert num_shards(rows, 4) == shards


def test_by_hand(tmp_path: Path, origin: Origin) -> None:
    """Row n of 10 goes to place 9 - n: rows 9 to 6 to the first of three shards of 4, 4 and 2.

    Four rows are held, so the first call writes nothing and the second all seven.
    """
    writer = writer_of(tmp_path, origin, lambda n: 9 - n, rows=10)
    assert not writer.add(block([0, 1, 2]))
    assert contents(tmp_path, origin, 3) == [[], [], []]
    assert writer.add(block([3, 4, 5, 6]))
    assert contents(tmp_path, origin, 3) == [[6], [2, 3, 4, 5], [0, 1]]
    assert writer.written == [1, 4, 2]
    assert not writer.add(block([7, 8, 9]))
    writer.finish()
    assert contents(tmp_path, origin, 3) == [[6, 7, 8, 9], [2, 3, 4, 5], [0, 1]]
    assert writer.written == [4, 4, 2]


def test_numbers_left_out_leave_room(tmp_path: Path, origin: Origin) -> None:
    """Rows 1, 5 and 6 never came: the other places are as they would have been."""
    writer = writer_of(tmp_path, origin, lambda n: n, rows=10)
    writer.add(block([0, 2, 3, 4]))
    writer.add(block([]))
    writer.add(block([7, 8, 9]))
    writer.finish()
    assert contents(tmp_path, origin, 3) == [[0, 2, 3], [4, 7], [8, 9]]


@settings(max_examples=30)
@given(st.integers(1, 40), st.data(), st.integers(0, 5))
def test_the_bytes_do_not_depend_on_how_rows_arrive(
    tmp_path_factory: pytest.TempPathFactory,
    origin: Origin,
    rows: int,
    data: st.DataObject,
    seed: int,
) -> None:
    """In any batches of up to 5, in one go or gone on with after any of them."""
    out = tmp_path_factory.mktemp("shards")
    place, shards = Permutation(rows, seed), num_shards(rows, 4)
    writer = writer_of(out, origin, place, rows=rows)
    first = 0
    while first < rows:
        last = min(rows, first + data.draw(st.integers(1, 5)))
        writer.add(block(list(range(first, last))))
        first = last
        if data.draw(st.booleans()):
            writer.finish()
            written = tuple(writer.written)
            writer = writer_of(out, origin, place, rows=rows, written=written)
    writer.finish()
    home = place(np.arange(rows)) // 4
    expected = [np.flatnonzero(home == shard).tolist() for shard in range(shards)]
    assert contents(out, origin, shards) == expected


def test_what_was_not_recorded_is_cut_off(tmp_path: Path, origin: Origin) -> None:
    writer = writer_of(tmp_path, origin, lambda n: n, rows=10)
    writer.add(block([0, 1, 2, 3]))
    written = tuple(writer.written)
    writer.add(block([4, 5, 6, 7]))
    again = writer_of(tmp_path, origin, lambda n: n, rows=10, written=written)
    assert contents(tmp_path, origin, 3) == [[0, 1, 2, 3], [], []]
    again.add(block([4, 5, 6, 7]))
    assert contents(tmp_path, origin, 3) == [[0, 1, 2, 3], [4, 5, 6, 7], []]


def test_less_than_was_recorded_is_an_error(tmp_path: Path, origin: Origin) -> None:
    with pytest.raises(DataError, match=r"train\.00001\.rows\.bin: .* at least 24 bytes, found 0"):
        writer_of(tmp_path, origin, lambda n: n, rows=10, written=(0, 2, 0))


@pytest.mark.parametrize(("shards", "every"), [(1, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_syncs_are_few(
    tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch, shards: int, every: int
) -> None:
    """With one row a shard every flush goes out; ⌈shards / 64⌉ of them share one sync of all."""
    one = dataclasses.replace(origin, config=dataclasses.replace(origin.config, shard_rows=1))
    synced: list[Path] = []
    monkeypatch.setattr(module, "sync", synced.append)
    writer = writer_of(tmp_path, one, lambda n: n, rows=shards)
    told = [writer.add(block([0])) for _ in range(6)]
    assert told == [(flush + 1) % every == 0 for flush in range(6)]
    assert len(synced) == sum(told) * (2 * shards + 1)
    assert len(set(synced)) == 2 * shards + 1


def test_the_buffer_is_bounded(tmp_path: Path, config: Callable[..., HarvestConfig]) -> None:
    """23 rows and a batch of 5, of 12 + 12 + 8 bytes and a number of 8: whatever has come."""
    origin = Origin(model={}, tokenizer="t", corpus="c", widths=(3, 2), config=config())
    writer = writer_of(tmp_path, origin, lambda n: n, rows=1000)
    held = [*writer._buffer, writer._number]
    assert sum(array.nbytes for array in held) == 28 * (12 + 12 + 8 + 8)
