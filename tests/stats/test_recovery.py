"""Matches and detector counts by hand, invariances, and the floor that chance sets."""

import builtins
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import DataError, MissingExtra
from pellucid.core.unit import Code
from pellucid.stats.recovery import DetectorCounts, chance_mcc, match_directions, match_scores


def test_the_match_is_one_to_one():
    # Rows take latents 0 and 1 (.9 + .3 = 1.2), not 1 and 0 (.2 + .8 = 1.0): mean .6.
    # Both features like latent 0 best: one distinct of two.
    found = match_scores(torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.3, 0.1]]))
    assert found.latent.tolist() == [0, 1]
    assert found.score.tolist() == pytest.approx([0.9, 0.3], rel=1e-6)
    assert found.mcc == pytest.approx(0.6, rel=1e-6)
    assert found.uniqueness == 0.5


def test_a_greedy_match_would_do_worse():
    # Greedy takes .9, then has .1 left; the best sum is .8 + .8.
    found = match_scores(torch.tensor([[0.9, 0.8], [0.8, 0.1]]))
    assert found.latent.tolist() == [1, 0]
    assert found.mcc == pytest.approx(0.8, rel=1e-6)


def test_features_without_a_latent_score_nothing():
    # One latent for three features: the second has it; (0 + .9 + 0)/3 = .3.
    found = match_scores(torch.tensor([[0.5], [0.9], [0.6]]))
    assert found.latent.tolist() == [-1, 0, -1]
    assert found.mcc == pytest.approx(0.3, rel=1e-6)
    assert found.uniqueness == pytest.approx(1 / 3, rel=1e-15)


