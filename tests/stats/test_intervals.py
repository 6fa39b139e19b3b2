"""Student quantiles against tables, the worked interval, the bootstrap against its theory."""

import math

import pytest
import torch

from pellucid.stats.intervals import (
    Interval,
    document_bootstrap,
    seed_interval,
    student_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (10, 2.228), (30, 2.042)],
)
def test_quantiles_of_the_printed_table(freedom: int, quantile: float):
    # Tables print three decimals.
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=5e-4)


def test_closed_forms():
    # ν = 1 is Cauchy: t = tan(π(p − ½)). ν = 2: t = (2p − 1)·√(2 / (1 − (2p − 1)²)).
    assert student_quantile(0.9, 1) == pytest.approx(math.tan(math.pi * 0.4), rel=1e-12)
    assert student_quantile(0.9, 2) == pytest.approx(0.8 * math.sqrt(2 / 0.36), rel=1e-12)
    assert student_quantile(0.5, 5) == pytest.approx(0.0, abs=1e-12)


def test_three_seeds_with_a_document_error():
    # s = .02; SE² = .0004/3 + .000025 = .00015833; 4.3027 · .012583 = .05414
    found = seed_interval([0.10, 0.12, 0.14], document_error=0.005)
    assert found.mean == pytest.approx(0.120, abs=1e-12)
    assert found.half_width == pytest.approx(0.05414, abs=5e-6)
    assert (found.low, found.high) == pytest.approx((0.06586, 0.17414), abs=5e-6)


def test_equal_seeds_leave_the_document_error():
    # s = 0: 2.7764 · .01
    found = seed_interval([0.3] * 5, document_error=0.01)
    assert found.half_width == pytest.approx(0.027764, abs=1e-6)


def test_one_seed_has_no_interval():
    assert seed_interval([0.3]) == Interval(mean=0.3, half_width=math.inf)


def test_a_wider_level_is_wider():
    values = [0.1, 0.2, 0.4]
    assert seed_interval(values, level=0.99).half_width > seed_interval(values).half_width


def test_bootstrap_of_a_ratio():
    # Σ nats / Σ bytes of documents with equal bytes is a mean: SE = σ/√n with σ over n documents.
    nats = torch.tensor([1.0, 2.0, 3.0, 6.0] * 25)
    statistics = torch.stack([nats, torch.full_like(nats, 2.0)], dim=1)
    drawn = document_bootstrap(statistics, lambda s: s[:, 0] / s[:, 1], resamples=4000)
    expected = (nats / 2).double().std(correction=0).item() / 10
    assert drawn.shape == (4000,)
    assert drawn.mean().item() == pytest.approx(1.5, abs=0.01)
    # The standard deviation of 4,000 draws is known to 1/√8000 ≈ 1.1 %; four deviations.
    assert drawn.std().item() == pytest.approx(expected, rel=0.045)


def test_bootstrap_pairs_subjects():
    one = torch.rand(50, 1)
    first = document_bootstrap(one, lambda s: s[:, 0], resamples=20, seed=3)
    second = document_bootstrap(one + 1.0, lambda s: s[:, 0], resamples=20, seed=3)
    # The same documents are drawn, so each resample of 50 differs by 50 exactly (float32 input).
    assert (second - first).tolist() == pytest.approx([50.0] * 20, abs=1e-5)


def test_equal_documents_have_no_error():
    drawn = document_bootstrap(torch.full((9, 1), 2.0), lambda s: s[:, 0], resamples=5)
    assert drawn.tolist() == [18.0] * 5
