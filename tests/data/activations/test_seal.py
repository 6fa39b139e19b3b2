"""The end of a harvest: what the manifest says is what the files hold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pellucid.core.errors import DataError
from pellucid.data.activations.config import HarvestConfig, Origin
from pellucid.data.activations.files import append
from pellucid.data.activations.heldout import held_out_table
from pellucid.data.activations.manifest import (
    HELDOUT,
    MANIFEST,
    read_manifest,
    shard_files,
    verify_files,
)
from pellucid.data.activations.record import RECORD, HarvestRecord, write_record
from pellucid.data.activations.seal import seal
from pellucid.data.activations.windows import Windows, validation_windows
from pellucid.data.disk import checksum
from pellucid.data.store import Corpus


@pytest.fixture
def heldout(corpus: Corpus, config: Callable[..., HarvestConfig]) -> Windows:
    return validation_windows(corpus, config())


def record_of(
    out: Path, config: HarvestConfig, train: tuple[int, ...], validation: tuple[int, ...]
) -> HarvestRecord:
    """A harvest that is done, its files on disk: 12 + 12 + 8 bytes a row."""
    origin = Origin(model={"hash": "h"}, tokenizer="t", corpus="c", widths=(3, 2), config=config)
    rows = {"validation": validation, "train": train}
    for split, counts in rows.items():
        for shard, count in enumerate(counts):
            for name, size in zip(shard_files(origin, split, shard), (12, 12, 8)):
                append(out / name, np.full((count, size), shard, dtype=np.uint8))
    record = HarvestRecord(
        origin=origin,
        windows={"validation": 2, "train": 9},
        rows=rows,
        nonfinite={"a:out": 0, "b:in": 3},
    )
    write_record(out, record)
    return record


def test_a_sealed_folder_is_a_cache(
    tmp_path: Path, heldout: Windows, config: Callable[..., HarvestConfig]
) -> None:
    record = record_of(tmp_path, config(), (23, 20), (12,))
    told: list[tuple[str, int, int]] = []
    manifest = seal(tmp_path, record, heldout, progress=lambda *what: told.append(what))
    assert read_manifest(tmp_path) == manifest
    verify_files(tmp_path, manifest, checksums=True)
    assert [shard.rows for shard in manifest.train] == [23, 20]
    assert manifest.train[1].sha256[2] == checksum(tmp_path / "train.00001.site1.bin")
    assert manifest.nonfinite == {"a:out": 0, "b:in": 3}
    assert told == [
        ("checksums of train", 1, 2),
        ("checksums of train", 2, 2),
        ("checksums of validation", 1, 1),
    ]
    assert (tmp_path / MANIFEST).exists()
    assert not (tmp_path / RECORD).exists()


def test_the_held_out_text_is_kept(
    tmp_path: Path, heldout: Windows, config: Callable[..., HarvestConfig]
) -> None:
    """10 bytes a token in this corpus. What an earlier attempt left is replaced."""
    (tmp_path / HELDOUT).write_bytes(b"half")
    manifest = seal(tmp_path, record_of(tmp_path, config(), (5,), (12,)), heldout, progress=None)
    table = np.fromfile(tmp_path / HELDOUT, dtype=np.int32).reshape(-1, 2, 8)
    assert np.array_equal(table, held_out_table(heldout))
    lengths = heldout.split.lengths[heldout.order]
    assert manifest.heldout.windows == -(-int((lengths + 1).sum()) // 8)
    assert manifest.heldout.num_bytes == 10 * lengths.sum()


@pytest.mark.parametrize(
    ("train", "validation", "text"), [((0, 0), (12,), "train"), ((5,), (0,), "validation")]
)
def test_nothing_but_rows_that_are_not_finite(
    tmp_path: Path,
    heldout: Windows,
    config: Callable[..., HarvestConfig],
    train: tuple[int, ...],
    validation: tuple[int, ...],
    text: str,
) -> None:
    record = record_of(tmp_path, config(), train, validation)
    with pytest.raises(DataError, match=f"every row of the {text} text holds NaN or inf"):
        seal(tmp_path, record, heldout, progress=None)
    assert not (tmp_path / MANIFEST).exists()
