"""The door to every source, and the fingerprint of what lies behind it."""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pellucid.core.errors import DataError
from pellucid.data import corpus
from pellucid.data.corpus import DataConfig, Document, fingerprint, open_corpus

WriteRecords = Callable[..., Path]


@pytest.fixture
def folder(write_records: WriteRecords, tmp_path: Path) -> Path:
    """Two domains of documents of 10 bytes, 40 in a, 200 in b; every second one is held out."""
    splits = ("train", "validation")
    for name, count in (("a", 40), ("b", 200)):
        rows = [{"text": f"{name}{index:09}", "split": splits[index % 2]} for index in range(count)]
        write_records(f"data/{name}.jsonl", rows)
    return tmp_path / "data"


def test_a_folder_is_its_files_in_order(folder: Path) -> None:
    documents = list(open_corpus(DataConfig(source=str(folder))))
    assert [document.domain for document in documents] == ["a"] * 40 + ["b"] * 200
    assert documents[0].text == "a000000000"


def test_a_file_alone(folder: Path) -> None:
    documents = list(open_corpus(DataConfig(source=str(folder / "a.jsonl"))))
    assert len(documents) == 40
    assert isinstance(documents[0], Document)


def test_a_bound_is_shared_by_the_files(folder: Path) -> None:
    """600 bytes over two, half of each for validation: 15 documents of every kind."""
    config = DataConfig(source=str(folder), max_bytes=600, validation_share=0.5)
    kinds = Counter((document.domain, document.split) for document in open_corpus(config))
    assert kinds == {(name, split): 15 for name in "ab" for split in ("train", "validation")}


def test_a_bound_that_one_file_cannot_fill(folder: Path) -> None:
    """1,000 bytes over two: a has only 400, so b takes 600, 300 of either split."""
    config = DataConfig(source=str(folder), max_bytes=1000, validation_share=0.5)
    documents = list(open_corpus(config))
    splits = Counter(document.split for document in documents if document.domain == "b")
    assert Counter(document.domain for document in documents)["a"] == 40
    assert splits == {"train": 30, "validation": 30}


def test_two_readings_agree(folder: Path) -> None:
    config = DataConfig(source=str(folder), max_bytes=500)
    assert list(open_corpus(config)) == list(open_corpus(config))


def test_embedded_and_hub_have_their_own_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    document = Document(id="1", text="t", domain="d", split="train")
    monkeypatch.setattr(corpus.embedded, "embedded_documents", lambda _: iter([document]))
    monkeypatch.setattr(corpus.hub, "hub_documents", lambda _: iter([document, document]))
    assert len(list(open_corpus(DataConfig()))) == 1
    assert len(list(open_corpus(DataConfig(source="hub:x")))) == 2


def test_missing_path_is_refused_at_once(tmp_path: Path) -> None:
    config = DataConfig(source=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no such file or folder"):
        open_corpus(config)
    with pytest.raises(DataError, match="no such file or folder"):
        fingerprint(config)


def test_fingerprint_is_of_content_alone(folder: Path, tmp_path: Path) -> None:
    """Neither the folder's name nor a file's time counts; ignored files do not either."""
    config = DataConfig(source=str(folder))
    before = fingerprint(config)
    os.utime(folder / "a.jsonl", (1, 1))
    (folder / "notes.md").write_text("ignored", encoding="utf-8")
    assert fingerprint(config) == before
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(DataConfig(source=str(tmp_path / "copy"))) == before


def test_fingerprint_notices_one_byte_and_one_name(folder: Path) -> None:
    config = DataConfig(source=str(folder))
    seen = {fingerprint(config)}
    data = (folder / "a.jsonl").read_bytes()
    (folder / "a.jsonl").write_bytes(data.replace(b"a000000000", b"a000000001", 1))
    seen.add(fingerprint(config))
    (folder / "a.jsonl").rename(folder / "c.jsonl")
    seen.add(fingerprint(config))
    assert len(seen) == 3


def test_fingerprint_follows_what_decides_the_reading(folder: Path) -> None:
    config = DataConfig(source=str(folder))
    readings = [
        replace(config, text_field="body"),
        replace(config, domain_field="topic"),
        replace(config, split_field="part"),
        replace(config, validation_share=0.1),
        replace(config, max_bytes=100),
    ]
    assert len({fingerprint(reading) for reading in [config, *readings]}) == 6


def test_fingerprint_ignores_tokenizer_and_masking(folder: Path) -> None:
    config = DataConfig(source=str(folder))
    other = replace(config, tokenizer="hub:x", mask_documents=True)
    assert fingerprint(other) == fingerprint(config)


def test_what_reads_as_before_keeps_its_fingerprint(folder: Path) -> None:
    """The hash of version 1: digest and name of each file, and the fields that decide the reading.

    Caches made before .txt files were held out in runs and names of splits were understood go on
    being found where neither plays a part.
    """
    reading = (
        '{"domain_field": "domain", "max_bytes": null, "split_field": "split", '
        '"text_field": "text", "validation_share": 0.04}'
    )
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()} {name}"
        for name in ("a.jsonl", "b.jsonl")
    ]
    whole = hashlib.sha256("\n".join(["1", reading, *lines]).encode()).hexdigest()
    assert fingerprint(DataConfig(source=str(folder))) == whole


@pytest.mark.parametrize("name", ["a.txt", "train.jsonl", "test/a.jsonl"])
def test_what_reads_otherwise_has_another_fingerprint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"{}")
    config = DataConfig(source=str(tmp_path))
    before = fingerprint(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "READING", "")
        assert fingerprint(config) != before


def test_a_test_file_is_not_trained_on(write_records: WriteRecords, tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_records(f"data/{name}.jsonl", [{"text": f"{name} {i}"} for i in range(50)])
    documents = list(open_corpus(DataConfig(source=str(tmp_path / "data"))))
    assert {(d.text.split()[0], d.split) for d in documents} == {
        ("train", "train"),
        ("validation", "validation"),
    }
    assert {d.domain for d in documents} == {"text"}


def test_fingerprint_of_a_hub_source(folder: Path) -> None:
    pytest.importorskip("datasets")
    (folder / "b.jsonl").unlink()
    (folder / "a.jsonl").rename(folder / "train.jsonl")
    config = DataConfig(source=f"hub:{folder}")
    assert fingerprint(config) == fingerprint(config)
    assert fingerprint(config) != fingerprint(DataConfig(source=str(folder)))
