"""The token store: what is written is read back, and nothing half-written is believed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.document import Document
from pellucid.data.store import (
    META,
    Corpus,
    SplitWriter,
    open_store,
    replacing,
    write_meta,
)
from pellucid.data.tokenizer import TextTokenizer

FILES = ["tokens", "start.npy", "num_bytes.npy", "domain.npy", "ids.json"]


def write_store(folder: Path, *, wide: bool = False, identity: str = "id") -> None:
    """Two training documents and one held out, of the domains law and code, in that order."""
    domains: dict[str, int] = {}
    law = Document(id="a", text="né", domain="law", split="train")
    code = Document(id="b", text="x=1", domain="code", split="train")
    held_out = Document(id="c", text="y", domain="law", split="validation")
    with (
        SplitWriter(folder, "train", domains, wide) as train,
        SplitWriter(folder, "validation", domains, wide) as validation,
    ):
        train.add(law, [5, 6])
        validation.add(held_out, [9])
        train.add(code, [7, 8, 65_535])
        train.finish()
        validation.finish()
    write_meta(folder, identity, list(domains), wide)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    write_store(folder)
    return folder


def opened(store: Path, tokenizer: TextTokenizer) -> Corpus:
    corpus = open_store(store, "id", tokenizer)
    assert corpus is not None
    return corpus


def test_what_is_written_is_read_back(store: Path, tokenizer: TextTokenizer) -> None:
    """Domains stand in the alphabet: code is 0, law 1. 'né' is three bytes."""
    corpus = opened(store, tokenizer)
    assert corpus.domains == ("code", "law")
    assert corpus.identity == "id"
    train = corpus.train
    assert train.tokens.tolist() == [5, 6, 7, 8, 65_535]
    assert train.start.tolist() == [0, 2, 5]
    assert train.lengths.tolist() == [2, 3]
    assert train.num_bytes.tolist() == [3, 3]
    assert train.domain.tolist() == [1, 0]
    assert list(train.ids) == ["a", "b"]
    assert train.num_documents == 2
    assert train.end_of_text == tokenizer.end_of_text
    assert corpus.validation.tokens.tolist() == [9]
    assert corpus.validation.domain.tolist() == [1]


def test_tokens_stay_on_the_disk(store: Path, tokenizer: TextTokenizer) -> None:
    tokens = opened(store, tokenizer).train.tokens
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable


def test_ids_above_sixteen_bits_need_the_wide_type(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    write_store(tmp_path, wide=True)
    assert opened(tmp_path, tokenizer).train.tokens.dtype == np.uint32
    assert (tmp_path / "train.tokens").stat().st_size == 5 * 4


def test_a_narrow_store_has_two_bytes_a_token(store: Path, tokenizer: TextTokenizer) -> None:
    assert opened(store, tokenizer).train.tokens.dtype == np.uint16
    assert (store / "train.tokens").stat().st_size == 5 * 2


def test_a_document_without_tokens_is_left_out(tmp_path: Path) -> None:
    with SplitWriter(tmp_path, "train", {}, wide=False) as writer:
        writer.add(Document(id="a", text="?", domain="d", split="train"), [])
        writer.add(Document(id="b", text="x", domain="d", split="train"), [1])
        writer.finish()
        assert writer.documents == {"d": 1}
    assert np.load(tmp_path / "train.start.npy").tolist() == [0, 1]


@given(st.lists(st.lists(st.integers(0, 65_535), min_size=1, max_size=9), min_size=1, max_size=9))
def test_any_documents_survive(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer, rows: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    domains: dict[str, int] = {}
    for split in ("train", "validation"):
        with SplitWriter(folder, split, domains, wide=False) as writer:
            for index, row in enumerate(rows):
                document = Document(id=f"é{index}", text="t", domain="d", split="train")
                writer.add(document, row)
            writer.finish()
    write_meta(folder, "id", list(domains), wide=False)
    split = opened(folder, tokenizer).train
    edges = list(zip(split.start[:-1], split.start[1:]))
    assert [split.tokens[first:last].tolist() for first, last in edges] == rows
    assert list(split.ids) == [f"é{index}" for index in range(len(rows))]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("kind", FILES)
def test_a_truncated_file_is_noticed(
    store: Path, tokenizer: TextTokenizer, split: str, kind: str
) -> None:
    path = store / f"{split}.{kind}"
    path.write_bytes(path.read_bytes()[:-1])
    assert open_store(store, "id", tokenizer) is None


@pytest.mark.parametrize("kind", FILES)
def test_a_missing_file_is_noticed(store: Path, tokenizer: TextTokenizer, kind: str) -> None:
    (store / f"train.{kind}").unlink()
    assert open_store(store, "id", tokenizer) is None


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null"])
def test_a_damaged_meta_is_noticed(store: Path, tokenizer: TextTokenizer, content: str) -> None:
    (store / META).write_text(content, encoding="utf-8")
    assert open_store(store, "id", tokenizer) is None


def test_another_identity_or_format_is_no_match(store: Path, tokenizer: TextTokenizer) -> None:
    assert open_store(store, "other", tokenizer) is None
    meta = json.loads((store / META).read_text(encoding="utf-8"))
    (store / META).write_text(json.dumps({**meta, "format": 99}), encoding="utf-8")
    assert open_store(store, "id", tokenizer) is None


def test_no_folder_is_no_store(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    assert open_store(tmp_path / "nowhere", "id", tokenizer) is None


def missing() -> bool:
    """What ``replacing`` is told where no other process is at work."""
    return False


def test_replacing_makes_the_folder_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "store"
    with replacing(folder, missing) as aside:
        (aside / "file").write_text("new", encoding="utf-8")
        assert not folder.exists()
    assert (folder / "file").read_text(encoding="utf-8") == "new"
    assert list(folder.parent.iterdir()) == [folder]


def test_replacing_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "old").touch()
    with replacing(folder, missing) as aside:
        (aside / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failed_filling_leaves_all_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "old").touch()

    def fill() -> None:
        with replacing(folder, missing) as aside:
            (aside / "half").touch()
            raise error

    with pytest.raises(error):
        fill()
    assert [path.name for path in tmp_path.rglob("*")] == ["store", "old"]


def test_a_failed_filling_removes_the_cache_it_created(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), replacing(tmp_path / "cache" / "store", missing):
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """The child dies inside; its number is free again once it is waited for."""
    code = (
        "import os, pathlib, sys\n"
        "from pellucid.data.store import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1]), lambda: False) as aside:\n"
        "    (aside / 'half').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    folder = tmp_path / "store"
    child = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, timeout=60)
    assert child.returncode == -9
    assert [path.name.startswith(".store.") for path in tmp_path.iterdir()] == [True]
    with replacing(folder, missing) as aside:
        (aside / "whole").touch()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_running_process_keeps_its_own(tmp_path: Path) -> None:
    """Process 1 runs on every machine, so its folder stays; a leftover of our own number goes."""
    theirs, ours = tmp_path / ".store.1", tmp_path / f".store.{os.getpid()}"
    theirs.mkdir()
    ours.mkdir()
    with replacing(tmp_path / "store", missing):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".store.1", "store"]


def test_what_another_process_finished_meanwhile_is_kept(tmp_path: Path) -> None:
    """Both are as good; taking the other's away would pull it from under a running process."""
    folder = tmp_path / "store"
    with replacing(folder, lambda: (folder / "theirs").exists()) as aside:
        (aside / "ours").touch()
        folder.mkdir()
        (folder / "theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["store", "theirs"]


def test_a_folder_that_appears_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the rename: the name is taken, and the one there is whole."""
    folder = tmp_path / "store"
    rename = Path.rename

    def overtaken(aside: Path, target: Path) -> Path:
        target.mkdir()
        (target / "theirs").touch()
        return rename(aside, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with replacing(folder, lambda: (folder / "theirs").exists()) as aside:
        (aside / "ours").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["store", "theirs"]


def test_a_name_that_stays_taken_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(aside: Path, target: Path) -> Path:
        raise OSError("taken")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="taken"), replacing(tmp_path / "store", missing) as aside:
        (aside / "ours").touch()
    assert list(tmp_path.iterdir()) == []
