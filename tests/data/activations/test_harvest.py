"""Harvests from end to end: every row once, and the same bytes however often one is stopped."""

import dataclasses
import errno
import importlib
import os
import resource
import tracemalloc
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.core.errors import AddressError, DataError
from pellucid.core.host import Edit, Host, Trace
from pellucid.core.unit import Site
from pellucid.data.activations import ActivationCache, HarvestConfig, harvest, writer
from pellucid.data.activations.record import RECORD, read_record
from pellucid.data.activations.windows import train_windows, validation_windows
from pellucid.data.store import Corpus
from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer
from pellucid.pools.dense import DenseConfig

Config = Callable[..., HarvestConfig]
MakeHost = Callable[..., Host]
A, B = Site(module="a", port="out"), Site(module="b", port="in")
MODEL = {"name": "m", "hash": "h"}
MODULE = importlib.import_module("pellucid.data.activations.harvest")


def content(out: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {file.name: file.read_bytes() for file in out.iterdir()}


@pytest.fixture
def whole(tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost) -> dict[str, bytes]:
    """The files of an uninterrupted harvest."""
    harvest(token_host(), corpus, config(), tmp_path / "whole", model=MODEL)
    return content(tmp_path / "whole")


@pytest.mark.parametrize("first", ["drop", "keep"])
def test_every_row_once(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost, first: str
) -> None:
    """All rows of the training text, none of them an end of text, padding or a first position.

    20 documents of 151 tokens are 171 positions, 22 windows of 8.
    """
    probe = train_windows(corpus, config(first=first))
    asked = config(first=first, tokens=probe.rows)
    rows = harvest(token_host(), corpus, asked, tmp_path / "x", model=MODEL).batch(0, probe.rows)
    assert len(set(rows.token.tolist())) == probe.rows
    assert rows.token.min() >= 1
    assert rows.token.max() <= 151
    if first == "keep":
        assert probe.rows == 151
        assert 0 in rows.position.tolist()
    else:
        assert 151 - 22 <= probe.rows < 151
        assert rows.position.min() == 1
    assert rows.position.max() == 7


def test_the_rows_are_the_models(tmp_path: Path, corpus: Corpus, config: Config) -> None:
    """Two sites of a transformer, kept as float32 and as bfloat16, against runs of our own."""
    model = Transformer(
        TransformerConfig(
            width=8,
            layers=2,
            heads=2,
            kv_heads=1,
            head_dim=4,
            vocab_size=10_050,
            context=8,
            ffn=(DenseConfig(hidden=6),),
        )
    )
    sites = Site(module="blocks.0.ffn", port="out"), Site(module="blocks.1", port="out")
    for dtype in ("float32", "bfloat16"):
        asked = config(sites=tuple(map(str, sites)), dtype=dtype, batch=3)
        cache = harvest(model, corpus, asked, tmp_path / dtype, model=MODEL)
        assert cache.widths == dict.fromkeys(sites, 8)
        rows = cache.batch(0, 100)
        found = {int(token): i for i, token in enumerate(rows.token)}
        windows = train_windows(corpus, asked)
        for first in range(0, windows.windows_for(100), 3):
            batch = windows.read(first, min(first + 3, windows.windows_for(100)))
            with torch.no_grad():
                kept = model.run(batch.tokens, keep=sites).kept
            places = [(int(batch.tokens[i]), i) for i in map(tuple, batch.row.nonzero().tolist())]
            for token, place in places:
                if token in found:
                    for site in sites:
                        exact = kept[site][place].to(getattr(torch, dtype)).float()
                        assert torch.equal(rows.x[site][found[token]], exact)
        held = torch.cat([part.token for part in cache.validation(5)])
        assert len(held) == 12


def test_documents_are_masked_by_nothing(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost
) -> None:
    """The host sees whole windows, documents behind one another, and no ragged sequence."""
    host = token_host()
    seen: list[tuple[int, ...]] = []
    run = host.run

    def watched(
        tokens: Tensor, *, edits: Sequence[Edit] = (), keep: Collection[Site] = ()
    ) -> Trace:
        seen.append(tuple(tokens.shape))
        return run(tokens, edits=edits, keep=keep)

    host.run = watched  # pyright: ignore[reportAttributeAccessIssue]
    harvest(host, corpus, config(), tmp_path / "x", model=MODEL)
    assert {shape[1] for shape in seen} == {8}
    assert max(shape[0] for shape in seen) == 2


def test_stopped_at_any_pass(
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: MakeHost,
    killed: type[BaseException],
    whole: dict[str, bytes],
) -> None:
    """Gone on with, it ends with the same bytes, and does not begin anew where it need not."""
    straight = token_host()
    harvest(straight, corpus, config(), tmp_path / "again", model=MODEL)
    assert content(tmp_path / "again") == whole
    spared: list[int] = []
    for die_at in range(straight.passes):
        out = tmp_path / f"stopped-{die_at}"
        with pytest.raises(killed):
            harvest(token_host(die_at=die_at), corpus, config(), out, model=MODEL)
        host = token_host()
        cache = harvest(host, corpus, config(), out, model=MODEL)
        assert content(out) == whole
        assert cache.rows == 100
        spared.append(straight.passes - host.passes)
    assert spared == sorted(spared)
    assert spared[0] == 0
    assert spared[-1] > straight.passes // 2


def test_stopped_again_and_again(
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: MakeHost,
    killed: type[BaseException],
    whole: dict[str, bytes],
) -> None:
    """A flush of 23 rows takes two passes of up to 14: killed in its third or later, it ends."""
    out, attempts = tmp_path / "x", 0
    while not (out / "manifest.json").exists():
        attempts += 1
        assert attempts < 20
        try:
            harvest(token_host(die_at=3), corpus, config(), out, model=MODEL)
        except killed:
            continue
    assert attempts > 2
    assert content(out) == whole


@pytest.mark.parametrize("name", ["write_record", "append", "sync"])
@pytest.mark.parametrize("count", range(0, 40, 3))
def test_stopped_between_the_files_and_the_record(
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: MakeHost,
    killed: type[BaseException],
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    count: int,
) -> None:
    """At the count-th record, append (after half of its bytes) or sync."""
    module = MODULE if name == "write_record" else writer
    real, calls = getattr(module, name), [0]

    def dying(path: Path, *rest: object) -> None:
        calls[0] += 1
        if calls[0] <= count:
            real(path, *rest)
            return
        if name == "append":
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(rest[0]).tobytes()[:5])
        raise killed

    out = tmp_path / "x"
    monkeypatch.setattr(module, name, dying)
    try:
        harvest(token_host(), corpus, config(), out, model=MODEL)
    except killed:
        assert not (out / "manifest.json").exists()
    else:
        assert calls[0] <= count
    monkeypatch.setattr(module, name, real)
    harvest(token_host(), corpus, config(), out, model=MODEL)
    assert content(out) == whole


