"""Hashed supports: the hash itself, uniformity, regeneration, repair; and the control masks."""

import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.ops.expander import (
    authors_mask,
    clustered_mask,
    expander_atom,
    expander_mask,
    index_dtype,
    mask,
    mask_checksum,
    pruned_mask,
    shared_mask,
)

WORD = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def _finalise(word: int) -> int:
    """SplitMix64's finaliser on Python's unbounded integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _support(latent: int, nonzeros: int, width: int, seed: int) -> list[int]:
    """The rows with the smallest hashes, one at a time."""
    key = _finalise((_finalise(_finalise(seed & WORD)) + latent * GAMMA) & WORD)
    hashes = [_signed(_finalise((key + (row + 1) * GAMMA) & WORD)) for row in range(width)]
    return sorted(sorted(range(width), key=hashes.__getitem__)[:nonzeros])


def _degrees(index: Tensor, width: int) -> Tensor:
    return torch.bincount(index.reshape(-1).long(), minlength=width)


def test_the_hash_is_splitmix64():
    # The first output of SplitMix64 seeded with 0, as its authors publish it.
    first = int(mask._mix(torch.tensor([_signed(GAMMA)])))
    assert first % (1 << 64) == 0xE220A8397B1DCDAF == _finalise(GAMMA)


@pytest.mark.parametrize("seed", [0, 1, 12345, -7, 1 << 63, (1 << 64) + 3])
def test_supports_equal_those_of_python_integers(seed):
    found = expander_mask(70, 5, 23, seed)  # 23·(18/23)^70 = 1e-6 repairs expected
    assert found.repairs == ()
    assert found.index.tolist() == [_support(j, 5, 23, seed) for j in range(70)]


def test_chunks_do_not_show(monkeypatch):
    whole = expander_mask(100, 4, 30, 1)
    monkeypatch.setattr(mask, "CHUNK_ELEMENTS", 7 * 30 + 1)
    assert torch.equal(expander_mask(100, 4, 30, 1).index, whole.index)
    monkeypatch.setattr(mask, "CHUNK_ELEMENTS", 1)  # less than a latent: one at a time
    assert torch.equal(expander_mask(100, 4, 30, 1).index, whole.index)


def test_another_seed_gives_another_mask_and_more_latents_the_same_start():
    some, more = expander_mask(200, 7, 64, 0), expander_mask(300, 7, 64, 0)
    assert torch.equal(more.index[:200], some.index)
    assert not torch.equal(expander_mask(200, 7, 64, 1).index, some.index)


def test_supports_are_uniform():
    """Row degrees and pairwise overlaps as independent uniform s-subsets have them."""
    latents, nonzeros, width = 4000, 7, 64
    index = expander_mask(latents, nonzeros, width, 0).index
    share = nonzeros / width
    deviation = (latents * share * (1 - share)) ** 0.5
    # 64 nearly normal degrees beyond five deviations: probability below 1e-4.
    assert ((_degrees(index, width) - latents * share).abs() < 5 * deviation).all()
    # Neighbours share s²/d rows on average, hypergeometric with variance 0.61 at most.
    member = torch.zeros(latents, width).scatter_(1, index.long(), 1.0)
    shared = (member[:-1] * member[1:]).sum(1)
    assert abs(float(shared.mean()) - nonzeros**2 / width) < 5 * (0.61 / latents) ** 0.5


def test_rows_ascend_and_are_stored_small():
    index = expander_mask(50, 6, 40, 2).index
    assert index.dtype == torch.int16
    assert (index[:, 1:] > index[:, :-1]).all()
    assert (index.min(), index.max()) == (0, 39)


def test_the_storage_type_follows_the_width():
    assert index_dtype(1 << 15) == torch.int16  # places 0 to 32767
    assert index_dtype((1 << 15) + 1) == torch.int32
    # 0.5 % of 33,000 · 12 chances: some place is above int16's range.
    wide = expander_mask(12, 3000, 33_000, 0).index
    assert wide.dtype == torch.int32
    assert int(wide.max()) > 1 << 15


def test_all_rows_and_one_row():
    assert expander_mask(3, 4, 4, 0).index.tolist() == [[0, 1, 2, 3]] * 3
    assert expander_mask(1, 1, 1, 0).index.tolist() == [[0]]


# (latents, non-zeros, width): in all of them some rows are hashed to nobody
STARVED = [(64, 2, 100), (20, 3, 40), (10, 4, 40), (1, 5, 5), (40, 1, 40), (9, 9, 80)]


@pytest.mark.parametrize("size", STARVED, ids=str)
def test_repair_reaches_every_row_and_nothing_else(size):
    latents, nonzeros, width = size
    found = expander_mask(latents, nonzeros, width, 3)
    before = torch.tensor([_support(j, nonzeros, width, 3) for j in range(latents)])
    empty = (_degrees(before, width) == 0).nonzero().squeeze(1).tolist()
    assert [taken for _, _, taken in found.repairs] == empty
    assert (_degrees(found.index, width) >= 1).all()
    assert (found.index[:, 1:] > found.index[:, :-1]).all()
    for latent, gives, takes in found.repairs:
        assert gives in before[latent].tolist()
        assert gives not in found.index[latent].tolist()
        assert takes in found.index[latent].tolist()
    untouched = sorted(set(range(latents)) - {latent for latent, _, _ in found.repairs})
    assert torch.equal(found.index[untouched].long(), before[untouched])
    assert found.repairs == expander_mask(latents, nonzeros, width, 3).repairs


def test_repairs_are_as_many_as_chance_leaves_empty():
    # d(1 − s/d)^n = 100·0.98^64 = 27.4 expected, with deviation below √27.4 = 5.3.
    repairs = len(expander_mask(64, 2, 100, 0).repairs)
    assert abs(repairs - 27.4) < 5 * 5.3


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 30), st.integers(-5, 99))
def test_any_latent_is_made_alone(latents, nonzeros, width, seed):
    nonzeros = min(nonzeros, width)
    latents = max(latents, -(-width // nonzeros))
    found = expander_mask(latents, nonzeros, width, seed)
    for latent in {0, latents // 2, latents - 1, *(repair[0] for repair in found.repairs)}:
        alone = expander_atom(latent, nonzeros, width, seed, found.repairs)
        assert torch.equal(alone, found.index[latent])


def test_the_checksum_is_of_int32_bytes_whatever_the_storage():
    index = torch.tensor([[0, 2], [1, 258]], dtype=torch.int16)
    right = hashlib.sha256(struct.pack("<4i", 0, 2, 1, 258)).hexdigest()
    assert mask_checksum(index) == mask_checksum(index.long()) == right
    found = expander_mask(20, 3, 10, 0)
    assert found.checksum == mask_checksum(found.index)
    assert found.checksum != expander_mask(20, 3, 10, 1).checksum


def test_the_authors_mask_is_numpys_choice():
    generator = np.random.default_rng(10_004)
    right = [sorted(generator.choice(30, 5, replace=False).tolist()) for _ in range(9)]
    found = authors_mask(9, 5, 30, 4)
    assert found.index.tolist() == right
    assert found.repairs == ()
    assert found.checksum == mask_checksum(found.index)


@pytest.mark.parametrize(("nonzeros", "width", "blocks"), [(7, 64, 9), (4, 64, 16), (5, 5, 1)])
def test_clusters_are_disjoint_and_each_latent_has_one_whole(nonzeros, width, blocks):
    found = clustered_mask(100, nonzeros, width, 0).index
    different = {tuple(rows) for rows in found.tolist()}
    assert len(different) == blocks == width // nonzeros
    used = sorted(row for rows in different for row in rows)
    assert len(set(used)) == len(used) == blocks * nonzeros
    assert found[blocks:].tolist() == found[:-blocks].tolist()
    assert all(list(rows) == sorted(rows) for rows in different)


def test_clusters_are_not_runs_of_rows_and_follow_the_seed():
    first, other = clustered_mask(9, 7, 64, 0), clustered_mask(9, 7, 64, 1)
    assert first.checksum != other.checksum
    assert not (first.index[:, 1:] - first.index[:, :-1] == 1).all()


@pytest.mark.parametrize(("latents", "group"), [(12, 4), (13, 4), (5, 1), (9, 3)])
def test_shared_supports_come_in_groups(latents, group):
    found = shared_mask(latents, 6, 16, 0, group).index
    few = expander_mask(-(-latents // group), 6, 16, 0).index
    assert found.shape == (latents, 6)
    assert all(torch.equal(found[j], few[j // group]) for j in range(latents))


def test_pruning_keeps_the_largest_magnitudes():
    table = torch.tensor([[0.1, -5.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, -3.0]])
    # Row 1 ties, the lower places win; row 2 has one non-zero, and place 0 joins it.
    assert pruned_mask(table, 2).index.tolist() == [[1, 2], [0, 1], [0, 3]]


def test_pruning_in_chunks_is_the_same(monkeypatch):
    table = torch.randn(50, 20, requires_grad=True)
    right = table.detach().abs().topk(6, dim=1).indices.sort(1).values
    monkeypatch.setattr(mask, "CHUNK_ELEMENTS", 70)
    assert torch.equal(pruned_mask(table, 6).index.long(), right)


@pytest.mark.parametrize("nonzeros", [0, 11])
def test_too_few_or_too_many_nonzeros_are_refused(nonzeros):
    table = torch.zeros(4, 10)
    for make in (
        lambda: expander_mask(4, nonzeros, 10, 0),
        lambda: authors_mask(4, nonzeros, 10, 0),
        lambda: clustered_mask(4, nonzeros, 10, 0),
        lambda: shared_mask(4, nonzeros, 10, 0, 2),
        lambda: pruned_mask(table, nonzeros),
    ):
        with pytest.raises(
            ConfigError, match=rf"nonzeros: expected 1 to the width 10, found {nonzeros}"
        ):
            make()


def test_too_few_entries_for_the_width_are_refused():
    with pytest.raises(ConfigError, match=r"expected at least the width 10.*found 3 x 3; raise"):
        expander_mask(3, 3, 10, 0)
    with pytest.raises(ConfigError, match="latents: expected at least 1, found 0"):
        expander_mask(0, 3, 10, 0)
