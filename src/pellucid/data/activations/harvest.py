"""Run a host over a corpus once, and keep the rows of some sites in a cache.

**Windows.** Documents of a split, in an order drawn by the seed, are cut into windows of
``context`` positions (``windows.py``); a harvest runs the first windows that hold the rows asked
for. Held-out rows come from whole validation documents and stay in the order of the text.

**Shuffle.** Let N training rows come, N known beforehand, and let p be the seeded permutation of
[0, N) of ``permutation.py``. Row i goes to shard p(i) // shard_rows; a reader permutes each shard
anew and the shards themselves. For a uniform p the rows of each shard are a uniform subset of
their size, drawn without replacement, and a uniform permutation inside each subset makes every
one of the N! orders equally likely; what the shards' own order is does not matter. Leaving rows
out, as ``nonfinite`` = drop does, leaves the order of the others uniform. Only a few numbers a
shard grow with N. Epochs differ in the order of the shards and inside them, and share the
division into shards.

**Memory.** One buffer of ``shard_rows`` rows and a few batches of the host's tensors.

**Interruption.** A harvest stopped at any instant goes on where ``harvest.json`` says, and ends
with the same bytes (``record.py``). Cost: one forward pass a window, each row written once and
read once for its checksum.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pellucid.core.host import Host
from pellucid.data.activations.cache import ActivationCache
from pellucid.data.activations.config import HarvestConfig, Origin
from pellucid.data.activations.files import disk_errors
from pellucid.data.activations.permutation import Permutation
from pellucid.data.activations.reader import RowReader
from pellucid.data.activations.record import HarvestRecord, begin, write_record
from pellucid.data.activations.seal import seal
from pellucid.data.activations.windows import Windows, train_windows, validation_windows
from pellucid.data.activations.writer import Place, ShardWriter, num_shards
from pellucid.data.store import Corpus
from pellucid.data.survey import Progress


def harvest(
    host: Host,
    corpus: Corpus,
    config: HarvestConfig,
    out: Path,
    *,
    model: Mapping[str, str],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    overwrite: bool = False,
) -> ActivationCache:
    """The cache of ``config`` in the folder ``out``: harvested, gone on with, or as it is there.

    ``model`` identifies the host, in the caller's own keys, and is compared when a harvest goes
    on. ``progress`` gets a stage's name, the rows done and the rows in all. Errors: ``DataError``
    for too little text, another harvest in ``out``, a site that gives no rows of one width, rows
    with NaN or inf, a full disk; ``AddressError`` for a site the host does not have.
    """
    origin = Origin.of(host, corpus, config, model)
    places = Permutation(config.tokens, config.seed)
    jobs = (
        _Job("validation", validation_windows(corpus, config), config.validation_tokens, _in_order),
        _Job("train", train_windows(corpus, config), config.tokens, places),
    )
    with disk_errors(out):
        record = begin(out, _fresh(origin, jobs), overwrite=overwrite)
    if record is None:
        return ActivationCache.open(out)
    record = replace(record, origin=origin)
    reader = RowReader(host=host, layout=origin.layout, nonfinite=config.nonfinite, device=device)
    for job in jobs:
        record = _fill(out, job, reader, record, progress)
    with disk_errors(out):
        seal(out, record, jobs[0].windows, progress=progress)
    return ActivationCache.open(out, verify=False)


@dataclass(frozen=True, slots=True)
class _Job:
    """One split: its windows, how many of their rows are wanted, and where each goes."""

    split: str
    windows: Windows
    rows: int
    place: Place


def _fresh(origin: Origin, jobs: tuple[_Job, ...]) -> HarvestRecord:
    """The record of a harvest that has done nothing."""
    shard_rows = origin.config.shard_rows
    return HarvestRecord(
        origin=origin,
        windows={job.split: 0 for job in jobs},
        rows={job.split: (0,) * num_shards(job.rows, shard_rows) for job in jobs},
        nonfinite=dict.fromkeys(origin.config.sites, 0),
    )


def _fill(
    out: Path, job: _Job, reader: RowReader, record: HarvestRecord, progress: Progress | None
) -> HarvestRecord:
    """Harvest what is left of one split; the last record."""
    config, windows = record.origin.config, job.windows
    last = windows.windows_for(job.rows)
    if record.windows[job.split] == last:
        return record
    with disk_errors(out):
        writer = ShardWriter(
            out,
            record.origin,
            job.split,
            written=record.rows[job.split],
            place=job.place,
            batch_rows=config.batch * config.context,
        )
    counts = dict(record.nonfinite)
    for first in range(record.windows[job.split], last, config.batch):
        done = min(first + config.batch, last)
        block = reader.read(windows, first, done, rows=job.rows)
        for site, count in zip(config.sites, block.nonfinite):
            counts[site] += count
        with disk_errors(out):
            synced = writer.add(block)
            if done == last:
                writer.finish()
            if synced or done == last:
                record = replace(
                    record,
                    windows={**record.windows, job.split: done},
                    rows={**record.rows, job.split: tuple(writer.written)},
                    nonfinite=dict(counts),
                )
                write_record(out, record)
        if progress is not None:
            rows = min(job.rows, windows.rows_before_window(done))
            progress(f"harvesting {job.split}", rows, job.rows)
    return record


def _in_order(number: np.ndarray) -> np.ndarray:
    """Held-out rows keep the order of their text."""
    return number
