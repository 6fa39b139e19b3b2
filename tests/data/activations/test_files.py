"""Raw files: appended, cut back, and what the system refuses said in one line."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pellucid.core.errors import DataError
from pellucid.data.activations.files import append, cut, disk_errors


def test_rows_are_appended_in_their_own_bytes(tmp_path: Path) -> None:
    """Every second row of a table is not contiguous; little-endian 16 bits by hand."""
    table = np.array([[1, 2], [0, 0], [256, 3]], dtype="<u2")
    append(tmp_path / "x", table[::2])
    append(tmp_path / "x", table[:0])
    append(tmp_path / "x", table[2:])
    assert (tmp_path / "x").read_bytes() == bytes([1, 0, 2, 0, 0, 1, 3, 0, 0, 1, 3, 0])


def test_cutting(tmp_path: Path) -> None:
    path = tmp_path / "x"
    cut(path, 0)
    assert path.read_bytes() == b""
    path.write_bytes(b"abcdef")
    cut(path, 4)
    cut(path, 4)
    assert path.read_bytes() == b"abcd"
    with pytest.raises(DataError, match=r"expected at least 5 bytes, found 4; .* overwrite"):
        cut(path, 5)
    assert path.read_bytes() == b"abcd"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named(number: int) -> None:
    expected = "^cache: the disk is full; .* kept: free some space, then run the same harvest again"
    with pytest.raises(DataError, match=expected), disk_errors(Path("cache")):
        raise OSError(number, os.strerror(number))


def test_any_other_refusal_is_named_by_the_system() -> None:
    with (
        pytest.raises(DataError, match=r"^cache: cannot be written: Permission denied; "),
        disk_errors(Path("cache")),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", "cache/x")


def test_no_other_error_is_touched() -> None:
    with pytest.raises(KeyError), disk_errors(Path("cache")):
        raise KeyError("x")


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 4,096 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_system_really_refuses(tmp_path: Path, small_files: None) -> None:
    """What fits is written; beyond it the error is one of those above."""
    append(tmp_path / "x", np.zeros((1024, 1), dtype=np.int32))
    with pytest.raises(DataError, match="the disk is full"), disk_errors(tmp_path):
        append(tmp_path / "x", np.zeros((1, 1), dtype=np.int32))
    assert (tmp_path / "x").stat().st_size == 4096