def test_stopped_while_sealing(
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: MakeHost,
    killed: type[BaseException],
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All rows are there: nothing is run again."""
    from pellucid.data.activations import seal

    def dying(*_: object) -> None:
        raise killed

    monkeypatch.setattr(seal, "write_manifest", dying)
    with pytest.raises(killed):
        harvest(token_host(), corpus, config(), tmp_path / "x", model=MODEL)
    monkeypatch.undo()
    host = token_host()
    harvest(host, corpus, config(), tmp_path / "x", model=MODEL)
    assert host.passes == 0
    assert content(tmp_path / "x") == whole


def test_rows_are_on_disk_before_the_record_says_so(
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: MakeHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every file appended to since the last record is synced before the next."""
    dirty: set[Path] = set()
    records: list[int] = []
    append, sync, write = writer.append, writer.sync, MODULE.write_record
    monkeypatch.setattr(writer, "append", lambda p, rows: (append(p, rows), dirty.add(p)))
    monkeypatch.setattr(writer, "sync", lambda p: (sync(p), dirty.discard(p)))

    def watched(out: Path, record: object) -> None:
        records.append(len(dirty))
        write(out, record)

    monkeypatch.setattr(MODULE, "write_record", watched)
    harvest(token_host(), corpus, config(), tmp_path / "x", model=MODEL)
    assert len(records) >= 5
    assert set(records) == {0}


@pytest.mark.parametrize("count", [0, 7, 20])
def test_a_full_disk(
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: MakeHost,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    """One line; with space again it goes on."""
    append, calls = writer.append, [0]

    def full(path: Path, rows: np.ndarray) -> None:
        calls[0] += 1
        if calls[0] > count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, rows)

    monkeypatch.setattr(writer, "append", full)
    out = tmp_path / "x"
    with pytest.raises(DataError, match=r"the disk is full; .* then run the same") as error:
        harvest(token_host(), corpus, config(), out, model=MODEL)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(writer, "append", append)
    harvest(token_host(), corpus, config(), out, model=MODEL)
    assert content(out) == whole


def test_a_file_that_the_system_lets_grow_no_further(
    tmp_path: Path, make_corpus: Callable[..., Corpus], config: Config, token_host: MakeHost
) -> None:
    """400 rows of 12 bytes are more than 4,096."""
    corpus = make_corpus([50] * 20)
    asked = config(tokens=800, shard_rows=400)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DataError, match="the disk is full"):
            harvest(token_host(), corpus, asked, tmp_path / "x", model=MODEL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    harvest(token_host(), corpus, asked, tmp_path / "x", model=MODEL)
    harvest(token_host(), corpus, asked, tmp_path / "y", model=MODEL)
    assert content(tmp_path / "x") == content(tmp_path / "y")


def test_a_folder_that_cannot_be_made(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        harvest(token_host(), corpus, config(), tmp_path / "file" / "x", model=MODEL)


def test_an_error_of_the_host_is_its_own(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost
) -> None:
    """Only what the cache's folder refuses is said of the cache."""

    class Broken(type(token_host())):
        def run(self, *_: object, **__: object) -> Trace:
            raise OSError(errno.EIO, "the model's own file")

    with pytest.raises(OSError, match="the model's own file"):
        harvest(Broken(), corpus, config(), tmp_path / "x", model=MODEL)


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "float16"), ("seed", 1), ("tokens", 99), ("first", "keep"), ("sites", ("b:in",))],
)
def test_gone_on_with_as_another(
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: MakeHost,
    killed: type[BaseException],
    field: str,
    value: object,
) -> None:
    """Refused by name, finished or not; what is there stays."""
    out = tmp_path / "x"
    with pytest.raises(killed):
        harvest(token_host(die_at=6), corpus, config(), out, model=MODEL)
    for finished in (False, True):
        if finished:
            harvest(token_host(), corpus, config(), out, model=MODEL)
        before = content(out)
        with pytest.raises(DataError, match=rf"holds another harvest: config\.{field}: expected"):
            harvest(token_host(), corpus, config(**{field: value}), out, model=MODEL)
        assert content(out) == before


