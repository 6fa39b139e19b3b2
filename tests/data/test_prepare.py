"""From config to memory-mapped tokens: cached by content, rebuilt when damaged, never half-done."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pellucid.core.errors import ConfigError, DataError
from pellucid.data import prepare as module
from pellucid.data.document import DataConfig, Document
from pellucid.data.prepare import prepare, reopen
from pellucid.data.store import Corpus
from pellucid.data.tokenizer import TextTokenizer, load_tokenizer

WriteRecords = Callable[..., Path]


def records(domain: str, count: int = 30) -> list[dict[str, str]]:
    """Every tenth document is held out."""
    return [
        {
            "id": f"{domain}{index}",
            "text": f"{domain} document {index}, naïve.\n" * 4,
            "split": "validation" if index % 10 == 0 else "train",
        }
        for index in range(count)
    ]


@pytest.fixture
def source(write_records: WriteRecords, tmp_path: Path) -> Path:
    write_records("data/law.jsonl", records("law"))
    write_records("data/code.jsonl.zst", records("code"))
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def made(source: Path, cache: Path, vocab_size: int = 300) -> Corpus:
    return prepare(DataConfig(source=str(source)), vocab_size=vocab_size, cache=cache)


def texts(corpus: Corpus, split: str) -> dict[str, str]:
    part = corpus.train if split == "train" else corpus.validation
    edges = zip(part.start[:-1], part.start[1:])
    return {
        name: corpus.tokenizer.decode(part.tokens[first:last].tolist())
        for name, (first, last) in zip(part.ids, edges)
    }


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: DataConfig) -> None:
        raise AssertionError("the source is read again")

    monkeypatch.setattr(module, "open_corpus", refuse)


def test_every_document_is_there_whole(source: Path, cache: Path) -> None:
    corpus = made(source, cache)
    expected = {r["id"]: r for name in ("law", "code") for r in records(name)}
    for split in ("train", "validation"):
        wanted = {k: r["text"] for k, r in expected.items() if r["split"] == split}
        assert texts(corpus, split) == wanted
    assert corpus.domains == ("code", "law")


def test_bytes_are_those_of_the_text(source: Path, cache: Path) -> None:
    """'ï' counts two: the sum is that of the encoded texts, not of characters or tokens."""
    corpus = made(source, cache)
    total = sum(len(r["text"].encode()) for name in ("law", "code") for r in records(name))
    assert int(corpus.train.num_bytes.sum() + corpus.validation.num_bytes.sum()) == total


def test_domains_label_the_documents(source: Path, cache: Path) -> None:
    part = made(source, cache).train
    for name, domain in zip(part.ids, part.domain):
        assert name.startswith(("code", "law")[domain])


def test_a_second_call_reads_nothing(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(source, cache)
    forbid_reading(monkeypatch)
    second = made(source, cache)
    assert second.identity == first.identity
    assert second.tokenizer.identity == first.tokenizer.identity
    assert (second.train.tokens == first.train.tokens).all()


def test_the_cache_is_keyed_by_content_not_place(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = made(source, cache).identity
    shutil.copytree(source, tmp_path / "copy")
    forbid_reading(monkeypatch)
    assert made(tmp_path / "copy", cache).identity == identity


def test_changed_content_is_another_corpus(source: Path, cache: Path) -> None:
    before = made(source, cache)
    with (source / "law.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "new", "text": "new", "split": "train"}) + "\n")
    after = made(source, cache)
    assert after.identity != before.identity
    assert "new" in after.train.ids
    assert "new" not in before.train.ids


def test_masking_does_not_tokenise_again(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = made(source, cache).identity
    forbid_reading(monkeypatch)
    masked = DataConfig(source=str(source), mask_documents=True)
    assert prepare(masked, vocab_size=300, cache=cache).identity == identity


def test_the_runs_own_tokenizer_finds_the_same_cache(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run passes the tokenizer it saved; a config may name its folder instead."""
    first = made(source, cache)
    first.tokenizer.save(tmp_path / "run")
    forbid_reading(monkeypatch)
    config = DataConfig(source=str(source))
    again = prepare(config, vocab_size=999, cache=cache, tokenizer=first.tokenizer)
    assert again.identity == first.identity
    config = replace(config, tokenizer=str(tmp_path / "run"))
    assert prepare(config, vocab_size=999, cache=cache).identity == first.identity


def test_reopen_needs_no_source(source: Path, cache: Path) -> None:
    corpus = made(source, cache)
    shutil.rmtree(source)
    again = reopen(cache, corpus.identity, corpus.tokenizer)
    assert again is not None
    assert again.train.tokens.tolist() == corpus.train.tokens.tolist()
    assert reopen(cache, "0" * 64, corpus.tokenizer) is None


