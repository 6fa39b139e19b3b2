"""A pool of rows of which a permuted half is served and then replaced."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from pellucid.data.activations.permutation import generator
from pellucid.data.activations.rows import Columns, Layout


class RowPool:
    """``2 · half`` rows out of ``coming``, as they stand in cycle ``cycle`` of an endless order.

    In every cycle the pool is permuted anew by ``seed``, its first half served, and that room
    filled with the next rows that come.
    """

    def __init__(
        self, layout: Layout, half: int, coming: Iterator[Columns], *, seed: int, cycle: int
    ) -> None:
        self._half = half
        self._coming = coming
        self._left = layout.empty(0)
        self._rows = layout.empty(2 * half)
        self._fill(np.arange(2 * half))
        self._seed = seed
        self._cycle = cycle
        self._order = self._permuted()
        self._served = 0

    def skip(self, count: int) -> None:
        """Serve the first ``count`` ≤ ``half`` rows of this cycle to nobody."""
        self._served = count

    def take(self, count: int, columns: Sequence[int]) -> Columns:
        """The next ``count`` rows at some columns."""
        parts: list[list[np.ndarray]] = []
        while count:
            if self._served == self._half:
                self._fill(self._order[: self._half])
                self._cycle, self._served = self._cycle + 1, 0
                self._order = self._permuted()
            taken = self._order[self._served : min(self._served + count, self._half)]
            parts.append([self._rows[column][taken] for column in columns])
            self._served, count = self._served + len(taken), count - len(taken)
        return tuple(np.concatenate(column) for column in zip(*parts))

    def _permuted(self) -> Int[np.ndarray, " rows"]:
        return generator("pool", self._seed, self._cycle).permutation(2 * self._half)

    def _fill(self, places: Int[np.ndarray, " rows"]) -> None:
        """Put the next rows that come in ``places``."""
        filled = 0
        while filled < len(places):
            if not len(self._left[0]):
                self._left = next(self._coming)
            taken = places[filled : filled + len(self._left[0])]
            for rows, column in zip(self._rows, self._left):
                rows[taken] = column[: len(taken)]
            self._left = tuple(column[len(taken) :] for column in self._left)
            filled += len(taken)
