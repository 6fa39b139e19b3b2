"""Small files on disk: forced there, replaced whole or not at all, hashed."""

import errno
import os
from pathlib import Path

import pytest

from pellucid.data import disk
from pellucid.data.disk import checksum, write_atomically


def test_a_file_and_a_folder_are_forced_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: forced.append(os.readlink(f"/proc/self/fd/{fd}")))
    write_atomically(tmp_path / "x", "one")
    assert forced == [str(tmp_path / ".writing_x"), str(tmp_path)]


def test_checksum(tmp_path: Path) -> None:
    """The SHA-256 of "abc", from FIPS 180-2."""
    (tmp_path / "x").write_bytes(b"abc")
    assert checksum(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9c")


def test_an_atomic_write_replaces_or_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two"

    def refuse(_: Path) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(disk, "sync", refuse)
    with pytest.raises(OSError, match="no"):
        write_atomically(path, "three")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x", "two")]
