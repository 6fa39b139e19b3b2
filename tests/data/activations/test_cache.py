"""Reading a cache: the shuffle is exact and pure, and damage is refused in one line."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pellucid.core.errors import AddressError, DataError
from pellucid.core.host import Host
from pellucid.core.unit import Site
from pellucid.data.activations import (
    ActivationCache,
    ActivationSource,
    HarvestConfig,
    Rows,
    harvest,
)
from pellucid.data.activations.heldout import held_out_bytes, held_out_table
from pellucid.data.activations.windows import train_windows, validation_windows
from pellucid.data.packing import IGNORED, PADDING
from pellucid.data.store import Corpus

Config = Callable[..., HarvestConfig]
A, B = Site(module="a", port="out"), Site(module="b", port="in")


@pytest.fixture
def make_cache(
    tmp_path: Path, corpus: Corpus, token_host: Callable[..., Host]
) -> Callable[[HarvestConfig], ActivationCache]:
    def make(config: HarvestConfig, corpus: Corpus = corpus) -> ActivationCache:
        return harvest(token_host(), corpus, config, tmp_path / "cache", model={"name": "m"})

    return make


@pytest.fixture
def cache(make_cache: Callable[..., ActivationCache], config: Config) -> ActivationCache:
    """100 rows in shards of 23, 23, 23, 23 and 8; 12 held out in one shard."""
    return make_cache(config())


def equal(one: Rows, two: Rows) -> bool:
    index = all(
        torch.equal(getattr(one, name), getattr(two, name))
        for name in ("token", "document", "position")
    )
    return (
        index
        and list(one.x) == list(two.x)
        and all(torch.equal(one.x[site], two.x[site]) for site in one.x)
    )


def test_facts(cache: ActivationCache, corpus: Corpus) -> None:
    assert isinstance(cache, ActivationSource)
    assert cache.exact
    assert (cache.rows, cache.validation_rows) == (100, 12)
    assert cache.widths == {A: 3, B: 2}
    assert cache.origin.model == {"name": "m"}
    assert cache.origin.corpus == corpus.identity
    assert cache.origin.tokenizer == corpus.tokenizer.identity
    assert [shard.rows for shard in cache.manifest.train] == [23, 23, 23, 23, 8]
    assert cache.where == str(cache.path)


def test_rows_are_aligned(cache: ActivationCache, corpus: Corpus) -> None:
    """The vector of each row says its token and position; the token says its document."""
    rows = cache.batch(0, 100)
    document = np.searchsorted(corpus.train.start, rows.token.numpy() - 1, side="right") - 1
    assert rows.document.tolist() == document.tolist()
    a = torch.stack((rows.token, rows.position, torch.full_like(rows.token, 7)), -1)
    b = torch.stack((-rows.token, rows.position / 2), -1)
    assert torch.equal(rows.x[A], a.float())
    assert torch.equal(rows.x[B], b.float())
    assert all(rows.x[site].dtype == torch.float32 for site in (A, B))


@pytest.mark.parametrize("size", [1, 7, 23, 100])
def test_an_epoch_is_every_row_once(cache: ActivationCache, corpus: Corpus, size: int) -> None:
    """Which are the first 100 of the windows; so are the next 100, in another order."""
    config = cache.origin.config
    windows = train_windows(corpus, config)
    batch = windows.read(0, windows.windows_for(100))
    expected = sorted(batch.tokens[batch.row].tolist()[:100])
    count = -(-200 // size)
    tokens = [t for step in range(count) for t in cache.batch(step, size).token.tolist()]
    assert sorted(tokens[:100]) == sorted(tokens[100:200]) == expected
    assert tokens[:100] != tokens[100:200]
    assert tokens[:100] != expected


def test_a_batch_is_a_pure_function(cache: ActivationCache) -> None:
    """Asked in any order, between others, of a used cache or a fresh one."""
    asked = [(step, size, seed) for step in (0, 3, 40) for size in (1, 9, 30) for seed in (0, 1)]
    random.Random(0).shuffle(asked)
    for step, size, seed in asked:
        cache.batch(step + 1, 5, seed=seed + 1)
        fresh = ActivationCache(cache.path, cache.manifest)
        assert equal(cache.batch(step, size, seed=seed), fresh.batch(step, size, seed=seed))


def test_smaller_batches_hold_the_same_rows(cache: ActivationCache) -> None:
    """Batch 3 of 20 is batches 12 to 15 of 5."""
    small = torch.cat([cache.batch(step, 5).token for step in range(12, 16)])
    assert torch.equal(small, cache.batch(3, 20).token)


def test_seeds_differ(cache: ActivationCache) -> None:
    orders = {tuple(cache.batch(0, 100, seed=seed).token.tolist()) for seed in range(4)}
    assert len(orders) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_some_sites(cache: ActivationCache) -> None:
    both, one = cache.batch(2, 9), cache.batch(2, 9, sites=[B])
    assert list(one.x) == [B]
    assert list(cache.batch(2, 9, sites=[B, A]).x) == [B, A]
    assert torch.equal(one.x[B], both.x[B])
    assert torch.equal(one.token, both.token)
    with pytest.raises(AddressError, match="site c:out: was not harvested"):
        cache.batch(0, 1, sites=[Site(module="c", port="out")])


def test_a_batch_owns_its_memory(cache: ActivationCache) -> None:
    """Also where a batch is a whole shard, and among held-out rows."""
    for ask in (lambda: cache.batch(0, 23), lambda: next(cache.validation(12))):
        before = ask().x[A].clone()
        ask().x[A].zero_()
        assert torch.equal(ask().x[A], before)


@pytest.mark.parametrize("size", [1, 5, 12, 50])
@pytest.mark.parametrize("shard_rows", [4, 23])
def test_held_out_rows_come_in_order(
    make_cache: Callable[..., ActivationCache],
    config: Config,
    corpus: Corpus,
    size: int,
    shard_rows: int,
) -> None:
    cache = make_cache(config(shard_rows=shard_rows))
    windows = validation_windows(corpus, cache.origin.config)
    batch = windows.read(0, len(windows))
    expected = batch.tokens[batch.row].tolist()[:12]
    parts = list(cache.validation(size))
    assert [len(part.token) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert [token for part in parts for token in part.token.tolist()] == expected
    assert all(torch.equal(part.x[A][:, 0], part.token.float()) for part in parts)
    assert [list(part.x) for part in cache.validation(12, sites=[B])] == [[B]]


def test_held_out_text(cache: ActivationCache, corpus: Corpus) -> None:
    """The windows that the held-out rows are part of, and what packing says of targets."""
    windows = validation_windows(corpus, cache.origin.config)
    found = cache.heldout()
    table = held_out_table(windows)
    assert found.tokens.tolist() == table[:, 0].tolist()
    assert found.document.tolist() == table[:, 1].tolist()
    assert found.num_bytes == held_out_bytes(windows)
    scored = found.targets[found.targets != IGNORED]
    lengths = corpus.validation.lengths[windows.order]
    assert len(scored) == lengths.sum()
    assert (found.document != PADDING).sum() == (lengths + 1).sum()
    held = {t for part in cache.validation(5) for t in part.token.tolist()}
    assert held <= set(found.tokens.flatten().tolist())


def test_neighbours_share_a_document_as_chance_has_it(
    make_cache: Callable[..., ActivationCache],
    make_corpus: Callable[..., Corpus],
    config: Config,
) -> None:
    """With n_d of N rows in document d, two neighbours of a uniform permutation share one with

        q = Σ n_d (n_d − 1) / (N (N − 1)),

    and of N − 1 pairs about (N − 1) q do, with a deviation of √((N − 1) q (1 − q)): pairs that
    overlap are nearly independent. Four deviations, over three epochs and three seeds. In the
    order of the text nearly all neighbours would.
    """
    corpus = make_corpus([40, 10, 70, 30, 60, 20, 50, 80, 15, 25] * 6)
    cache = make_cache(config(tokens=2000, context=32, batch=8, shard_rows=90), corpus)
    document = cache.batch(0, 2000).document
    counts = np.array(list(Counter(document.tolist()).values()))
    q = (counts * (counts - 1)).sum() / (2000 * 1999)
    assert 0.01 < q < 0.05
    bound = 4 * np.sqrt(1999 * q * (1 - q))
    for seed in range(3):
        for epoch in range(3):
            order = cache.batch(epoch, 2000, seed=seed).document
            shared = int((order[1:] == order[:-1]).sum())
            assert abs(shared - 1999 * q) < bound
    in_order = document.sort().values
    assert int((in_order[1:] == in_order[:-1]).sum()) > 1999 * q + bound


def test_a_document_spreads_over_the_shards_as_drawn_without_replacement(
    make_cache: Callable[..., ActivationCache],
    make_corpus: Callable[..., Corpus],
    config: Config,
) -> None:
    """2,000 rows in 20 shards of 100; of a document of n rows each holds n / 20 on average.

    The hypergeometric variance is n · .05 · .95 · (2000 − n) / 1999. Summed over documents and
    shards, the squared deviations over their variances have a mean of one each; with about
    documents · 19 degrees of freedom their sum is within 5 √(2 · dof).
    """
    corpus = make_corpus([40, 10, 70, 30, 60, 20, 50, 80, 15, 25] * 6)
    cache = make_cache(config(tokens=2000, context=32, batch=8, shard_rows=100), corpus)
    files = [cache.path / f"train.{shard:05d}.rows.bin" for shard in range(20)]
    table = np.stack(
        [
            np.bincount(np.fromfile(file, dtype=np.int32).reshape(-1, 3)[:, 1], minlength=60)
            for file in files
        ]
    )
    n = table.sum(0)
    table, n = table[:, n > 0], n[n > 0]
    variance = n * 0.05 * 0.95 * (2000 - n) / 1999
    total = ((table - n / 20) ** 2 / variance).sum() * 19 / 20
    dof = 19 * (len(n) - 1)
    assert abs(total - dof) < 5 * np.sqrt(2 * dof)


def test_rows_of_one_shard_do_not_stay_in_order(cache: ActivationCache) -> None:
    """Stored as they arrived, read permuted: 23 rows agree in one place on average."""
    stored = np.fromfile(cache.path / "train.00000.rows.bin", dtype=np.int32).reshape(-1, 3)[:, 0]
    read = cache.batch(0, 100).token.numpy()
    places = [int(np.flatnonzero(read == token)[0]) for token in stored]
    assert max(places) - min(places) == 22
    assert (np.diff(places) == 1).sum() < 8


def test_opening(cache: ActivationCache) -> None:
    for verify in (True, False):
        again = ActivationCache.open(cache.path, verify=verify)
        assert again.manifest == cache.manifest
        assert equal(again.batch(1, 9), cache.batch(1, 9))


def test_a_damaged_cache_is_not_opened(cache: ActivationCache) -> None:
    path = cache.path / "train.00002.site1.bin"
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(DataError, match=r"train\.00002\.site1\.bin: altered"):
        ActivationCache.open(cache.path)
    ActivationCache.open(cache.path, verify=False)
    path.write_bytes(content[:-3])
    with pytest.raises(DataError, match=r"site1\.bin: truncated or altered: expected 184 bytes"):
        ActivationCache.open(cache.path, verify=False)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        ActivationCache.open(cache.path, verify=False)


def test_what_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no activations \(manifest.json is missing\)"):
        ActivationCache.open(tmp_path / "nowhere")


def test_an_interrupted_harvest_is_no_cache(
    tmp_path: Path,
    corpus: Corpus,
    config: Config,
    token_host: Callable[..., Host],
    killed: type[BaseException],
) -> None:
    with pytest.raises(killed):
        harvest(token_host(die_at=4), corpus, config(), tmp_path / "x", model={})
    with pytest.raises(DataError, match="was interrupted; run the same harvest again, which goes"):
        ActivationCache.open(tmp_path / "x")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types(
    make_cache: Callable[..., ActivationCache], config: Config, dtype: str
) -> None:
    """Tokens up to 151 have eight significant bits, as many as bfloat16."""
    cache = make_cache(config(dtype=dtype))
    rows = cache.batch(0, 100)
    assert torch.equal(rows.x[A][:, 0], rows.token.float())
    assert (cache.path / "train.00000.site0.bin").stat().st_size == 23 * 3 * 2


def test_only_one_shard_is_held(cache: ActivationCache) -> None:
    """Whatever was read before: 23 rows of 12 + 12 + 8 bytes, or of the columns asked for."""
    for step in range(30):
        cache.batch(step, 9)
    list(cache.validation(5))
    cache.batch(31, 9)
    held = cache._shard[1]
    assert sum(array.nbytes for array in held.values()) <= 23 * 32
    cache.batch(50, 3, sites=[B])
    assert set(cache._shard[1]) <= {0, 1, 2}