def test_another_model_text_or_tokenizer(
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: MakeHost,
    killed: type[BaseException],
) -> None:
    out = tmp_path / "x"
    with pytest.raises(killed):
        harvest(token_host(die_at=6), corpus, config(), out, model=MODEL)
    with pytest.raises(DataError, match=r"model\.hash: expected 'h', found 'g'"):
        harvest(token_host(), corpus, config(), out, model={**MODEL, "hash": "g"})
    other = dataclasses.replace(corpus, identity="other")
    with pytest.raises(DataError, match="corpus: expected 'text', found 'other'"):
        harvest(token_host(), other, config(), out, model=MODEL)

    class Tokenizer:
        identity = "t"

    object.__setattr__(other, "tokenizer", Tokenizer())
    with pytest.raises(DataError, match=r"tokenizer: expected '.*', found 't'"):
        harvest(token_host(), other, config(), out, model=MODEL)


def test_a_finished_cache_is_returned_as_it_is(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost, whole: dict[str, bytes]
) -> None:
    """Verified, and without a pass; ``overwrite`` runs it again."""
    host, out = token_host(), tmp_path / "whole"
    cache = harvest(host, corpus, config(), out, model=MODEL)
    assert host.passes == 0
    assert cache.manifest == ActivationCache.open(out).manifest
    path = out / "train.00000.site0.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=r"site0\.bin: altered"):
        harvest(host, corpus, config(), out, model=MODEL)
    harvest(host, corpus, config(), out, model=MODEL, overwrite=True)
    assert host.passes > 0
    assert content(out) == whole