def test_cosines_of_three_directions():
    # True axes; learned: −2·e1, (3, 4)/… and e1 + e2. |cos| of e1: 1, .6, .707; of e2: 0, .8, .707.
    # Best sum: 1 + .8.
    true = torch.eye(2)
    learned = torch.tensor([[-2.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    found = match_directions(true, learned)
    assert found.latent.tolist() == [0, 1]
    assert found.mcc == pytest.approx(0.9, rel=1e-12)
    # With signs e1 has −1, .6, .707: e1 takes the diagonal and e2 keeps .8.
    signed = match_directions(true, learned, absolute=False)
    assert signed.latent.tolist() == [2, 1]
    assert signed.mcc == pytest.approx((math.sqrt(0.5) + 0.8) / 2, rel=1e-12)


def test_two_sided_units_multiply():
    # Write cosines .6 and .8, read cosines .5 and −1: products .3 and −.8.
    true, true_read = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    learned = torch.tensor([[3.0, 4.0], [4.0, 3.0]])
    learned_read = torch.tensor([[1.0, math.sqrt(3.0), 0.0], [-2.0, 0.0, 0.0]])
    found = match_directions(true, learned, true_read=true_read, learned_read=learned_read)
    assert found.latent.tolist() == [1]
    assert found.mcc == pytest.approx(0.8, rel=1e-6)
    signed = match_directions(
        true, learned, true_read=true_read, learned_read=learned_read, absolute=False
    )
    assert signed.latent.tolist() == [0]
    # √3 in float32 moves the read cosine by 1e-8.
    assert signed.mcc == pytest.approx(0.3, rel=1e-6)


def test_one_side_alone_is_refused():
    with pytest.raises(ValueError, match="together"):
        match_directions(torch.eye(2), torch.eye(2), true_read=torch.eye(2))


def test_zero_rows_match_nothing():
    assert match_directions(torch.eye(3), torch.zeros(3, 3)).mcc == 0.0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_match(shape: tuple[int, int]):
    with pytest.raises(DataError, match="expected features and latents to match"):
        match_scores(torch.zeros(shape))


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_order_scale_and_rotation_do_not_matter(seed: int, features: int, latents: int, both: bool):
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, 4, generator=generator, dtype=torch.float64)

    true, learned, true_read, learned_read = map(draw, (features, latents, features, latents))
    before = match_directions(
        true,
        learned,
        true_read=true_read if both else None,
        learned_read=learned_read if both else None,
    )
    row, column = torch.randperm(features), torch.randperm(latents)
    turn = torch.linalg.qr(draw(4)).Q
    size = draw(latents).abs().sum(1, keepdim=True) + 0.1
    after = match_directions(
        true[row] @ turn,
        (learned * size)[column] @ turn,
        true_read=true_read[row] if both else None,
        learned_read=learned_read[column] if both else None,
    )
    # Float64 products in another order.
    assert after.mcc == pytest.approx(before.mcc, rel=1e-12)
    assert after.uniqueness == before.uniqueness
    assert after.score.tolist() == pytest.approx(before.score[row].tolist(), rel=1e-12)
    matched = after.latent >= 0
    assert column[after.latent[matched]].tolist() == before.latent[row][matched].tolist()
    assert int(matched.sum()) == min(features, latents)


def test_a_dictionary_recovers_itself_in_any_order():
    true = torch.randn(20, 8)
    order = torch.randperm(20)
    found = match_directions(true, -true[order])
    # Float32 rows normalised in float64 have cosine 1 to its rounding.
    assert found.mcc == pytest.approx(1.0, abs=1e-12)
    assert found.uniqueness == 1.0
    assert order[found.latent].tolist() == list(range(20))


def test_matching_without_scipy_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match="needs the package scipy"):
        match_scores(torch.eye(2))


def test_the_floor_of_random_latents():
    """256 features and 512 Gaussian latents in 64 dimensions, against an independent simulation:
    writes alone .39, both sides .085, uniqueness .79."""
    true, read = torch.randn(256, 64), torch.randn(256, 64)
    # Printed to two figures; draws differ in the third.
    assert chance_mcc(true, 512, draws=1) == pytest.approx(0.39, abs=0.01)
    assert chance_mcc(true, 512, true_read=read, draws=1) == pytest.approx(0.085, abs=0.01)
    learned, learned_read = torch.randn(512, 64), torch.randn(512, 64)
    found = match_directions(true, learned, true_read=read, learned_read=learned_read)
    # 256 picks of 512: 512·(1 − (1 − 1/512)²⁵⁶)/256 = .787 if uniform, standard error .02.
    assert found.uniqueness == pytest.approx(0.79, abs=0.06)


def test_the_floor_does_not_repeat_the_truth():
    generator = torch.Generator().manual_seed(0)
    assert chance_mcc(torch.randn(16, 32, generator=generator), 16, draws=1, seed=0) < 0.9


def test_the_floor_is_seeded_and_averaged():
    true = torch.randn(8, 4)
    assert chance_mcc(true, 8, seed=3) == chance_mcc(true, 8, seed=3)
    assert chance_mcc(true, 8, seed=3) != chance_mcc(true, 8, seed=4)
    # In one dimension every |cosine| is 1, and signed ones are ±1.
    assert chance_mcc(torch.ones(3, 1), 3) == 1.0
    assert chance_mcc(torch.ones(3, 1), 3, absolute=False, draws=8) < 1.0


def _code(rows: list[list[tuple[int, float]]], width: int) -> Code:
    """Rows of (unit, value), padded with unit 0 at gate 0."""
    unit, gate = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        for slot, (j, value) in enumerate(row):
            unit[i, slot], gate[i, slot] = j, value
    return Code(unit, gate, torch.ones_like(gate))


def test_f1_of_two_detectors():
    # Feature 0 is present in rows 0, 1, 2 and its latent 5 fires in 1, 2, 3: 2·2/(3 + 3) = 2/3.
    # Feature 1 is present in row 0 and its latent 9 fires in 0 and 3: 2·1/(1 + 2) = 2/3.
    # Feature 2 is present in row 3; its latent 7 never fires: 0.
    truth = _code([[(0, 1.0), (1, 1.0)], [(0, 2.0)], [(0, 1.0)], [(2, 1.0)]], 2)
    code = _code([[(9, 1.0)], [(5, -1.0)], [(5, 1.0), (3, 1.0)], [(5, 1.0), (9, 0.5)]], 3)
    counts = DetectorCounts(torch.tensor([5, 9, 7]))
    counts.update(truth, code)
    assert counts.present.tolist() == [3, 1, 1]
    assert counts.fires.tolist() == [3, 2, 0]
    assert counts.both.tolist() == [2, 1, 0]
    assert counts.f1.tolist() == pytest.approx([2 / 3, 2 / 3, 0.0], rel=1e-15)
    assert counts.mean_f1 == pytest.approx(4 / 9, rel=1e-15)


def test_values_of_zero_are_neither_present_nor_fired():
    truth = _code([[(0, 0.0), (1, 1.0)]], 2)
    code = Code(torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
    counts = DetectorCounts(torch.tensor([0, 1]))
    counts.update(truth, code)
    assert counts.present.tolist() == [0, 1]
    assert counts.fires.tolist() == [0, 0]


def test_features_never_present_are_not_scored():
    # Feature 1 is absent, though its latent fires; feature 0 is found: mean 1, not 1/2.
    counts = DetectorCounts(torch.tensor([0, 1]))
    counts.update(_code([[(0, 1.0)]], 1), _code([[(0, 1.0), (1, 1.0)]], 2))
    assert counts.f1.isnan().tolist() == [False, True]
    assert counts.mean_f1 == 1.0


def test_nothing_present_at_all():
    counts = DetectorCounts(torch.tensor([0, 1]))
    counts.update(_code([[], []], 0), _code([[(0, 1.0)], []], 1))
    assert counts.rows == 2
    with pytest.raises(DataError, match="found none in 2 rows"):
        _ = counts.mean_f1


def test_a_feature_without_a_latent_is_missed():
    counts = DetectorCounts(torch.tensor([-1, 0]))
    # Latent 0 in row 0 must not pass for latent −1 of row 1: keys of rows do not run together.
    counts.update(_code([[(1, 1.0)], [(0, 1.0)]], 1), _code([[(0, 1.0)], []], 1))
    assert counts.f1.tolist() == [0.0, 1.0]
    assert counts.fires.tolist() == [0, 1]


def test_two_features_may_share_a_latent():
    # It fires in rows 0 and 1, each feature is there once: 2·1/(1 + 2) both.
    counts = DetectorCounts(torch.tensor([4, 4]))
    counts.update(_code([[(0, 1.0)], [(1, 1.0)]], 1), _code([[(4, 1.0)], [(4, 1.0)]], 1))
    assert counts.f1.tolist() == pytest.approx([2 / 3, 2 / 3], rel=1e-15)


@given(st.integers(0, 1000), st.sampled_from([1, 7, 63]))
def test_batches_add_up_to_the_dense_counts(seed: int, size: int):
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(63, 5, generator=generator) < 0.3
    fired = torch.rand(63, 8, generator=generator) < 0.3
    latent = torch.randint(-1, 8, (5,), generator=generator)
    counts = DetectorCounts(latent)
    every = torch.arange(8)
    for on, off in zip(present.split(size), fired.split(size)):
        shape = (on.shape[0], 5)
        truth = Code(every[:5].expand(shape), on.float(), torch.ones(shape))
        code = Code(every.expand(off.shape), off.float(), torch.ones(off.shape))
        counts.update(truth, code)
    seen = torch.where(latent >= 0, fired[:, latent.clamp_min(0)], False)
    assert counts.rows == 63
    assert counts.present.tolist() == present.sum(0).tolist()
    assert counts.fires.tolist() == seen.sum(0).tolist()
    assert counts.both.tolist() == (seen & present).sum(0).tolist()


def test_an_oracle_has_f1_of_one_and_always_on_the_base_rate():
    present = torch.rand(400, 1) < 0.25
    share = present.float().mean().item()
    unit, ones = torch.zeros(400, 1, dtype=torch.long), torch.ones(400, 1)
    truth = Code(unit, present.float(), ones)
    oracle, always = DetectorCounts(torch.tensor([0])), DetectorCounts(torch.tensor([0]))
    oracle.update(truth, truth)
    always.update(truth, Code(unit, ones, ones))
    assert oracle.mean_f1 == 1.0
    # Precision π, recall 1: 2π/(1 + π).
    assert always.mean_f1 == pytest.approx(2 * share / (1 + share), rel=1e-6)
