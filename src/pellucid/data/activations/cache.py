"""A harvested cache: rows in an exact global shuffle, read shard by shard.

A batch is a pure function of (step, size, seed), so training resumes from a step number alone.
Every epoch permutes the shards and each shard; why the whole is a uniform permutation is argued in
``harvest.py``. Cost: every shard is read once an epoch; one shard is held, and a batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from pellucid.core.errors import DataError
from pellucid.core.unit import Site
from pellucid.data.activations.heldout import HeldOut
from pellucid.data.activations.manifest import (
    HELDOUT,
    MANIFEST,
    CacheManifest,
    read_manifest,
    shard_files,
    verify_files,
)
from pellucid.data.activations.permutation import generator
from pellucid.data.activations.record import RECORD
from pellucid.data.activations.rows import Rows
from pellucid.data.activations.source import ActivationSource


class ActivationCache(ActivationSource):
    """The rows that a harvest left in a folder; ``open`` it."""

    exact = True

    def __init__(self, path: Path, manifest: CacheManifest) -> None:
        super().__init__(
            str(path),
            manifest.origin,
            rows=manifest.rows,
            validation_rows=manifest.validation_rows,
        )
        self.path = path
        self.manifest = manifest
        self._epoch: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None
        self._order: tuple[tuple[int, int, int], np.ndarray] | None = None
        self._shard: tuple[tuple[str, int], dict[int, np.ndarray]] = (("", 0), {})

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> "ActivationCache":
        """The cache in a folder, every file compared with its manifest.

        Without ``verify`` only sizes are compared, which reads nothing. Errors: a ``DataError``
        for what is no cache, unfinished, newer, or has a missing, truncated or altered file.
        """
        if not (path / MANIFEST).exists():
            if (path / RECORD).exists():
                raise DataError(
                    f"{path}: the harvest into it was interrupted; run the same harvest again, "
                    "which goes on where it stopped"
                )
            raise DataError(f"{path}: holds no activations ({MANIFEST} is missing); harvest them")
        manifest = read_manifest(path)
        verify_files(path, manifest, checksums=verify)
        return cls(path, manifest)

    def batch(
        self, step: int, size: int, *, seed: int = 0, sites: Sequence[Site] | None = None
    ) -> Rows:
        """Rows step · size and behind of the endless order that ``seed`` decides."""
        wanted = self.layout.chosen(sites)
        parts: list[list[np.ndarray]] = []
        first, missing = step * size, size
        while missing:
            epoch, place = divmod(first, self.rows)
            shards, edges = self._shards(seed, epoch)
            at = int(np.searchsorted(edges, place, side="right")) - 1
            taken = min(missing, int(edges[at + 1]) - place)
            start, shard = place - int(edges[at]), int(shards[at])
            rows = self._inside(seed, epoch, shard)[start : start + taken]
            parts.append(self._take("train", shard, (0, *wanted), rows))
            first, missing = first + taken, missing - taken
        return self._decode(wanted, parts)

    def validation(self, size: int, *, sites: Sequence[Site] | None = None) -> Iterator[Rows]:
        """All held-out rows in the order of their text."""
        wanted = self.layout.chosen(sites)
        counts = [shard.rows for shard in self.manifest.validation]
        edges = np.cumsum([0, *counts])
        for first in range(0, self.validation_rows, size):
            parts: list[list[np.ndarray]] = []
            stop = min(first + size, self.validation_rows)
            while first < stop:
                shard = int(np.searchsorted(edges, first, side="right")) - 1
                start, end = first - edges[shard], min(stop, edges[shard + 1]) - edges[shard]
                parts.append(self._take("validation", shard, (0, *wanted), np.arange(start, end)))
                first += end - start
            yield self._decode(wanted, parts)

    def heldout(self) -> HeldOut:
        """The windows of which the held-out rows are part."""
        found, context = self.manifest.heldout, self.origin.config.context
        table = np.fromfile(self.path / HELDOUT, dtype=np.int32)
        return HeldOut.of(table.reshape(found.windows, 2, context), found.num_bytes)

    def _shards(
        self, seed: int, epoch: int
    ) -> tuple[Int[np.ndarray, " shards"], Int[np.ndarray, " edges"]]:
        """The shards in their order in one epoch, and the rows before each."""
        if self._epoch is None or self._epoch[0] != (seed, epoch):
            counts = np.array([shard.rows for shard in self.manifest.train])
            order = generator("shards", seed, epoch).permutation(len(counts))
            self._epoch = (seed, epoch), order, np.cumsum([0, *counts[order]])
        return self._epoch[1:]

    def _inside(self, seed: int, epoch: int, shard: int) -> Int[np.ndarray, " rows"]:
        """The order of one shard's rows in one epoch."""
        key = (seed, epoch, shard)
        if self._order is None or self._order[0] != key:
            rows = self.manifest.train[shard].rows
            self._order = key, generator("rows", *key).permutation(rows)
        return self._order[1]

    def _take(
        self, split: str, shard: int, columns: Sequence[int], rows: Int[np.ndarray, " rows"]
    ) -> list[np.ndarray]:
        """Some rows of some columns of one shard, which is held until another is asked for."""
        if self._shard[0] != (split, shard):
            self._shard = (split, shard), {}
        held = self._shard[1]
        names = shard_files(self.origin, split, shard)
        for column in columns:
            if column not in held:
                kind, width = self.layout.columns[column]
                values = np.fromfile(self.path / names[column], dtype=kind)
                held[column] = values.reshape(-1, width)
        return [held[column][rows] for column in columns]

    def _decode(self, wanted: Sequence[int], parts: list[list[np.ndarray]]) -> Rows:
        index, *vectors = (np.concatenate(column) for column in zip(*parts))
        return self.layout.decode(index, dict(zip(wanted, vectors)))
