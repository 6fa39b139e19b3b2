"""Raw files that outlive a crash: appended to, cut back, synced, hashed."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pellucid.core.errors import DataError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def append(path: Path, rows: np.ndarray) -> None:
    """Write rows at the end of a file."""
    with path.open("ab") as file:
        file.write(np.ascontiguousarray(rows).data)


def cut(path: Path, size: int) -> None:
    """Make a file ``size`` bytes long, which it was once; a shorter one is a ``DataError``."""
    with path.open("ab") as file:
        found = file.tell()
        if found < size:
            raise DataError(
                f"{path}: truncated: expected at least {size} bytes, found {found}; the harvest "
                "cannot go on, start it again with overwrite"
            )
        file.truncate(size)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file aside, sync it, rename it into place."""
    aside = path.with_name(f".writing_{path.name}")
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sha256(path: Path) -> str:
    """The checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the system refuses into one line; what the folder holds can be gone on with."""
    try:
        yield
    except OSError as error:
        full = error.errno in FULL_DISK
        reason = "the disk is full" if full else f"cannot be written: {error.strerror}"
        mend = "free some space" if full else "mend that"
        raise DataError(
            f"{folder}: {reason}; what was harvested before is kept: {mend}, then run the same "
            "harvest again, which goes on from there"
        ) from None
