"""Local files as documents: every format, and every fault in one line that names its place."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import zstandard

from pellucid.core.errors import DataError, MissingExtra
from pellucid.data.document import DataConfig, Document
from pellucid.data.files import (
    BLOCK_BYTES,
    in_held_out_run,
    list_files,
    list_places,
    read_documents,
)

WriteRecords = Callable[..., Path]


def read(
    file: Path, source: Path | None = None, config: DataConfig | None = None
) -> list[Document]:
    source = source or file
    files = [file] if source == file else list_files(source)
    places = list_places(source, files)
    return list(read_documents(file, source, config or DataConfig(), places[file]))


def write_parquet(path: Path, columns: Mapping[str, Sequence[object]]) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(dict(columns)), path)
    return path


RECORDS = [
    {"id": "1", "text": "ein\nzwei", "domain": "de", "split": "train"},
    {"id": "2", "text": "naïve 😀", "domain": "en", "split": "validation"},
    {"id": "3", "text": "hidden", "domain": "en", "split": "test"},
]
DOCUMENTS = [
    Document(id="1", text="ein\nzwei", domain="de", split="train"),
    Document(id="2", text="naïve 😀", domain="en", split="validation"),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_jsonl_plain_and_compressed(write_records: WriteRecords, name: str) -> None:
    assert read(write_records(name, RECORDS)) == DOCUMENTS


def test_parquet(tmp_path: Path) -> None:
    columns = {key: [record[key] for record in RECORDS] for key in RECORDS[0]}
    assert read(write_parquet(tmp_path / "a.parquet", columns)) == DOCUMENTS


def test_parquet_reads_only_the_columns_it_needs(tmp_path: Path) -> None:
    """A column of nested values would not convert to a document; it is never looked at."""
    path = write_parquet(tmp_path / "a.parquet", {"text": ["t"], "other": [[{"x": 1}]]})
    assert [document.text for document in read(path)] == ["t"]


def test_text_file_in_pieces(tmp_path: Path) -> None:
    """1,000 lines of 16 bytes are two pieces of 8,000 characters."""
    path = tmp_path / "book.txt"
    path.write_text("fifteen letters\n" * 1000, encoding="utf-8")
    documents = read(path)
    assert [document.id for document in documents] == ["book.txt#1", "book.txt#2"]
    assert {document.domain for document in documents} == {"book"}
    assert "".join(document.text for document in documents) == path.read_text(encoding="utf-8")


def test_pieces_are_held_out_in_runs(tmp_path: Path) -> None:
    """800 pieces of 8,000 letters at a share of .04: runs of int(800 · .04 / 2) = 16, 50 of them.

    Two are held out, 25 apart, since 50 · .04 = 2.
    """
    path = tmp_path / "book.txt"
    path.write_text(("x" * 7999 + "\n") * 800, encoding="utf-8")
    splits = [document.split for document in read(path)]
    runs = [set(splits[start : start + 16]) for start in range(0, 800, 16)]
    assert all(len(run) == 1 for run in runs)
    first, second = [index for index, run in enumerate(runs) if run == {"validation"}]
    assert second - first == 25


@pytest.mark.parametrize("pieces", [1, 24, 25, 139, 799, 800, 5000])
@pytest.mark.parametrize("share", [0.04, 0.3, 0.9])
def test_runs_of_a_text_file_meet_their_share(pieces: int, share: float) -> None:
    """Of n runs ⌊n · share + φ⌋ are held out, and pieces miss that by one run at the most."""
    for name in ("a.txt", "b.txt", "c/d.txt"):
        held_out = sum(
            in_held_out_run(name, number, 8000 * pieces, share) for number in range(1, pieces + 1)
        )
        assert abs(held_out - pieces * share) < 2 * min(16, max(1, int(pieces * share / 2)))
        # A file of 1 / share pieces has held-out text, even if each letter takes two bytes.
        if pieces * share >= 2:
            halved = range(1, pieces // 2 + 1)
            assert any(in_held_out_run(name, number, 8000 * pieces, share) for number in halved)


def test_files_start_their_runs_at_different_places() -> None:
    """The first held-out run of 40 files of 25 runs: at the same place in all is no chance."""
    found = {
        next(n for n in range(1, 26) if in_held_out_run(f"{name}.txt", n, 25 * 8000, 0.04))
        for name in range(40)
    }
    assert len(found) > 10


def test_the_split_of_a_file_stands_in_for_the_records_own(
    write_records: WriteRecords, tmp_path: Path
) -> None:
    rows = [{"text": "one"}, {"text": "two", "split": "train"}, {"text": "3", "domain": "law"}]
    files = [write_records(f"data/{name}.jsonl", rows) for name in ("train", "dev", "test")]
    found = [[(d.text, d.split, d.domain) for d in read(file, tmp_path / "data")] for file in files]
    assert found == [
        [("one", "train", "text"), ("two", "train", "text"), ("3", "train", "law")],
        [("one", "validation", "text"), ("two", "train", "text"), ("3", "validation", "law")],
        [("two", "train", "text")],
    ]


def test_a_text_file_named_for_a_split_is_not_divided(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n" * 40_000, encoding="utf-8")
    splits = [{d.split for d in read(file, tmp_path)} for file in list_files(tmp_path)]
    assert splits == [set(), {"train"}, {"validation"}]


def test_text_keeps_its_bytes(tmp_path: Path) -> None:
    """Line ends are data: no newline is translated."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\rthree\n\n\xc3\xa9")
    assert "".join(document.text for document in read(path)).encode() == path.read_bytes()


