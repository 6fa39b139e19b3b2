"""The manifest: files by name and size, and every damaged file found by name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pellucid.core.errors import DataError
from pellucid.data.activations.config import HarvestConfig, Origin
from pellucid.data.activations.files import append
from pellucid.data.activations.manifest import (
    HELDOUT,
    MANIFEST,
    CacheManifest,
    HeldOutFile,
    Shard,
    read_manifest,
    shard_files,
    verify_files,
    write_manifest,
)
from pellucid.data.activations.sealed import FORMAT, write_sealed
from pellucid.data.disk import checksum

FILES = ("validation.00000.site1.bin", "train.00000.rows.bin", "train.00001.site0.bin", HELDOUT)


@pytest.fixture
def origin(config: Callable[..., HarvestConfig]) -> Origin:
    """Widths 3 and 2: rows of 12 + 12 + 8 bytes; windows of 8 positions."""
    asked = config(tokens=9, validation_tokens=4, shard_rows=5)
    return Origin(model={"name": "m"}, tokenizer="t", corpus="c", widths=(3, 2), config=asked)


@pytest.fixture
def manifest(tmp_path: Path, origin: Origin) -> CacheManifest:
    """A cache of 5 + 3 training rows, one dropped, 4 held out, and 3 windows."""

    def shard(split: str, number: int, rows: int) -> Shard:
        names = shard_files(origin, split, number)
        for name, size in zip(names, (12, 12, 8)):
            append(tmp_path / name, np.full((rows, size), number, dtype=np.uint8))
        return Shard(rows=rows, sha256=tuple(checksum(tmp_path / name) for name in names))

    append(tmp_path / HELDOUT, np.zeros((3, 2, 8), dtype=np.int32))
    manifest = CacheManifest(
        origin=origin,
        nonfinite={"a:out": 0, "b:in": 1},
        train=(shard("train", 0, 5), shard("train", 1, 3)),
        validation=(shard("validation", 0, 4),),
        heldout=HeldOutFile(windows=3, num_bytes=99, sha256=checksum(tmp_path / HELDOUT)),
    )
    write_manifest(tmp_path, manifest)
    return manifest


def test_names_of_a_shards_files(origin: Origin) -> None:
    assert shard_files(origin, "train", 12) == (
        "train.00012.rows.bin",
        "train.00012.site0.bin",
        "train.00012.site1.bin",
    )


def test_there_and_back(tmp_path: Path, manifest: CacheManifest) -> None:
    assert read_manifest(tmp_path) == manifest
    assert (manifest.rows, manifest.validation_rows, manifest.dropped) == (8, 4, 1)
    for checksums in (True, False):
        verify_files(tmp_path, manifest, checksums=checksums)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(tmp_path: Path, manifest: CacheManifest, name: str) -> None:
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: no such file, .*; harvest it again"):
        verify_files(tmp_path, manifest, checksums=False)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_longer_file(tmp_path: Path, manifest: CacheManifest, name: str) -> None:
    content = (tmp_path / name).read_bytes()
    size = len(content)
    for damaged in (content[:-1], content + b"x", b""):
        (tmp_path / name).write_bytes(damaged)
        expected = f"{name}: truncated or altered: expected {size} bytes, found {len(damaged)}; "
        with pytest.raises(DataError, match=expected):
            verify_files(tmp_path, manifest, checksums=False)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_bit(tmp_path: Path, manifest: CacheManifest, name: str, place: int) -> None:
    """Seen by the checksum alone."""
    content = bytearray((tmp_path / name).read_bytes())
    content[place] ^= 4
    (tmp_path / name).write_bytes(content)
    verify_files(tmp_path, manifest, checksums=False)
    with pytest.raises(DataError, match=f"{name}: altered: expected sha256 .*…, found") as error:
        verify_files(tmp_path, manifest, checksums=True)
    assert "\n" not in str(error.value)


def test_an_altered_manifest(tmp_path: Path, manifest: CacheManifest) -> None:
    """Another site under the vectors of this one."""
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace("a:out", "c:out"))
    with pytest.raises(DataError, match=r"manifest\.json: altered"):
        read_manifest(tmp_path)


def test_a_newer_manifest(tmp_path: Path, manifest: CacheManifest) -> None:
    value = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**value, "format": FORMAT + 1, "more": 1}))
    with pytest.raises(DataError, match=r"manifest\.json: written in format .* upgrade"):
        read_manifest(tmp_path)


def test_a_sealed_record_that_is_no_manifest(tmp_path: Path) -> None:
    write_sealed(tmp_path / MANIFEST, {"rows": 1})
    with pytest.raises(DataError, match=r"manifest\.json: unknown key rows; .*; harvest it again"):
        read_manifest(tmp_path)


def test_an_empty_shard_is_sound(tmp_path: Path, manifest: CacheManifest) -> None:
    """All of its rows may have been dropped."""
    origin = manifest.origin
    for name in shard_files(origin, "train", 2):
        append(tmp_path / name, np.zeros((0, 1)))
    sums = tuple(checksum(tmp_path / name) for name in shard_files(origin, "train", 2))
    train = (*manifest.train, Shard(rows=0, sha256=sums))
    verify_files(tmp_path, dataclasses.replace(manifest, train=train), checksums=True)
