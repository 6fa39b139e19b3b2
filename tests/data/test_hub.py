"""``hub:`` sources through the real datasets library, on dataset folders of this machine."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pellucid.core.errors import DataError, MissingExtra
from pellucid.data.document import DataConfig, Document
from pellucid.data.hub import hub_documents, hub_fingerprint
from pellucid.data.text import unit_hash

WriteRecords = Callable[..., Path]

pytestmark = pytest.mark.skipif(
    not any((Path(entry) / "datasets").is_dir() for entry in sys.path), reason="needs datasets"
)


def read(source: str | Path, config: DataConfig | None = None) -> list[Document]:
    fields = config or DataConfig()
    return list(
        hub_documents(
            DataConfig(
                source=f"hub:{source}",
                text_field=fields.text_field,
                validation_share=fields.validation_share,
                max_bytes=fields.max_bytes,
            )
        )
    )


def test_splits_are_used_and_test_is_skipped(write_records: WriteRecords, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_records(f"ds/{split}.jsonl", [{"id": split, "text": f"in {split}", "domain": "d"}])
    assert read(tmp_path / "ds") == [
        Document(id="train", text="in train", domain="d", split="train"),
        Document(id="validation", text="in validation", domain="d", split="validation"),
    ]


def test_one_split_is_divided_by_hash(write_records: WriteRecords, tmp_path: Path) -> None:
    """Without a validation split each row goes by the hash of its place."""
    write_records("ds/train.jsonl", [{"text": f"row {index}"} for index in range(60)])
    documents = read(tmp_path / "ds", DataConfig(validation_share=0.3))
    assert [document.id for document in documents] == [f"train:{n}" for n in range(1, 61)]
    held_out = {document.id for document in documents if document.split == "validation"}
    assert held_out == {d.id for d in documents if unit_hash(d.id) < 0.3}
    assert 0 < len(held_out) < 60


def test_domain_defaults_to_the_name(write_records: WriteRecords, tmp_path: Path) -> None:
    write_records("poems/train.jsonl", [{"text": "t"}])
    assert read(tmp_path / "poems")[0].domain == "poems"


def test_parquet_through_the_library(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "ds").mkdir()
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "ds" / "train.parquet")
    assert [document.text for document in read(tmp_path / "ds")] == ["a", "b"]


@pytest.fixture
def two_configs(write_records: WriteRecords, tmp_path: Path) -> Path:
    for name in ("en", "de"):
        write_records(f"ds/{name}/train.jsonl", [{"text": f"in {name}"}])
    entries = "".join(
        f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("en", "de")
    )
    (tmp_path / "ds" / "README.md").write_text(f"---\nconfigs:\n{entries}---\n", encoding="utf-8")
    return tmp_path / "ds"


def test_a_config_is_chosen_after_the_colon(two_configs: Path) -> None:
    documents = read(f"{two_configs}:de")
    assert [(document.text, document.domain) for document in documents] == [("in de", "de")]


def test_an_unnamed_config_lists_them(two_configs: Path) -> None:
    with pytest.raises(DataError, match=r"Config name is missing.*'en', 'de'") as caught:
        read(two_configs)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_config(two_configs: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be opened: BuilderConfig 'fr' not found"):
        read(f"{two_configs}:fr")


def test_a_bound_reserves_room_for_validation(write_records: WriteRecords, tmp_path: Path) -> None:
    """Rows of 10 bytes, bound 200, share .1: 2 validation rows and 18 to train."""
    for split in ("train", "validation"):
        write_records(f"ds/{split}.jsonl", [{"text": "x" * 10} for _ in range(50)])
    documents = read(tmp_path / "ds", DataConfig(max_bytes=200, validation_share=0.1))
    splits = [document.split for document in documents]
    assert (splits.count("train"), splits.count("validation")) == (18, 2)


def test_a_bound_without_a_validation_split(write_records: WriteRecords, tmp_path: Path) -> None:
    """Half of 200 bytes each: ten rows of either kind, whose places are drawn by hash."""
    write_records("ds/train.jsonl", [{"text": "x" * 10} for _ in range(90)])
    documents = read(tmp_path / "ds", DataConfig(max_bytes=200, validation_share=0.5))
    splits = [document.split for document in documents]
    assert (splits.count("train"), splits.count("validation")) == (10, 10)


def test_the_stream_stops_where_the_bound_is_met(
    write_records: WriteRecords, tmp_path: Path
) -> None:
    """A row without text stands behind the bound of each split and is never converted."""
    for split in ("train", "validation"):
        write_records(f"ds/{split}.jsonl", [{"text": "x" * 10}] * 5 + [{"text": None}])
    assert len(read(tmp_path / "ds", DataConfig(max_bytes=80, validation_share=0.5))) == 8


@pytest.mark.parametrize("source", ["nowhere", "empty"])
def test_nothing_to_open(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"hub:.*{source}: cannot be opened: "):
        read(tmp_path / source)


def test_no_name_at_all() -> None:
    with pytest.raises(DataError, match=r"'hub:': expected hub:NAME or hub:NAME:CONFIG"):
        read("")


def test_a_row_without_text_is_named(write_records: WriteRecords, tmp_path: Path) -> None:
    write_records("ds/train.jsonl", [{"body": "b"}])
    with pytest.raises(DataError, match=r"ds: train:1: expected the field 'text', found .* body"):
        read(tmp_path / "ds")


def test_a_broken_file_inside_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "train.jsonl").write_text('{"text": "a"}\n{bad\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"ds: train cannot be read: ") as caught:
        read(tmp_path / "ds")
    assert len(str(caught.value).splitlines()) == 1


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"the source hub:x needs the package datasets"):
        read("x")


def test_fingerprint_follows_content_not_time(write_records: WriteRecords, tmp_path: Path) -> None:
    path = write_records("ds/train.jsonl", [{"text": "a"}])
    source = f"hub:{tmp_path / 'ds'}"
    before = hub_fingerprint(source)
    os.utime(path, (1, 1))
    assert hub_fingerprint(source) == before
    write_records("ds/train.jsonl", [{"text": "b"}])
    assert hub_fingerprint(source) != before
    shutil.rmtree(tmp_path / "ds")