def test_blank_lines_between_records_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "one"}\n   \n{"text": "two"}', encoding="utf-8")
    assert [document.id for document in read(path)] == ["a.jsonl:2", "a.jsonl:4"]


def test_records_across_blocks(write_records: WriteRecords) -> None:
    """Each record is longer than half a block, so lines begin and end inside blocks."""
    texts = [letter * (BLOCK_BYTES * 2 // 3) for letter in "abcde"]
    path = write_records("a.jsonl", [{"text": text} for text in texts])
    assert [document.text for document in read(path)] == texts


def test_several_zstd_frames_are_one_file(tmp_path: Path) -> None:
    """``cat a.zst b.zst`` is a valid file; so is a frame of another compressor's block size."""
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in ("one", "two", "three")]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(map(zstandard.compress, lines)))
    assert [document.text for document in read(path)] == ["one", "two", "three"]


def test_a_file_is_read_lazily(write_records: WriteRecords) -> None:
    """The fault in the last line is not met before the documents ahead of it are out."""
    path = write_records("a.jsonl", [{"text": "one"}, {"text": "two"}, {"none": 1}])
    documents = read_documents(path, path, DataConfig(), list_places(path, [path])[path])
    assert [next(documents).text, next(documents).text] == ["one", "two"]
    with pytest.raises(DataError, match=r"a.jsonl:3: expected the field 'text'"):
        next(documents)


def test_domain_is_the_stem_or_the_folder(write_records: WriteRecords, tmp_path: Path) -> None:
    """A file directly under the source is its own domain, one in a folder takes the folder's."""
    top = write_records("news.jsonl.zst", [{"text": "t"}])
    nested = write_records("law/2020/a.jsonl", [{"text": "t"}])
    named = write_records("law/b.jsonl", [{"text": "t", "domain": "court"}])
    domains = [read(file, tmp_path)[0].domain for file in (top, nested, named)]
    assert domains == ["news", "law", "court"]


def test_default_ids_do_not_depend_on_the_folder(write_records: WriteRecords) -> None:
    """The same data copied elsewhere keeps its ids, and with them its split."""
    here = write_records("one/x/a.jsonl", [{"text": "t"}])
    there = write_records("two/x/a.jsonl", [{"text": "t"}])
    assert read(here, here.parents[1])[0].id == read(there, there.parents[1])[0].id == "x/a.jsonl:1"


def test_listing_takes_known_suffixes_in_order(tmp_path: Path) -> None:
    names = ["b.txt", "a.jsonl", "sub/c.parquet", "sub/a.jsonl.zst"]
    others = ["LICENSES.txt.zst", "SOURCES.md", "a.json", ".hidden.jsonl", ".git/a.jsonl"]
    for name in names + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = [file.relative_to(tmp_path).as_posix() for file in list_files(tmp_path)]
    assert listed == ["a.jsonl", "b.txt", "sub/a.jsonl.zst", "sub/c.parquet"]


