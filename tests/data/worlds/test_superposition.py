"""x is what its truth says; rows are a function of seed and step; rates, signs, atoms, refusals."""

import math
from dataclasses import replace

import pytest
import torch

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.data.worlds.superposition import FORMS, Superposition, SuperpositionConfig
from pellucid.data.worlds.world import WorldRows


def _dense(world: Superposition, rows: WorldRows) -> torch.Tensor:
    """Coefficients [rows, features]; padding adds nothing."""
    table = torch.zeros(rows.x.shape[0], world.num_features)
    return table.scatter_add_(1, rows.truth.unit, rows.truth.value)


@pytest.mark.parametrize("name", FORMS)
def test_rows_are_the_sum_of_their_features(name: str):
    world = FORMS[name].build()
    rows = world.sample(200, seed=0, step=0)
    expected = _dense(world, rows).double() @ world.directions.double()
    # Float32 sums of some 8 unit directions.
    assert (rows.x - expected).abs().max() < 1e-5
    assert rows.y is rows.x
    assert world.reads is None
    assert (world.d, world.num_features) == (64, 256)
    assert rows.x.shape == (200, 64)


@pytest.mark.parametrize("name", FORMS)
def test_counts_are_binomial_at_the_exact_rates(name: str):
    world = FORMS[name].build()
    rates = world.forest.rates
    # Sums of exact rates, to float64 rounding.
    assert rates.sum().item() == pytest.approx(8.0, rel=1e-12)
    rows = world.sample(20_000, seed=1, step=0)
    present = _dense(world, rows) != 0
    error = (present.double().mean(0) - rates).abs()
    # Rows are independent: 5.5 binomial deviations, of 256 features.
    assert bool((error <= 5.5 * (rates * (1 - rates) / 20_000).sqrt()).all())
    count = present.sum(1).double()
    assert count.mean().item() == pytest.approx(8.0, abs=4.5 * count.std().item() / 20_000**0.5)


def test_rows_are_a_function_of_seed_and_step():
    config = SuperpositionConfig.tiny()
    first = config.build().sample(50, seed=3, step=7)
    world = config.build()
    world.sample(9, seed=3, step=6)
    torch.rand(5)
    again = world.sample(50, seed=3, step=7)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.truth.unit, again.truth.unit)
    assert torch.equal(first.truth.act, again.truth.act)
    assert not torch.equal(first.x, world.sample(50, seed=3, step=8).x)
    assert not torch.equal(first.x, world.sample(50, seed=4, step=7).x)


def test_the_world_seed_moves_the_directions():
    one, other = FORMS["flat"].build(), replace(FORMS["flat"], seed=1).build()
    assert not torch.equal(one.directions, other.directions)
    assert torch.equal(one.forest.rates, other.forest.rates)


def test_zipf_makes_early_features_common():
    rates = FORMS["flat"].build().forest.rates
    # Weights are rank^-½ and none is capped: rank 4 is half as common as rank 1, rank 256 1/16.
    assert (rates[3] / rates[0]).item() == pytest.approx(0.5, rel=1e-12)
    assert (rates[255] / rates[0]).item() == pytest.approx(1 / 16, rel=1e-12)


def test_a_tree_has_exclusive_siblings_below_present_parents():
    world = FORMS["tree"].build()
    present = _dense(world, world.sample(5000, seed=0, step=0)) != 0
    roots = world.forest.levels[1]
    parent = world.forest.parent[roots:]
    assert len(world.forest.levels) == 4
    assert not bool((present[:, roots:] & ~present[:, parent]).any())
    siblings = torch.zeros(5000, 256, dtype=torch.long)
    siblings.index_add_(1, parent, present[:, roots:].long())
    assert siblings.max() == 1


def test_coefficients_have_either_sign_only_if_signed():
    signed, flat = FORMS["signed"].build(), FORMS["flat"].build()
    value = signed.sample(2000, seed=0, step=0).truth.value
    entries = value[value != 0]
    # Half are negative: four binomial deviations of some 16,000 entries.
    share = (entries < 0).double().mean().item()
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(len(entries))
    assert flat.sample(2000, seed=0, step=0).truth.value.min() >= 0


def test_atoms_of_the_expander_form_are_sparse():
    directions = FORMS["expander"].build().directions
    assert (directions != 0).sum(1).unique().tolist() == [7]
    assert directions[directions != 0].abs().unique().tolist() == pytest.approx([7**-0.5], rel=1e-6)
    assert (FORMS["flat"].build().directions != 0).all()


@pytest.mark.parametrize("name", FORMS)
def test_directions_are_unit(name: str):
    # Float32 rounding of unit rows.
    assert FORMS[name].build().directions.norm(dim=1).sub(1).abs().max() < 1e-6


