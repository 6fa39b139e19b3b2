"""Rows to shards: buffered, sent to the shard of their place, appended in order of arrival.

Row i of a split goes to shard place(i) // shard_rows. The buffer holds ``shard_rows`` rows and one
batch, so a flush appends a few rows to every shard; with S shards, rows are synced to disk on
every ⌈S / 64⌉-th flush only, which bounds the syncs by 64 a flush and what a kill can lose by 1/64
of the harvest or one flush.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pellucid.data.activations.config import Origin
from pellucid.data.activations.files import append, cut
from pellucid.data.activations.manifest import shard_files
from pellucid.data.activations.reader import Block
from pellucid.data.disk import sync

SYNCS = 64

Place = Callable[[np.ndarray], np.ndarray]


def num_shards(rows: int, shard_rows: int) -> int:
    """The shards of so many rows."""
    return -(-rows // shard_rows)


class ShardWriter:
    """Appends the rows of one split to its shards, from the ``written`` rows of each on.

    Files are cut back to ``written`` first. ``place`` permutes the numbers of the split's rows.
    """

    def __init__(
        self,
        out: Path,
        origin: Origin,
        split: str,
        *,
        written: tuple[int, ...],
        place: Place,
        batch_rows: int,
    ) -> None:
        self._out = out
        self._shard_rows = origin.config.shard_rows
        self._place = place
        self._origin = origin
        self._split = split
        for shard, rows in enumerate(written):
            for file, width in zip(self._files(shard), origin.layout.row_bytes):
                cut(file, rows * width)
        self._buffer = origin.layout.empty(self._shard_rows + batch_rows)
        self._number = np.empty(self._shard_rows + batch_rows, dtype=np.int64)
        self._held = 0
        self._flushes = 0
        self.written = list(written)

    def add(self, block: Block) -> bool:
        """Take rows in; whether they went to disk with all before them and were synced."""
        end = self._held + len(block.number)
        for held, column in zip(self._buffer, block.columns):
            held[self._held : end] = column
        self._number[self._held : end] = block.number
        self._held = end
        if end < self._shard_rows:
            return False
        self._flush()
        every = num_shards(len(self.written), SYNCS)
        if self._flushes % every:
            return False
        self._sync()
        return True

    def finish(self) -> None:
        """Write and sync what is left."""
        self._flush()
        self._sync()

    def _flush(self) -> None:
        shard = self._place(self._number[: self._held]) // self._shard_rows
        order = np.argsort(shard, kind="stable")
        edges = np.searchsorted(shard[order], np.arange(len(self.written) + 1))
        for index in np.flatnonzero(np.diff(edges)).tolist():
            self._append(index, order[edges[index] : edges[index + 1]])
        self._held = 0
        self._flushes += 1

    def _append(self, shard: int, rows: np.ndarray) -> None:
        for file, column in zip(self._files(shard), self._buffer):
            append(file, column[rows])
        self.written[shard] += len(rows)

    def _sync(self) -> None:
        for shard in range(len(self.written)):
            for file in self._files(shard):
                sync(file)
        sync(self._out)

    def _files(self, shard: int) -> list[Path]:
        """Named anew each time: of a shard only its count of rows is held."""
        return [self._out / name for name in shard_files(self._origin, self._split, shard)]