def test_a_hidden_folder_may_be_the_source_itself(tmp_path: Path) -> None:
    source = tmp_path / ".data"
    source.mkdir()
    (source / "a.txt").touch()
    assert list_files(source) == [source / "a.txt"]


def test_one_file_is_listed_alone(write_records: WriteRecords) -> None:
    path = write_records("a.jsonl", [])
    write_records("b.jsonl", [])
    assert list_files(path) == [path]


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; give a path"):
        list_files(tmp_path / "nowhere")


def test_folder_without_readable_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=r"expected files ending in .jsonl, .* found none"):
        list_files(tmp_path)


def test_file_of_an_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=r"a.csv: expected a file ending in .jsonl, .jsonl.zst"):
        list_files(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_not_utf8(tmp_path: Path, name: str) -> None:
    """'naïve' in Latin-1 has the byte 0xef as the third of its second line."""
    (tmp_path / name).write_bytes(b"{}\nna\xefve\n" if name == "a.txt" else b"\nna\xefve\n")
    line = 2
    with pytest.raises(
        DataError, match=rf"{name}:{line}: expected UTF-8, found the byte 0xef at column 3; convert"
    ):
        read(tmp_path / name)


def test_not_zstd(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(DataError, match=r"a.jsonl.zst: expected zstd data, found"):
        read(path)


@pytest.mark.parametrize("kept", [0, 1, 20, -1])
def test_truncated_zstd(write_records: WriteRecords, kept: int) -> None:
    """Cut anywhere, in the frame's header too, the file is refused, not read as a shorter one."""
    path = write_records("a.jsonl.zst", [{"text": f"text {index}"} for index in range(100)])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"a.jsonl.zst: the zstd data ends early; .* truncated"):
        read(path)


def test_flipped_bit_in_zstd(write_records: WriteRecords) -> None:
    path = write_records("a.jsonl.zst", [{"text": f"text {index}"} for index in range(100)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a.jsonl.zst"):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", r"a.jsonl:2: expected one JSON object a line, found Expecting property name"),
        ("[1, 2]", r"a.jsonl:2: expected one JSON object a line, found '\[1, 2\]'"),
        ('"text"', r"a.jsonl:2: expected one JSON object a line"),
        ("[" * 100_000, r"a.jsonl:2: expected one JSON object a line, found"),
        ('{"body": "b"}', r"a.jsonl:2: expected the field 'text', found the fields body"),
        ('{"text": 1}', r"a.jsonl:2: text: expected a string, found '1'"),
        ('{"text": "t", "split": "eval"}', r"a.jsonl:2: split: found 'eval'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1


def test_not_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all, but long enough")
    with pytest.raises(DataError, match=r"a.parquet: expected parquet, found") as caught:
        read(tmp_path / "a.parquet")
    assert len(str(caught.value).splitlines()) == 1


def test_parquet_without_the_text_column(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"body": ["b"], "id": ["1"]})
    with pytest.raises(
        DataError, match=r"a.parquet: expected the column 'text', found the columns"
    ):
        read(path)
    assert read(path, config=DataConfig(text_field="body"))[0].text == "b"


def test_parquet_null_text_is_named_by_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", None]})
    with pytest.raises(DataError, match=r"a.parquet:2: text: expected a string, found null"):
        read(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(MissingExtra, match=r"pip install 'pellucid\[data\]'"):
        read(tmp_path / "a.parquet")


def test_a_file_that_vanishes(write_records: WriteRecords) -> None:
    path = write_records("a.jsonl", [{"text": "t"}])
    path.unlink()
    with pytest.raises(DataError, match=r"a.jsonl: cannot be read: No such file"):
        read(path)


def test_a_source_that_cannot_be_looked_at(tmp_path: Path) -> None:
    """No file system takes a name of 300 letters."""
    with pytest.raises(DataError, match=r"x: cannot be read: File name too long") as caught:
        list_files(tmp_path / ("x" * 300))
    assert len(str(caught.value).splitlines()) == 1
