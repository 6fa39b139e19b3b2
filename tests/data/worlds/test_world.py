"""The parts that worlds are made of: streams, directions, amplitudes, noise, checks."""

import math

import numpy as np
import pytest
import torch

from pellucid.core.errors import ConfigError
from pellucid.data.worlds.world import (
    World,
    add_noise,
    amplitudes,
    check_amplitude,
    check_field,
    gaussian_directions,
    row_generator,
    sparse_directions,
    structure_generator,
    zipf_weights,
)


def test_a_world_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        World(torch.eye(2))  # pyright: ignore[reportAbstractUsage]


def test_streams_are_told_apart_by_seed_and_step():
    first = {
        (seed, step): row_generator(seed, step).random() for seed in range(5) for step in range(5)
    }
    structure = {seed: structure_generator(seed).random() for seed in range(5)}
    assert len({*first.values(), *structure.values()}) == 30
    assert row_generator(3, 4).random() == first[3, 4]
    assert structure_generator(3).random() == structure[3]


def test_seeds_beyond_32_bits_are_not_cut():
    assert row_generator(2**40 + 1, 0).random() != row_generator(1, 0).random()


def test_gaussian_directions_are_unit_and_uniform():
    rows = gaussian_directions(np.random.default_rng(0), 4000, 3)
    assert rows.dtype == torch.float32
    # Float32 rounding of unit rows.
    assert rows.norm(dim=1).sub(1).abs().max() < 1e-6
    # A coordinate has mean 0 and mean square 1/3: standard errors .577/√4000 = .009 and
    # √(1/5 − 1/9)/√4000 = .0047; four of them.
    assert rows.mean(0).abs().max() < 0.037
    assert rows.square().mean(0).sub(1 / 3).abs().max() < 0.019


@pytest.mark.parametrize("support", [1, 3, 7])
def test_sparse_directions_have_equal_entries_on_few_places(support: int):
    rows = sparse_directions(np.random.default_rng(0), 500, 7, support)
    assert (rows != 0).sum(1).unique().tolist() == [support]
    entries = rows[rows != 0].abs()
    assert entries.tolist() == pytest.approx([support**-0.5] * len(entries), rel=1e-6)
    # Each place is used support/7 of the time and each sign half: five binomial deviations.
    share = support / 7
    used = (rows != 0).double().mean(0)
    assert (used - share).abs().max() <= 5 * math.sqrt(share * (1 - share) / 500)
    positive = (rows > 0).sum().item() / (500 * support)
    assert abs(positive - 0.5) < 5 * 0.5 / math.sqrt(500 * support)


@pytest.mark.parametrize(
    ("kind", "spread", "square"),
    [
        ("constant", 0.7, 1.0),
        ("uniform", 0.5, 1 + 0.25 / 3),  # 1 + s²/3
        ("uniform", 0.0, 1.0),
        ("lognormal", 0.5, math.exp(0.25)),  # exp(s²)
    ],
)
def test_amplitudes_have_mean_one(kind: str, spread: float, square: float):
    drawn = amplitudes(np.random.default_rng(0), 100_000, kind, spread)
    assert drawn.dtype == torch.float32
    assert drawn.min() > 0
    deviation = math.sqrt(square - 1)
    # Five standard errors; float32 rounding where nothing varies.
    assert abs(drawn.mean().item() - 1) < 5 * deviation / math.sqrt(1e5) + 1e-6
    # The lognormal's square has relative deviation √(e^{4s²} − 1) = 1.31: five errors are .021.
    assert drawn.square().mean().item() == pytest.approx(square, rel=0.021)


def test_uniform_amplitudes_stay_in_their_range():
    drawn = amplitudes(np.random.default_rng(0), 10_000, "uniform", 0.25)
    assert 0.75 <= drawn.min() < 0.76
    assert 1.24 < drawn.max() <= 1.25


def test_noise_has_the_norm_asked_for():
    x = torch.full((4000, 9), 2.0)
    noise = add_noise(np.random.default_rng(0), x, 0.3) - x
    # ‖ε‖² is .09·χ²₉/9: relative deviation √(2/9)/√4000 = .0075; four of them.
    assert noise.square().sum(1).mean().item() == pytest.approx(0.09, rel=0.03)
    assert noise.mean().abs() < 4 * 0.1 / math.sqrt(36_000)


def test_no_noise_draws_nothing():
    rng = np.random.default_rng(0)
    x = torch.ones(2, 2)
    assert add_noise(rng, x, 0.0) is x
    assert rng.random() == np.random.default_rng(0).random()


def test_zipf_weights():
    assert zipf_weights(3, 1.0).tolist() == pytest.approx([1.0, 1 / 2, 1 / 3], rel=1e-15)
    assert zipf_weights(2, 0.0).tolist() == [1.0, 1.0]


def test_a_failed_check_names_field_expectation_and_cure():
    with pytest.raises(ConfigError) as caught:
        check_field(False, "d", "at least 1", 0, "raise d")
    assert str(caught.value) == "d: expected at least 1, found 0; raise d"
    check_field(True, "d", "at least 1", 1, "raise d")


@pytest.mark.parametrize(("kind", "spread"), [("uniform", 1.0), ("lognormal", -0.1)])
def test_amplitudes_that_could_vanish_are_refused(kind: str, spread: float):
    with pytest.raises(ConfigError, match="spread: expected 0 or more"):
        check_amplitude(kind, spread)


def test_amplitudes_that_cannot_vanish_are_allowed():
    check_amplitude("uniform", 0.99)
    check_amplitude("lognormal", 3.0)
