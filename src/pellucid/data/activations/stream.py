"""Activations made while they are used: a pool of rows, half of it replaced at a time.

The training text runs through the host in the order of a harvest, epoch after epoch in a new
order of the documents. A pool of P rows is filled from it; in cycle c the pool is permuted, its
first P/2 rows are served and their room is filled with the next P/2. A row waits P rows on
average before it is served, so rows of one document are spread over some multiples of P, not over
the whole: an approximate shuffle, ``exact = False``.

A stream starts at any step by filling the pool from row c · P/2 of the text on, where c is the
step's cycle. What was served before cycle c is not known then, so about P/4 rows come twice and as
many are left out: after a resume the batches are not those of an uninterrupted run.

Memory: the pool, one batch of the host's tensors, and the held-out rows once they were asked for.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from pellucid.core.errors import ConfigError, DataError
from pellucid.core.host import Host
from pellucid.core.unit import Site
from pellucid.data.activations.config import HarvestConfig, Origin
from pellucid.data.activations.heldout import HeldOut, held_out_bytes, held_out_table
from pellucid.data.activations.pool import RowPool
from pellucid.data.activations.reader import RowReader
from pellucid.data.activations.rows import Columns, Rows
from pellucid.data.activations.source import ActivationSource
from pellucid.data.activations.windows import train_windows, validation_windows
from pellucid.data.store import Corpus

POOL_ROWS = 1 << 19


class ActivationStream(ActivationSource):
    """Rows from a host as they are asked for.

    Of ``config`` everything counts but ``shard_rows``; ``rows`` are those of one epoch, of which
    the pool holds at most one. Errors as in ``harvest``.
    """

    exact = False

    def __init__(
        self,
        host: Host,
        corpus: Corpus,
        config: HarvestConfig,
        *,
        model: Mapping[str, str],
        pool_rows: int = POOL_ROWS,
        device: torch.device | str = "cpu",
    ) -> None:
        if pool_rows < 2:
            raise ConfigError(f"pool_rows = {pool_rows}, expected at least 2")
        rows = train_windows(corpus, config).rows
        super().__init__(
            "stream",
            Origin.of(host, corpus, config, model),
            rows=rows,
            validation_rows=config.validation_tokens,
        )
        self._corpus = corpus
        self._config = config
        self._reader = RowReader(
            host=host, layout=self.layout, nonfinite=config.nonfinite, device=device
        )
        self._half = max(1, min(pool_rows, rows) // 2)
        self._pool: RowPool | None = None
        self._next = (-1, -1)  # the seed and the row at which the pool stands
        self._heldout = validation_windows(corpus, config)
        self._held: Columns | None = None

    def batch(
        self, step: int, size: int, *, seed: int = 0, sites: Sequence[Site] | None = None
    ) -> Rows:
        """The rows of a step; any but the next one makes the pool anew."""
        wanted = self.layout.chosen(sites)
        first = step * size
        if self._pool is None or self._next != (seed, first):
            self._pool = None  # its memory is free before the next is filled
            cycle, served = divmod(first, self._half)
            text = self._text(cycle * self._half)
            self._pool = RowPool(self.layout, self._half, text, seed=seed, cycle=cycle)
            self._pool.skip(served)
        self._next = (-1, -1)
        index, *vectors = self._pool.take(size, (0, *wanted))
        self._next = seed, first + size
        return self.layout.decode(index, dict(zip(wanted, vectors)))

    def validation(self, size: int, *, sites: Sequence[Site] | None = None) -> Iterator[Rows]:
        """All held-out rows in the order of their text, made at the first call."""
        wanted = self.layout.chosen(sites)
        if self._held is None:
            self._held = self._held_out_rows()
        for first in range(0, self.validation_rows, size):
            index, *vectors = (
                self._held[column][first : first + size].copy() for column in (0, *wanted)
            )
            yield self.layout.decode(index, dict(zip(wanted, vectors)))

    def heldout(self) -> HeldOut:
        """The windows of which the held-out rows are part."""
        return HeldOut.of(held_out_table(self._heldout), held_out_bytes(self._heldout))

    def _text(self, row: int) -> Iterator[Columns]:
        """The rows of the endless text from ``row`` on, a batch of windows at a time."""
        epoch, batch = 0, self._config.batch
        windows = train_windows(self._corpus, self._config)
        while row >= windows.rows:
            row, epoch = row - windows.rows, epoch + 1
            windows = train_windows(self._corpus, self._config, epoch)
        while True:
            found = 0
            for first in range(windows.windows_for(row + 1) - 1, len(windows), batch):
                last = min(first + batch, len(windows))
                block = self._reader.read(windows, first, last, rows=windows.rows)
                found += len(block.number)
                yield tuple(column[block.number >= row] for column in block.columns)
            if not found:
                raise DataError("every row of the training text holds NaN or inf; mend the model")
            row, epoch = 0, epoch + 1
            windows = train_windows(self._corpus, self._config, epoch)

    def _held_out_rows(self) -> Columns:
        """The held-out rows in columns."""
        wanted, batch = self._config.validation_tokens, self._config.batch
        columns, filled = self.layout.empty(wanted), 0
        last = self._heldout.windows_for(wanted)
        for first in range(0, last, batch):
            block = self._reader.read(self._heldout, first, min(first + batch, last), rows=wanted)
            for held, column in zip(columns, block.columns):
                held[filled : filled + len(column)] = column
            filled += len(block.number)
        self.validation_rows = filled
        return tuple(column[:filled] for column in columns)
