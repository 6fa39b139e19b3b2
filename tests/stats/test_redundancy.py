"""Shares of near twins by hand, strictness, groups, tiles, and what chance leaves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.stats.redundancy import Redundancy, random_redundancy, redundancy


def _at(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack((angle.cos(), angle.sin()), dim=1)


def test_four_directions_of_the_plane():
    # Nearest: 0° and 30° see each other at cos 30° = .866; 90° sees 30° at .5; 180° sees 90° at 0.
    found = redundancy(_at(0, 30, 90, 180))
    assert found.overall == (0.5, 0.5, 0.0)
    assert found.rows == 4
    # Signed, 180° and 0° are one line: nearest 1, .866, .5, 1.
    assert redundancy(_at(0, 30, 90, 180), signed=True).overall == (0.75, 0.75, 0.5)


def test_lengths_do_not_matter():
    rows = _at(0, 30, 90, 180) * torch.tensor([[2.0], [1e-3], [7.0], [1e4]])
    assert redundancy(rows).overall == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_threshold_reached_is_not_exceeded(dtype: torch.dtype):
    # (1, 0) and (4, 3)/5: cosine .8, which is not > .8.
    rows = torch.tensor([[1.0, 0.0], [4.0, 3.0]], dtype=dtype)
    assert redundancy(rows).overall == (1.0, 0.0, 0.0)
    assert redundancy(rows, thresholds=(0.79,)).overall == (1.0,)


def test_half_precision_is_compared_in_float32():
    rows = torch.tensor([[1.0, 0.0], [4.0, 3.0]], dtype=torch.bfloat16)
    # In bfloat16 the quotient 4/5 is .80078, above .8.
    assert redundancy(rows).overall == (1.0, 0.0, 0.0)


def test_dead_rows_are_nobodys_twin():
    rows = _at(0, 1, 90, 91)
    live = torch.tensor([True, False, True, True])
    # 0° has lost its twin; 90° and 91° have one another: 2 of 3.
    found = redundancy(rows, live=live)
    assert found.overall == (2 / 3, 2 / 3, 2 / 3)
    assert found.rows == 3


def test_within_and_across_groups():
    # Groups A: 0°, 5°, 180°. B: 3°, 90°. Nearest within: cos 5° (0°, 5°), cos 175° < 0, 0, 0
    # (3° and 90° at .05). Nearest across: 0° and 5° to 3° at > .99, 180° to 90° at 0; 3° to 0°.
    group = torch.tensor([0, 0, 0, 1, 1])
    found = redundancy(_at(0, 5, 180, 3, 90), group=group)
    assert found.within == (0.4, 0.4, 0.4)
    assert found.across == (0.6, 0.6, 0.6)
    assert found.overall == (0.6, 0.6, 0.6)


def test_groups_follow_the_live_rows():
    rows, group = _at(0, 1, 90, 2), torch.tensor([0, 0, 1, 1])
    live = torch.tensor([True, False, True, True])
    # Live: 0° of A; 90° and 2° of B. 0° and 2° are near, in different groups.
    found = redundancy(rows, group=group, live=live)
    assert found.within == (0.0, 0.0, 0.0)
    assert found.across == (2 / 3, 2 / 3, 2 / 3)


def test_without_groups_there_is_no_within():
    found = redundancy(_at(0, 30))
    assert found.within is None
    assert found.across is None
    assert found.figures() == {"redundancy_70": 1.0, "redundancy_80": 1.0, "redundancy_90": 0.0}


def test_figures_are_named_by_per_cent():
    found = Redundancy(
        rows=4, thresholds=(0.7, 0.95), overall=(0.5, 0.25), within=(0.0, 0.0), across=(0.5, 0.25)
    )
    assert found.figures() == {
        "redundancy_70": 0.5,
        "redundancy_95": 0.25,
        "redundancy_within_70": 0.0,
        "redundancy_within_95": 0.0,
        "redundancy_across_70": 0.5,
        "redundancy_across_95": 0.25,
    }


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_have_no_twins(count: int):
    found = redundancy(torch.ones(count, 3))
    assert found.overall == (0.0, 0.0, 0.0)
    assert found.rows == count


def test_zero_rows_have_no_direction():
    # A transcoder's decoder starts at 0: no row of it is another's twin.
    assert redundancy(torch.zeros(4, 3)).overall == (0.0, 0.0, 0.0)


@settings(max_examples=40)
@given(
    st.integers(0, 500), st.sampled_from([1, 20, 63]), st.sampled_from([7, 16, 64]), st.booleans()
)
def test_tiles_do_not_matter(seed: int, count: int, chunk: int, signed: bool):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    group = torch.randint(3, (count,), generator=generator)
    whole = redundancy(rows, signed=signed, group=group, chunk=count)
    assert redundancy(rows, signed=signed, group=group, chunk=chunk) == whole
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2)
    cosine = (cosine.abs() if signed else cosine).fill_diagonal_(-1)
    naive = [(cosine.amax(1) > t).double().mean().item() for t in (0.7, 0.8, 0.9)]
    assert list(whole.overall) == naive


def test_no_square_of_all_rows_is_built(monkeypatch: pytest.MonkeyPatch):
    sizes = []
    multiply = torch.Tensor.__matmul__

    def watched(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        product = multiply(one, other)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    redundancy(torch.randn(100, 3), chunk=16)
    assert max(sizes) == 256
    assert sum(sizes) == 100 * 100


def test_a_sample_of_rows_sees_all_the_others():
    # 50 pairs of twins: every row has one, so any 10 of the 100 all have, though most of their
    # twins are not among the 10.
    rows = torch.randn(50, 64).repeat(2, 1)
    found = redundancy(rows, limit=10, seed=1)
    assert found.overall == (1.0, 1.0, 1.0)
    assert found.rows == 10
    assert redundancy(rows, limit=1000).rows == 100


def test_a_sample_estimates_the_share():
    # 30 of 100 orthogonal axes doubled: 60 of 130 rows have a twin.
    axes = torch.eye(100)
    rows = torch.cat((axes, axes[:30]))
    drawn = [redundancy(rows, limit=65, seed=seed).overall[0] for seed in range(40)]
    # Half of the rows without replacement: s² = .4615·.5385/65·(65/129) → s = .044; over 40: .007.
    assert sum(drawn) / 40 == pytest.approx(60 / 130, abs=4 * 0.007)
    assert len(set(drawn)) > 1


def test_random_directions_of_space():
    # In three dimensions a cosine is uniform on (−1, 1): among 19 others none is above τ with
    # probability ((1 + τ)/2)¹⁹, so the shares are 1 − .85¹⁹ = .9544, 1 − .9¹⁹ = .8649 and
    # 1 − .95¹⁹ = .6226.
    drawn = torch.tensor([random_redundancy(20, 3, seed=seed).overall for seed in range(200)])
    error = drawn.std(0) / 200**0.5
    expected = torch.tensor([1 - 0.85**19, 1 - 0.9**19, 1 - 0.95**19])
    assert bool(((drawn.mean(0) - expected).abs() < 4 * error).all()), drawn.mean(0)


def test_random_directions_of_either_sign():
    # |cos| is uniform on (0, 1): 1 − .7¹⁹, 1 − .8¹⁹, 1 − .9¹⁹.
    drawn = torch.tensor(
        [random_redundancy(20, 3, signed=True, seed=seed).overall for seed in range(200)]
    )
    error = drawn.std(0) / 200**0.5
    expected = torch.tensor([1 - 0.7**19, 1 - 0.8**19, 1 - 0.9**19])
    # Where all but a few draws are 1 the spread is known badly; one row in 4,000 is .00025.
    assert bool(((drawn.mean(0) - expected).abs() < 4 * error + 0.00025).all()), drawn.mean(0)


def test_the_reference_is_seeded_and_grouped():
    group = torch.arange(20) % 4
    first = random_redundancy(20, 3, group=group, seed=5)
    assert first == random_redundancy(20, 3, group=group, seed=5)
    assert first != random_redundancy(20, 3, group=group, seed=6)
    assert first.within is not None
    assert first.within[2] < first.overall[2]
