"""Raw files that rows are appended to, and what the system refuses told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pellucid.core.errors import DataError
from pellucid.data.disk import FULL_DISK


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
