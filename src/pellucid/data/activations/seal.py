"""The end of a harvest: held-out text written, every file hashed, the manifest put in place."""

from pathlib import Path

from pellucid.core.errors import DataError
from pellucid.data.activations.config import Origin
from pellucid.data.activations.files import append, cut
from pellucid.data.activations.heldout import held_out_bytes, held_out_table
from pellucid.data.activations.manifest import (
    HELDOUT,
    CacheManifest,
    HeldOutFile,
    Shard,
    shard_files,
    write_manifest,
)
from pellucid.data.activations.record import RECORD, HarvestRecord
from pellucid.data.activations.windows import Windows
from pellucid.data.disk import checksum, sync
from pellucid.data.survey import Progress


def seal(
    out: Path, record: HarvestRecord, heldout: Windows, *, progress: Progress | None
) -> CacheManifest:
    """Make a cache of a folder whose harvest is done. Cost: one reading of all files.

    Errors: a ``DataError`` where no row was finite, ``OSError`` where nothing can be written.
    """
    for split, rows in record.rows.items():
        if not sum(rows):
            raise DataError(
                f"{out}: every row of the {split} text holds NaN or inf, so none is left; mend "
                "the model"
            )
    table = held_out_table(heldout)
    cut(out / HELDOUT, 0)
    append(out / HELDOUT, table)
    sync(out / HELDOUT)
    manifest = CacheManifest(
        origin=record.origin,
        nonfinite=record.nonfinite,
        train=_shards(out, record.origin, "train", record.rows["train"], progress),
        validation=_shards(out, record.origin, "validation", record.rows["validation"], progress),
        heldout=HeldOutFile(
            windows=len(table),
            num_bytes=held_out_bytes(heldout),
            sha256=checksum(out / HELDOUT),
        ),
    )
    write_manifest(out, manifest)
    (out / RECORD).unlink()
    return manifest


def _shards(
    out: Path, origin: Origin, split: str, rows: tuple[int, ...], progress: Progress | None
) -> tuple[Shard, ...]:
    shards: list[Shard] = []
    for number, count in enumerate(rows):
        names = shard_files(origin, split, number)
        shards.append(Shard(rows=count, sha256=tuple(checksum(out / name) for name in names)))
        if progress is not None:
            progress(f"checksums of {split}", number + 1, len(rows))
    return tuple(shards)
