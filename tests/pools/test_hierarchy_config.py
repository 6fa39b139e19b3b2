"""What a hierarchy's config refuses, what it costs, and how it grows."""

import math
from dataclasses import replace

import pytest
import torch

from pellucid.core.config import from_dict, to_dict
from pellucid.core.cost import Cost
from pellucid.core.errors import ConfigError
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.pools.hierarchy_config import CAPACITY

TINY = HierarchyConfig.tiny()
WEIGHTS = (
    "balance_weight",
    "bias_rate",
    "router_z_weight",
    "unit_balance",
    "revive",
    "l0_weight",
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # d = 4, P = 3, n = 2, e = 2, k = 1. Router 15; units 6 · 9 = 54; c 4.
        # Active: 15 + 4 · 5 + 4 + 4 = 43. Forward 2 · 4 · (3 + 4 + 1) = 64.
        # Training 4 · (18 + 8 + 10) = 144.
        ({}, Cost(total=73, active=43, forward=64, training=144)),
        # A sink unit: 2 · 4 + 1 parameters, 16 FLOPs forward, three times that in training.
        ({"shared": "sink_unit"}, Cost(total=82, active=52, forward=80, training=192)),
        ({"pool_scaling": True}, Cost(total=76, active=46, forward=64, training=144)),  # 1 a pool
        # A threshold works through min(e · n, 8 k) = 4 units: forward 2 · 4 · (3 + 4 + 4) = 88,
        # training 4 · (18 + 8 + 40) = 264. jumprelu has one threshold a unit, of which 4 are read.
        ({"select": "batchtopk"}, Cost(total=73, active=43, forward=88, training=264)),
        ({"select": "jumprelu"}, Cost(total=79, active=47, forward=88, training=264)),
    ],
    ids=str,
)
def test_costs_by_hand(change, expected):
    config = HierarchyConfig(pools=3, slots=2, open_pools=2, k=1, **change)
    assert config.cost(4) == expected
    pool = config.build(name="ffn", width=4, output_rms=1.0)
    assert sum(p.numel() for p in pool.parameters()) == expected.total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pools": 0}, "pools: expected at least 1, found 0"),
        ({"slots": 0}, "slots: expected at least 1, found 0"),
        ({"open_pools": 0}, "open_pools: expected at least 1, found 0"),
        ({"k": 0}, "k: expected at least 1, found 0"),
        ({"unit_balance_steps": 0}, "unit_balance_steps: expected at least 1, found 0"),
        ({"jump_width": 0.0}, "jump_width: expected more than 0, found 0.0"),
        ({"jump_width": math.nan}, "jump_width: expected more than 0, found nan"),
        ({"jump_threshold": 0.0}, "jump_threshold: expected more than 0, found 0.0"),
        ({"jump_threshold": math.nan}, "jump_threshold: expected more than 0, found nan"),
        ({"open_pools": 6}, "open_pools: expected at most pools = 5, found 6; open fewer pools"),
        (
            {"k": 22},
            "k: expected at most open_pools · slots = 21, found 22; lower k or open more pools",
        ),
        (
            {"open_pools": 1},
            "gate: renorm is identically 1 with one open pool, so the router would get no "
            "gradient from the task; use gate p, or open more pools",
        ),
        (
            {"open_pools": 1, "gate": "softmax_of_p"},
            "gate: softmax_of_p is identically 1 with one open pool, so the router would get no "
            "gradient from the task; use gate p, or open more pools",
        ),
    ],
    ids=str,
)
def test_sizes_that_cannot_be(change, message):
    with pytest.raises(ConfigError) as caught:
        replace(TINY, **change)
    assert str(caught.value) == message


def test_one_pool_in_all_needs_no_router_gradient():
    assert HierarchyConfig(pools=1, slots=4, open_pools=1, k=2).gate == "renorm"


def test_unit_balance_is_refused_where_it_would_not_act():
    with pytest.raises(ConfigError, match=r"unit_balance: acts with select topk only, found jump"):
        replace(TINY, unit_balance=0.1, select="jumprelu")


@pytest.mark.parametrize("value", [-1e-9, math.nan])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_and_rates_below_zero_are_refused(name, value):
    assert getattr(replace(TINY, **{name: 0.0}), name) == 0.0
    with pytest.raises(ConfigError) as caught:
        replace(TINY, **{name: value})
    assert str(caught.value) == f"{name}: expected at least 0, found {value}"


@pytest.mark.parametrize(
    ("change", "candidates"),
    [
        # tiny opens 3 pools of 7 and keeps 4: 8 · 4 = 32 is more than the 21 it can read.
        ({}, 4),
        ({"select": "jumprelu"}, 21),
        ({"select": "batchtopk", "k": 2}, 8 * 2),
        ({"select": "jumprelu", "k": 1}, CAPACITY),
    ],
    ids=str,
)
def test_as_many_units_are_listed_as_the_cost_counts(change, candidates):
    config = replace(TINY, **change)
    assert config.candidates == candidates
    pool = config.build(name="ffn", width=6, output_rms=1.0).eval()
    assert pool.activate(torch.randn(9, 6)).unit.shape == (9, candidates)


def test_the_free_size_is_the_pool():
    assert TINY.free_size == 7
    assert TINY.with_size(9) == replace(TINY, slots=9)
    assert type(TINY.with_size(9)) is HierarchyConfig


def test_round_trips_through_json():
    config = replace(TINY, select="jumprelu", jump_threshold=0.1, shared="sink_unit")
    assert from_dict(HierarchyConfig, to_dict(config)) == config
