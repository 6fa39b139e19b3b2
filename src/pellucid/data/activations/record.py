"""How far a harvest has come: the small file that makes an interrupted one resumable.

``harvest.json`` is written atomically after the rows it speaks of are on disk for good. Whatever
the files hold beyond it was written later and is cut off, so going on repeats exactly the bytes
that an uninterrupted harvest would have written. A folder has this file until it has a manifest.
"""

from dataclasses import dataclass
from pathlib import Path

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError, DataError
from pellucid.data.activations.config import Origin, check_same
from pellucid.data.activations.manifest import MANIFEST, read_manifest
from pellucid.data.activations.sealed import AGAIN, read_sealed, write_sealed
from pellucid.data.disk import sync

RECORD = "harvest.json"


@dataclass(frozen=True, kw_only=True)
class HarvestRecord:
    """Per split the windows done and each shard's rows; per site the rows that were not finite."""

    origin: Origin
    windows: dict[str, int]
    rows: dict[str, tuple[int, ...]]
    nonfinite: dict[str, int]


def write_record(out: Path, record: HarvestRecord) -> None:
    """Put the record in the place of the last one."""
    write_sealed(out / RECORD, to_dict(record))


def read_record(out: Path) -> HarvestRecord:
    """The record of a folder; missing, newer or altered, it is a ``DataError``."""
    path = out / RECORD
    try:
        return from_dict(HarvestRecord, read_sealed(path), where=str(path))
    except ConfigError as error:
        raise DataError(f"{error}; {AGAIN}") from None


def begin(out: Path, fresh: HarvestRecord, *, overwrite: bool) -> HarvestRecord | None:
    """Where a harvest into ``out`` starts: ``fresh``, an earlier record, or ``None`` if finished.

    Errors: a ``DataError`` for a folder that holds something else, and without ``overwrite`` for
    a harvest of another origin, named by the first field that differs.
    """
    finished, started = (out / MANIFEST).exists(), (out / RECORD).exists()
    if out.exists() and not (finished or started) and (out.is_file() or any(out.iterdir())):
        raise DataError(f"{out}: exists and holds no activations; choose another folder")
    if finished and not overwrite:
        manifest = read_manifest(out)
        check_same(str(out), manifest.origin, fresh.origin, dropped=manifest.dropped)
        return None
    if started and not overwrite:
        record = read_record(out)
        if any(record.windows.values()):
            dropped = sum(record.nonfinite.values())
            check_same(str(out), record.origin, fresh.origin, dropped=dropped)
            return record
    out.mkdir(parents=True, exist_ok=True)
    write_record(out, fresh)  # first, so that half of an old cache is never taken for a whole one
    for file in (out / MANIFEST, *out.glob("*.bin")):
        file.unlink(missing_ok=True)
    sync(out)
    return fresh
