"""Where a harvest starts: anew, from a record, or not at all."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from pellucid.core.errors import DataError
from pellucid.data.activations.config import HarvestConfig, Origin
from pellucid.data.activations.manifest import (
    MANIFEST,
    CacheManifest,
    HeldOutFile,
    Shard,
    write_manifest,
)
from pellucid.data.activations.record import (
    RECORD,
    HarvestRecord,
    begin,
    read_record,
    write_record,
)
from pellucid.data.activations.sealed import write_sealed


@pytest.fixture
def fresh(config: Callable[..., HarvestConfig]) -> HarvestRecord:
    origin = Origin(model={"hash": "h"}, tokenizer="t", corpus="c", widths=(3, 2), config=config())
    return HarvestRecord(
        origin=origin,
        windows={"validation": 0, "train": 0},
        rows={"validation": (0,), "train": (0,) * 5},
        nonfinite={"a:out": 0, "b:in": 0},
    )


def under_way(fresh: HarvestRecord, dropped: int = 0) -> HarvestRecord:
    return dataclasses.replace(
        fresh, windows={"validation": 2, "train": 0}, nonfinite={"a:out": 0, "b:in": dropped}
    )


def other(fresh: HarvestRecord) -> HarvestRecord:
    origin = dataclasses.replace(fresh.origin, model={"hash": "g"})
    return dataclasses.replace(fresh, origin=origin)


def finish(out: Path, fresh: HarvestRecord) -> None:
    manifest = CacheManifest(
        origin=fresh.origin,
        nonfinite=fresh.nonfinite,
        train=(Shard(rows=100, sha256=()),),
        validation=(Shard(rows=12, sha256=()),),
        heldout=HeldOutFile(windows=1, num_bytes=1, sha256=""),
    )
    write_manifest(out, manifest)


def names(out: Path) -> list[str]:
    return sorted(file.name for file in out.iterdir())


def test_a_new_folder(tmp_path: Path, fresh: HarvestRecord) -> None:
    """An empty one is new, too."""
    for out in (tmp_path / "deep" / "cache", tmp_path / "empty"):
        if out.name == "empty":
            out.mkdir()
        assert begin(out, fresh, overwrite=False) == fresh
        assert names(out) == [RECORD]
        assert read_record(out) == fresh


def test_an_interrupted_harvest_goes_on(tmp_path: Path, fresh: HarvestRecord) -> None:
    record = under_way(fresh)
    write_record(tmp_path, record)
    (tmp_path / "train.00000.rows.bin").touch()
    assert begin(tmp_path, fresh, overwrite=False) == record
    assert names(tmp_path) == [RECORD, "train.00000.rows.bin"]


def test_a_harvest_that_did_nothing_binds_nobody(tmp_path: Path, fresh: HarvestRecord) -> None:
    write_record(tmp_path, other(fresh))
    (tmp_path / "train.00000.rows.bin").write_bytes(b"x")
    assert begin(tmp_path, fresh, overwrite=False) == fresh
    assert names(tmp_path) == [RECORD]
    assert read_record(tmp_path) == fresh


def test_another_harvest_under_way(tmp_path: Path, fresh: HarvestRecord) -> None:
    write_record(tmp_path, under_way(other(fresh)))
    with pytest.raises(DataError, match=r"model\.hash: expected 'g', found 'h'; ask for the same"):
        begin(tmp_path, fresh, overwrite=False)
    assert begin(tmp_path, fresh, overwrite=True) == fresh


def test_rows_dropped_before_are_not_refused_after(tmp_path: Path, fresh: HarvestRecord) -> None:
    write_record(tmp_path, under_way(fresh, dropped=2))
    with pytest.raises(DataError, match=r"config\.nonfinite: expected 'drop', since 2 rows"):
        begin(tmp_path, fresh, overwrite=False)


def test_a_finished_cache(tmp_path: Path, fresh: HarvestRecord) -> None:
    """What the last instant of a harvest left beside the manifest does not matter."""
    finish(tmp_path, fresh)
    assert begin(tmp_path, fresh, overwrite=False) is None
    write_record(tmp_path, under_way(fresh))
    assert begin(tmp_path, fresh, overwrite=False) is None
    with pytest.raises(DataError, match=r"model\.hash: expected 'h', found 'g'"):
        begin(tmp_path, other(fresh), overwrite=False)


def test_overwriting_removes_a_cache_and_nothing_else(tmp_path: Path, fresh: HarvestRecord) -> None:
    finish(tmp_path, other(fresh))
    for name in ("train.00000.rows.bin", "heldout.bin", "notes.txt"):
        (tmp_path / name).touch()
    assert begin(tmp_path, fresh, overwrite=True) == fresh
    assert names(tmp_path) == [RECORD, "notes.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else(tmp_path: Path, fresh: HarvestRecord, overwrite: bool) -> None:
    (tmp_path / "train.00000.rows.bin").touch()
    with pytest.raises(DataError, match="exists and holds no activations; choose another folder"):
        begin(tmp_path, fresh, overwrite=overwrite)
    file = tmp_path / "train.00000.rows.bin"
    with pytest.raises(DataError, match="exists and holds no activations"):
        begin(file, fresh, overwrite=overwrite)
    assert names(tmp_path) == ["train.00000.rows.bin"]


def test_a_damaged_record(tmp_path: Path, fresh: HarvestRecord) -> None:
    """It cannot be gone on from, but overwritten."""
    write_record(tmp_path, under_way(fresh))
    text = (tmp_path / RECORD).read_text()
    (tmp_path / RECORD).write_text(text[:-20])
    with pytest.raises(DataError, match=r"harvest\.json: .*overwrite"):
        begin(tmp_path, fresh, overwrite=False)
    write_sealed(tmp_path / RECORD, {"windows": 1})
    with pytest.raises(DataError, match=r"harvest\.json: .*; harvest it again with overwrite"):
        begin(tmp_path, fresh, overwrite=False)
    assert begin(tmp_path, fresh, overwrite=True) == fresh


def test_the_old_manifest_goes_before_its_files(
    tmp_path: Path, fresh: HarvestRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while files are removed, what is left is a harvest that did nothing."""
    finish(tmp_path, fresh)
    (tmp_path / "train.00000.rows.bin").touch()
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name != MANIFEST:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path, fresh, overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == [RECORD, "train.00000.rows.bin"]
    assert begin(tmp_path, other(fresh), overwrite=False) == other(fresh)
