"""Rates solved by hand, structure by rule, and counts against the rates they must have."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError
from pellucid.data.worlds import presence
from pellucid.data.worlds.presence import Forest, ForestShape

FLAT = ForestShape(
    features=3,
    l0=1.0,
    zipf=1.0,
    max_rate=0.9,
    exclusive_roots=1,
    depth=1,
    branching=1,
    child_rate=0.5,
    exclusive_children=True,
    correlation=0.0,
    rank=1,
)


def _grow(shape: ForestShape, seed: int = 0) -> Forest:
    return shape.grow(np.random.default_rng(seed))


def _presences(forest: Forest, rows: int, seed: int = 0) -> torch.Tensor:
    """A dense [rows, features] table of presences."""
    row, feature = forest.draw(rows, np.random.default_rng(seed))
    table = torch.zeros(rows, forest.parent.shape[0], dtype=torch.bool)
    table[row, feature] = True
    return table


def _assert_rates(table: torch.Tensor, rates: torch.Tensor) -> None:
    """Rows are independent, so each count is binomial; 5.5 deviations fail once in 26 million."""
    rows = table.shape[0]
    error = (table.double().mean(0) - rates).abs()
    assert bool((error <= 5.5 * (rates * (1 - rates) / rows).sqrt() + 1e-12).all())


def test_flat_zipf_rates():
    # Weights 1, 1/2, 1/3 sum to 11/6; for a sum of 1 they are 6/11, 3/11, 2/11.
    rates = _grow(FLAT).rates
    assert rates.tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11], rel=1e-14)


def test_a_cap_hands_its_excess_to_the_others():
    # 6/11 > .5 is capped; .5 is left for weights 1/2 and 1/3 (sum 5/6), scale .6: .3 and .2.
    rates = _grow(replace(FLAT, max_rate=0.5)).rates
    assert rates.tolist() == pytest.approx([0.5, 0.3, 0.2], rel=1e-14)


def test_all_at_the_cap():
    assert _grow(replace(FLAT, max_rate=0.5, l0=1.5)).rates.tolist() == [0.5, 0.5, 0.5]
    # 300 · .1 is no exact product, yet the target is within reach.
    shape = replace(FLAT, features=300, max_rate=0.1, l0=30.0)
    assert _grow(shape).rates.sum().item() == pytest.approx(30.0, rel=1e-12)


def test_more_than_the_cap_allows_is_refused():
    with pytest.raises(ConfigError, match=r"l0: expected at most 1\.5, found 1\.6; lower l0"):
        _grow(replace(FLAT, max_rate=0.5, l0=1.6))


def test_a_tree_by_hand():
    # 6 features, 2 levels of 2: 2 roots and 4 children, dealt in turn: parents 0, 1, 0, 1.
    # Siblings have weights 1, 1/2, so q = .75·2/3 = .5 and .75·1/3 = .25. A present root brings
    # 1.75 in all; l0 = 1.3125 leaves .75 for the roots: .5 and .25.
    shape = replace(FLAT, features=6, l0=1.3125, depth=2, branching=2, child_rate=0.75)
    forest = _grow(shape)
    assert forest.levels == (0, 2, 6)
    assert forest.parent.tolist() == [-1, -1, 0, 1, 0, 1]
    assert forest.rates.tolist() == pytest.approx(
        [0.5, 0.25, 0.25, 0.125, 0.125, 0.0625], rel=1e-14
    )
    # The children of one parent share a group, on [0, .5) and [.5, .75).
    assert forest.group[2:].tolist() == [2, 3, 2, 3]
    assert forest.low.tolist() == pytest.approx([0, 0, 0, 0, 0.5, 0.5], abs=1e-15)
    alone = _grow(replace(shape, exclusive_children=False))
    assert alone.group.unique().shape[0] == 6
    assert alone.low.tolist() == [0.0] * 6
    assert torch.equal(alone.rates, forest.rates)


def test_the_last_level_takes_what_is_left():
    # Full trees of 1 + 4 + 16 = 21: 256 features need 13, then 52 children, and 191 are left.
    shape = replace(FLAT, features=256, l0=8.0, depth=3, branching=4)
    assert shape.levels == (0, 13, 65, 256)
    forest = _grow(shape)
    children = torch.bincount(forest.parent[65:] - 13, minlength=52)
    assert children.min() >= 3
    assert children.max() == 4


def test_every_level_has_a_feature():
    # One chain of 3 is too short for 4, so there are 2 roots; 2 children would leave no level 3.
    shape = replace(FLAT, features=4, depth=3, branching=1)
    assert shape.levels == (0, 2, 3, 4)
    assert replace(shape, features=3).levels == (0, 1, 2, 3)
    assert replace(shape, features=5).levels == (0, 2, 4, 5)


def test_exclusive_roots_share_one_interval():
    # Equal rates 1/4 in pairs: one of each pair on [0, .25), the other on [.25, .5).
    forest = _grow(replace(FLAT, features=4, zipf=0.0, exclusive_roots=2))
    assert torch.bincount(forest.group).tolist() == [2, 2]
    for group in range(2):
        assert forest.low[forest.group == group].sort().values.tolist() == [0.0, 0.25]


def test_the_cap_holds_for_a_group():
    # A group of 2 may be present at most half the time, so 4 features in pairs reach 1 in all.
    shape = replace(FLAT, features=4, zipf=0.0, exclusive_roots=2, max_rate=0.5, l0=1.0)
    assert _grow(shape).rates.tolist() == pytest.approx([0.25] * 4, rel=1e-14)
    with pytest.raises(ConfigError, match="l0: expected at most 1,"):
        _grow(replace(shape, l0=1.01))


SHAPES = {
    "flat": replace(FLAT, features=40, l0=5.0, zipf=0.5),
    "exclusive": replace(FLAT, features=40, l0=4.0, zipf=0.5, exclusive_roots=3),
    "correlated": replace(FLAT, features=40, l0=5.0, zipf=0.5, correlation=0.7, rank=3),
    "tree": replace(FLAT, features=40, l0=4.0, depth=3, branching=3, child_rate=0.8),
    "all": replace(
        FLAT,
        features=40,
        l0=3.0,
        zipf=0.5,
        exclusive_roots=2,
        depth=2,
        branching=3,
        exclusive_children=False,
        correlation=0.5,
        rank=2,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_counts_have_their_rates(name: str):
    forest = _grow(SHAPES[name])
    table = _presences(forest, 40_000)
    _assert_rates(table, forest.rates)
    count = table.sum(1).double()
    error = count.std().item() / math.sqrt(40_000)
    assert count.mean().item() == pytest.approx(SHAPES[name].l0, abs=4.5 * error)


@pytest.mark.parametrize("name", SHAPES)
def test_children_need_their_parent_and_siblings_exclude(name: str):
    forest = _grow(SHAPES[name])
    table = _presences(forest, 20_000)
    child = torch.arange(forest.levels[1], 40)
    assert not bool((table[:, child] & ~table[:, forest.parent[child]]).any())
    in_group = torch.zeros(20_000, 1 + int(forest.group.max()), dtype=torch.long)
    in_group.index_add_(1, forest.group, table.long())
    assert in_group.max() == 1


def test_exclusion_is_what_a_free_forest_lacks():
    """The counterpart: without groups, siblings do meet."""
    shape = replace(FLAT, features=6, l0=2.5, depth=2, branching=2, child_rate=0.9)
    table = _presences(_grow(replace(shape, exclusive_children=False)), 2000)
    assert bool((table[:, 2] & table[:, 4]).any())


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_correlation_by_the_orthant_formula(seed: int):
    # Two features at rate ½ with draws correlated r: P(both) = 1/4 + arcsin(r)/2π. One common
    # factor has loadings ±1, so r = ±.6 and arcsin(.6)/2π = .1024.
    shape = replace(FLAT, features=2, zipf=0.0, correlation=0.6, rank=1)
    forest = _grow(shape, seed)
    r = 0.6 * forest.loading.prod().item()
    table = _presences(forest, 40_000)
    both = table.all(1).double().mean().item()
    expected = 0.25 + math.asin(r) / (2 * math.pi)
    # Five binomial deviations.
    assert abs(both - expected) < 5 * math.sqrt(expected * (1 - expected) / 40_000)


def test_loadings_are_unit():
    forest = _grow(SHAPES["all"])
    roots = forest.levels[1]
    assert forest.loading.shape == (math.ceil(roots / 2), 2)
    assert forest.loading.norm(dim=1).tolist() == pytest.approx([1.0] * math.ceil(roots / 2))


def test_chunks_cover_all_rows_in_order(monkeypatch: pytest.MonkeyPatch):
    # 7 rows of 40 features a chunk, the last one short.
    monkeypatch.setattr(presence, "CHUNK_ELEMENTS", 7 * 40)
    forest = _grow(SHAPES["all"])
    rows = 7003
    row, feature = forest.draw(rows, np.random.default_rng(1))
    key = row * 40 + feature
    assert bool((key[1:] > key[:-1]).all())
    table = torch.zeros(rows, 40, dtype=torch.bool)
    table[row, feature] = True
    _assert_rates(table, forest.rates)
    assert bool(table[-3:].any())


@given(
    features=st.integers(4, 60),
    fill=st.floats(0.05, 1.0),
    zipf=st.floats(0.0, 2.0),
    max_rate=st.floats(0.1, 1.0),
    exclusive_roots=st.integers(1, 4),
    depth=st.integers(1, 3),
    branching=st.integers(1, 3),
    child_rate=st.floats(0.05, 1.0),
    exclusive_children=st.booleans(),
)
def test_any_shape_reaches_its_l0_exactly(
    features: int,
    fill: float,
    zipf: float,
    max_rate: float,
    exclusive_roots: int,
    depth: int,
    branching: int,
    child_rate: float,
    exclusive_children: bool,
):
    shape = ForestShape(
        features=features,
        l0=1.0,
        zipf=zipf,
        max_rate=max_rate,
        exclusive_roots=exclusive_roots,
        depth=depth,
        branching=branching,
        child_rate=child_rate,
        exclusive_children=exclusive_children,
        correlation=0.0,
        rank=1,
    )
    groups = -(-shape.levels[1] // exclusive_roots)
    # Each root brings itself at least, so this share of the groups' caps is within reach.
    shape = replace(shape, l0=fill * max_rate * groups)
    forest = _grow(shape)
    # Every level is filled and every feature placed.
    assert forest.levels[-1] == features
    assert all(start < stop for start, stop in zip(forest.levels, forest.levels[1:]))
    # Float64 rounding of at most 60 terms.
    assert forest.rates.sum().item() == pytest.approx(shape.l0, rel=1e-11)
    assert bool((forest.rates > 0).all())
    in_group = torch.zeros(1 + int(forest.group.max()), dtype=torch.float64)
    in_group.index_add_(0, forest.group, forest.conditional)
    assert in_group[:groups].max().item() <= max_rate * (1 + 1e-12)
    assert in_group.max().item() <= max(max_rate, child_rate) * (1 + 1e-12)
    assert bool((forest.low >= 0).all())
    assert (forest.low + forest.conditional).max().item() <= 1 + 1e-12
    parents = forest.parent[forest.levels[1] :]
    assert bool((parents >= 0).all())
    assert bool((parents < torch.arange(forest.levels[1], features)).all())