def test_noise_is_what_the_features_leave():
    world = replace(FORMS["flat"], noise=0.5).build()
    rows = world.sample(2000, seed=0, step=0)
    rest = rows.x - _dense(world, rows) @ world.directions
    # .25·χ²₆₄/64 has relative deviation √(2/64)/√2000 = .004; four of them.
    assert rest.square().sum(1).mean().item() == pytest.approx(0.25, rel=0.016)
    assert rows.y is rows.x


def test_truth_is_padded_to_the_fullest_row():
    rows = SuperpositionConfig.tiny().build().sample(300, seed=0, step=0)
    count = (rows.truth.value != 0).sum(1)
    assert count.max() == rows.truth.unit.shape[1]
    assert count.min() == 0
    # Entries come first and in ascending order; what follows is silent.
    slot = torch.arange(rows.truth.unit.shape[1])
    assert torch.equal(rows.truth.gate, (slot < count[:, None]).float())
    assert torch.equal(rows.truth.gate != 0, rows.truth.value != 0)
    step = rows.truth.unit.diff(dim=1)[rows.truth.gate[:, 1:] == 1]
    assert bool((step > 0).all())


def test_rows_without_any_feature_are_zero():
    config = SuperpositionConfig(d=4, features=3, l0=1e-6)
    rows = config.build().sample(5, seed=0, step=0)
    assert rows.truth.unit.shape == (5, 0)
    assert torch.equal(rows.x, torch.zeros(5, 4))


def test_correlated_features_meet_more_or_less_often():
    config = SuperpositionConfig(features=30, l0=6.0, zipf=0.0, correlation=0.9, correlation_rank=2)
    world = config.build()
    present = (_dense(world, world.sample(20_000, seed=0, step=0)) != 0).double()
    both = (present.t() @ present / 20_000 / 0.2**2).fill_diagonal_(1.0)
    loading = world.forest.loading[world.forest.group]
    near = (loading @ loading.t()).fill_diagonal_(0.0)
    # Rates are .2, so independent pairs meet at .04, known to 3.5 % a pair.
    assert both[near > 0.9].min() > 1.5
    assert both[near < -0.9].max() < 0.5
    flat = replace(config, correlation=0.0).build()
    present = (_dense(flat, flat.sample(20_000, seed=0, step=0)) != 0).double()
    both = (present.t() @ present / 20_000 / 0.2**2).fill_diagonal_(1.0)
    assert (both - 1).abs().max() < 0.18


def test_worlds_scale():
    world = replace(FORMS["tree"], d=128, features=1024, l0=20.0).build()
    assert world.forest.rates.sum().item() == pytest.approx(20.0, rel=1e-12)
    assert world.sample(3, seed=0, step=0).x.shape == (3, 128)


@pytest.mark.parametrize("config", [SuperpositionConfig.tiny(), *FORMS.values()])
def test_configs_survive_json(config: SuperpositionConfig):
    assert from_dict(SuperpositionConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("d", 0, "d: expected at least 1, found 0"),
        ("features", 0, "features: expected at least 1"),
        ("exclusive_roots", 0, "exclusive_roots: expected at least 1"),
        ("correlation_rank", 0, "correlation_rank: expected at least 1"),
        ("depth", 0, "depth: expected at least 1"),
        ("branching", 0, "branching: expected at least 1"),
        ("l0", 0.0, "l0: expected more than 0"),
        ("l0", math.nan, "l0: expected more than 0"),
        ("max_rate", 1.5, r"max_rate: expected a rate in \(0, 1\]"),
        ("child_rate", 0.0, r"child_rate: expected a rate in \(0, 1\]"),
        ("zipf", -1.0, "zipf: expected 0 or more"),
        ("noise", -0.1, "noise: expected 0 or more"),
        ("seed", -1, "seed: expected 0 or more"),
        ("correlation", 1.0, r"correlation: expected in \[0, 1\)"),
        ("support", 65, "support: expected 0 to d = 64, found 65"),
        ("spread", 1.0, "spread: expected"),
        ("depth", 257, "depth: expected at most features = 256, found 257"),
    ],
)
def test_what_cannot_be_built_is_refused(field: str, value: float, message: str):
    with pytest.raises(ConfigError, match=message):
        from_dict(SuperpositionConfig, {field: value})


def test_an_l0_out_of_reach_is_refused_when_built():
    with pytest.raises(ConfigError, match="l0: expected at most 128, found 129"):
        SuperpositionConfig(l0=129.0).build()


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_least_features_of_a_depth(depth: int):
    # One root with one child after another: depth features are enough for branching 1.
    config = SuperpositionConfig(features=depth, l0=0.5, depth=depth, branching=1)
    assert config.build().forest.levels == tuple(range(depth + 1))
    with pytest.raises(ConfigError, match="depth: expected at most features"):
        SuperpositionConfig(features=depth - 1, l0=0.5, depth=depth, branching=1)