def test_another_vocabulary_is_another_corpus(source: Path, cache: Path) -> None:
    small, large = made(source, cache, 280), made(source, cache, 290)
    assert (small.tokenizer.vocab_size, large.tokenizer.vocab_size) == (280, 290)
    assert small.identity != large.identity
    assert texts(small, "validation") == texts(large, "validation")


@pytest.mark.parametrize("name", ["train.tokens", "validation.start.npy", "meta.json"])
def test_a_truncated_cache_is_rebuilt(source: Path, cache: Path, name: str) -> None:
    before = made(source, cache)
    tokens = before.train.tokens.tolist()
    (path,) = cache.glob(f"tokens-*/{name}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert made(source, cache).train.tokens.tolist() == tokens
    assert path.read_bytes() == whole


def test_a_damaged_tokenizer_is_trained_again(source: Path, cache: Path) -> None:
    identity = made(source, cache).identity
    (path,) = cache.glob("tokenizer-*/tokenizer.json")
    path.write_bytes(path.read_bytes()[:100])
    assert made(source, cache).identity == identity


def test_two_builds_are_equal_to_the_byte(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        made(source, tmp_path / name)
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert len(one) == 13  # ten tables, one meta, two tokenizer files
    assert one == two


def test_long_corpora_are_cut_into_chunks(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of about one document give the same store as one chunk of all."""
    whole = made(source, cache)
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    parts = made(source, tmp_path / "other")
    assert parts.identity == whole.identity
    assert parts.train.tokens.tolist() == whole.train.tokens.tolist()
    assert list(parts.train.ids) == list(whole.train.ids)


def test_large_vocabularies_are_stored_wide(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_NARROW", 260)
    assert made(source, cache).train.tokens.dtype == "uint32"


def test_progress_names_its_stages(source: Path, cache: Path) -> None:
    """Training reads all the bytes there are; tokenising knows their number."""
    heard: list[tuple[str, int, int]] = []
    config = DataConfig(source=str(source))
    corpus = prepare(config, vocab_size=300, cache=cache, progress=lambda *args: heard.append(args))
    total = int(corpus.train.num_bytes.sum() + corpus.validation.num_bytes.sum())
    assert heard == [("training the tokenizer", total, total), ("tokenising", total, total)]


def test_surrogates_are_counted_as_they_are_replaced(
    write_records: WriteRecords, cache: Path
) -> None:
    """'a\\ud800b' becomes a, U+FFFD (three bytes), b: five bytes, and decodes to them."""
    rows = [
        {"id": split, "text": "a\ud800b", "domain": "d", "split": split}
        for split in ("train", "validation")
    ]
    corpus = made(write_records("a.jsonl", rows), cache, 257)
    assert corpus.train.num_bytes.tolist() == [5]
    assert texts(corpus, "train") == {"train": "a\ufffdb"}


def refused(source: Path, cache: Path, match: str, tokenizer: TextTokenizer | None = None) -> None:
    """The error is one line and leaves no file and no folder behind."""
    with pytest.raises(DataError, match=match) as caught:
        prepare(DataConfig(source=str(source)), vocab_size=300, cache=cache, tokenizer=tokenizer)
    assert len(str(caught.value).splitlines()) == 1
    assert not cache.exists()


@pytest.mark.parametrize("trained", [True, False])
def test_a_bad_line_leaves_nothing_behind(
    source: Path, cache: Path, tokenizer: TextTokenizer, trained: bool
) -> None:
    """Whether the fault is met while training the tokenizer or only while tokenising."""
    with (source / "law.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"no text": 1}\n')
    given = None if trained else tokenizer
    refused(source, cache, r"law.jsonl:31: expected the field 'text'", given)


@pytest.mark.parametrize("trained", [True, False])
def test_a_domain_without_validation_text(
    write_records: WriteRecords,
    source: Path,
    cache: Path,
    tokenizer: TextTokenizer,
    trained: bool,
) -> None:
    write_records("data/poems.jsonl", [{"text": "a rose", "split": "train"}])
    given = None if trained else tokenizer
    refused(source, cache, r"the domain 'poems' has no validation text", given)


@pytest.mark.parametrize("trained", [True, False])
def test_an_empty_corpus(
    write_records: WriteRecords, cache: Path, tokenizer: TextTokenizer, trained: bool
) -> None:
    given = None if trained else tokenizer
    refused(write_records("a.jsonl", []), cache, r"the corpus is empty", given)
    only_test = [{"text": "t", "split": "test"}, {"text": " "}]
    refused(write_records("b.jsonl", only_test), cache, r"the corpus is empty", given)


def test_a_missing_path(tmp_path: Path, cache: Path) -> None:
    refused(tmp_path / "nowhere", cache, r"no such file or folder")


def test_a_missing_tokenizer(source: Path, cache: Path) -> None:
    config = DataConfig(source=str(source), tokenizer="nowhere/tokenizer.json")
    with pytest.raises(DataError, match="no such tokenizer"):
        prepare(config, vocab_size=300, cache=cache)
    assert not cache.exists()


def test_a_vocabulary_that_is_too_small(source: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="vocab_size = 100, expected at least 257"):
        made(source, cache, 100)
    assert not cache.exists()


def test_a_failed_rebuild_keeps_other_caches(source: Path, cache: Path) -> None:
    made(source, cache)
    before = sorted(cache.rglob("*"))
    (source / "law.jsonl").write_text("{bad\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"law.jsonl:1"):
        made(source, cache)
    assert sorted(cache.rglob("*")) == before


def test_a_full_disk_is_one_line(
    source: Path, cache: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.SplitWriter, "add", no_space)
    expected = r"cache: the token cache cannot be written: No space left on device; free space"
    refused(source, cache, expected, tokenizer)


def test_a_cache_that_is_a_file(source: Path, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    with pytest.raises(DataError, match=r"file: the token cache cannot be written: "):
        prepare(
            DataConfig(source=str(source)),
            vocab_size=300,
            cache=tmp_path / "file",
            tokenizer=tokenizer,
        )
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"


def test_two_processes_that_prepare_the_same_text(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is done while ours is being written: its folder stays, ours goes."""
    other = made(source, tmp_path / "other")
    write_meta = module.write_meta

    def overtaken(*args: object) -> None:
        write_meta(*args)
        for folder in (tmp_path / "other").glob("tokens-*"):
            shutil.copytree(folder, cache / folder.name)
            (cache / folder.name).joinpath("meta.json").chmod(0o444)

    monkeypatch.setattr(module, "write_meta", overtaken)
    ours = made(source, cache)
    assert ours.train.tokens.tolist() == other.train.tokens.tolist()
    (meta,) = cache.glob("tokens-*/meta.json")
    assert meta.stat().st_mode & 0o777 == 0o444
    assert list(cache.glob(".*")) == []


@pytest.mark.parametrize("place", ["fingerprint", "open_corpus"])
def test_a_source_that_fails_is_not_called_a_full_cache(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(_: DataConfig) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, place, fail)
    refused(source, cache, r"data: cannot be read: Permission denied$")


@pytest.fixture
def lower_case(tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    """The folder of a tokenizer that reads all letters as small ones."""
    tokenizer.save(tmp_path / "lower")
    file = tmp_path / "lower" / "tokenizer.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(record), encoding="utf-8")
    return tmp_path / "lower"


@pytest.fixture
def lossy(write_records: WriteRecords, lower_case: Path) -> DataConfig:
    rows = [{"text": "aBC", "split": split} for split in ("train", "validation")]
    return DataConfig(source=str(write_records("a.jsonl", rows)), tokenizer=str(lower_case))


def test_a_tokenizer_that_loses_text_is_refused(lossy: DataConfig, cache: Path) -> None:
    expected = r"a.jsonl: the tokenizer loses .* document a.jsonl:1 'BC' comes back as 'bc'; choose"
    with pytest.raises(DataError, match=expected) as caught:
        prepare(lossy, vocab_size=300, cache=cache)
    assert len(str(caught.value).splitlines()) == 1
    assert not cache.exists()


@pytest.mark.parametrize("given", [False, True], ids=["leave", "given tokenizer"])
def test_leave_to_lose_text(lossy: DataConfig, cache: Path, given: bool) -> None:
    """With it the text is tokenised; the cache made so is no excuse for going on without."""
    corpus = prepare(
        replace(lossy, lossy_tokenizer=not given),
        vocab_size=300,
        cache=cache,
        tokenizer=load_tokenizer(lossy.tokenizer) if given else None,
    )
    assert list(texts(corpus, "train").values()) == ["abc"]
    assert corpus.train.num_bytes.tolist() == [3]
    with pytest.raises(DataError, match=r"a.jsonl: the tokenizer loses text"):
        prepare(lossy, vocab_size=300, cache=cache)
    again = prepare(replace(lossy, lossy_tokenizer=True), vocab_size=300, cache=cache)
    assert again.identity == corpus.identity


def test_documents_are_streamed(
    cache: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every chunk is encoded before the document behind it is read: five of 100 characters."""
    alive: list[int] = []
    held: list[int] = []

    def stream(_: DataConfig) -> object:
        for index in range(50):
            alive.append(index)
            split = "validation" if index % 2 else "train"
            yield Document(id=str(index), text="x" * 100, domain="d", split=split)

    encode = tokenizer.encode_batch

    def encode_batch(batch: list[str]) -> list[list[int]]:
        held.append(len(alive) - sum(held))
        return encode(batch)

    monkeypatch.setattr(module, "open_corpus", stream)
    monkeypatch.setattr(module, "fingerprint", lambda _: "fixed")
    monkeypatch.setattr(module, "CHUNK_BYTES", 500)
    monkeypatch.setattr(tokenizer, "encode_batch", encode_batch)
    prepare(DataConfig(), vocab_size=300, cache=cache, tokenizer=tokenizer)
    assert held == [5] * 10