def test_overwriting_with_another(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost, whole: dict[str, bytes]
) -> None:
    """Fewer shards: nothing of the old ones stays."""
    out = tmp_path / "whole"
    cache = harvest(token_host(), corpus, config(tokens=30), out, model=MODEL, overwrite=True)
    assert cache.rows == 30
    assert not (out / "train.00002.rows.bin").exists()
    assert "train.00002.rows.bin" in whole
    assert ActivationCache.open(out).rows == 30


def test_too_little_text_or_an_unknown_site_leaves_nothing(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost
) -> None:
    class Known(type(token_host())):
        def width(self, site: Site) -> int:
            raise AddressError(f"site {site}: no such module")

    out = tmp_path / "x"
    with pytest.raises(DataError, match="tokens = 999, but the training text has only"):
        harvest(token_host(), corpus, config(tokens=999), out, model=MODEL)
    with pytest.raises(AddressError, match="site a:out: no such module"):
        harvest(Known(), corpus, config(), out, model=MODEL)
    assert not out.exists()


def test_rows_that_are_not_finite(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost
) -> None:
    """Refused by default; what was harvested before stays, and dropping them goes on from it."""
    rows = train_windows(corpus, config())
    batch = rows.read(0, rows.windows_for(100))
    bad = batch.tokens[batch.row].tolist()[60:63]
    out, asked = tmp_path / "x", config()
    with pytest.raises(DataError, match=r"site b:in: .* NaN or inf, in the documents 'train-"):
        harvest(token_host(bad=bad), corpus, asked, out, model=MODEL)
    assert read_record(out).windows["train"] > 0
    drop = config(nonfinite="drop")
    cache = harvest(token_host(bad=bad), corpus, drop, out, model=MODEL)
    assert cache.manifest.nonfinite == {"a:out": 0, "b:in": 3}
    assert (cache.rows, cache.manifest.dropped) == (97, 3)
    found = cache.batch(0, 97)
    assert len(set(found.token.tolist())) == 97
    assert not set(bad) & set(found.token.tolist())
    straight = harvest(token_host(bad=bad), corpus, drop, tmp_path / "y", model=MODEL)
    assert content(tmp_path / "x") == content(tmp_path / "y")
    clean = harvest(token_host(), corpus, asked, tmp_path / "z", model=MODEL)
    order = [token for token in clean.batch(0, 100).token.tolist() if token not in bad]
    assert sorted(order) == sorted(straight.batch(0, 97).token.tolist())
    with pytest.raises(DataError, match=r"config\.nonfinite: expected 'drop', since 3 rows"):
        harvest(token_host(), corpus, asked, out, model=MODEL)


def test_dropped_rows_are_counted_across_a_stop(
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: MakeHost,
    killed: type[BaseException],
) -> None:
    """One among the held-out rows, two at the start and one at the end of training."""
    drop = config(nonfinite="drop")
    bad: list[int] = []
    for windows, rows in (
        (train_windows(corpus, drop), (0, 1, 99)),
        (validation_windows(corpus, drop), (0,)),
    ):
        batch = windows.read(0, len(windows))
        bad += [batch.tokens[batch.row].tolist()[row] for row in rows]
    out = tmp_path / "x"
    with pytest.raises(killed):
        harvest(token_host(bad=bad, die_at=8), corpus, drop, out, model=MODEL)
    assert read_record(out).nonfinite == {"a:out": 0, "b:in": 3}
    cache = harvest(token_host(bad=bad), corpus, drop, out, model=MODEL)
    assert cache.manifest.nonfinite == {"a:out": 0, "b:in": 4}
    assert (cache.rows, cache.validation_rows, cache.manifest.dropped) == (97, 11, 4)


def test_nothing_finite_at_all(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost
) -> None:
    drop = config(nonfinite="drop")
    with pytest.raises(DataError, match="every row of the train text holds NaN or inf"):
        harvest(token_host(bad=range(1, 200)), corpus, drop, tmp_path / "x", model=MODEL)


def test_a_width_that_changes_on_the_way(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost
) -> None:
    class Growing(type(token_host())):
        def run(
            self, tokens: Tensor, *, edits: Sequence[Edit] = (), keep: Collection[Site] = ()
        ) -> Trace:
            trace = super().run(tokens, edits=edits, keep=keep)
            if self.passes < 6:
                return trace
            wide = torch.cat((trace.kept[A], trace.kept[A]), -1)
            return Trace(trace.logits, {**trace.kept, A: wide})

    with pytest.raises(DataError, match="site a:out: its width changes: expected 3, found 6"):
        harvest(Growing(), corpus, config(), tmp_path / "x", model=MODEL)
    assert (tmp_path / "x" / RECORD).exists()


def test_progress(tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost) -> None:
    """Rows done, up to all of them, for each stage; a resumed harvest begins where it stopped."""
    told: list[tuple[str, int, int]] = []
    harvest(
        token_host(),
        corpus,
        config(),
        tmp_path / "x",
        model=MODEL,
        progress=lambda *what: told.append(what),
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[:2] == ["harvesting validation", "harvesting train"]
    for stage, total in (("harvesting validation", 12), ("harvesting train", 100)):
        done = [(rows, whole) for name, rows, whole in told if name == stage]
        assert done == sorted(done)
        assert done[-1] == (total, total)
        assert {whole for _, whole in done} == {total}
    assert told[-1][1:] == (1, 1)


def test_held_out_rows_are_of_held_out_documents(
    tmp_path: Path, corpus: Corpus, config: Config, token_host: MakeHost
) -> None:
    cache = harvest(token_host(), corpus, config(), tmp_path / "x", model=MODEL)
    windows = validation_windows(corpus, config())
    (rows,) = cache.validation(12)
    assert set(rows.document.tolist()) <= set(windows.order.tolist())
    assert rows.token.min() >= 10_000
    assert rows.position.min() >= 1


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, make_corpus: Callable[..., Corpus], config: Config, token_host: MakeHost
) -> None:
    """From 1,000 to 100,000 rows of one corpus, harvested and read: arrays and objects at the peak.

    Rows of 32 bytes, so what grows with them would add 3.2 MB. A shard has 5,000 rows, which the
    smallest harvest does not fill: the others work on 4,000 rows more at a time, at about ten
    numbers of 8 bytes a row. From 10,000 rows on 18 shards are added, with three checksums each.
    """
    corpus = make_corpus([35] * 3500)

    def peak(tokens: int) -> int:
        asked = config(tokens=tokens, context=64, batch=16, shard_rows=5000)
        tracemalloc.start()
        try:
            cache = harvest(token_host(), corpus, asked, tmp_path / str(tokens), model=MODEL)
            for step in range(0, tokens, 997):
                cache.batch(step, 1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(999)  # what is imported and cached at the first use
    small, middle, large = (peak(tokens) for tokens in (1000, 10_000, 100_000))
    assert large - small < 4000 * 100
    assert large - middle < 18 * 3 * 1000
