"""Named sizes against the published table, and slots matched in cost to one another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError
from pellucid.models.cost import model_cost
from pellucid.models.presets import (
    ARCHITECTURES,
    PRESETS,
    TOLERANCE,
    match,
    preset,
    slot,
    with_slots,
)
from pellucid.models.transformer import Transformer
from pellucid.pools import PoolConfig
from pellucid.pools.dense import DenseConfig, SwiGLUConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.pools.monet_hd import MonetHDConfig
from pellucid.pools.peer import PeerConfig
from pellucid.pools.pooled_peer import PooledPeerConfig
from pellucid.pools.topk_mlp import TopKMLPConfig

WIDTHS = (128, 256, 512, 1024, 2048, 4096)
SMALLEST: tuple[PoolConfig, ...] = (
    DenseConfig(hidden=1),
    SwiGLUConfig(hidden=1),
    TopKMLPConfig(hidden=4, k=4),
    HierarchyConfig(pools=9, slots=2, open_pools=3, k=4),
    MonetHDConfig(side=2, neurons=2, heads=2, kept=1),
)


@pytest.mark.parametrize(
    ("size", "active", "total", "forward"),
    [
        ("tiny", "1.36", "9.2", "3.2"),
        ("small", "10.7", "73.7", "25.5"),
        ("base", "46.7", "424", "106"),
        ("large", "338", "3359", "775"),
        ("1b", "1040", "12115", "2448"),
        ("8b", "7951", "92515", "18179"),
    ],
)
def test_the_published_table(size: str, active: str, total: str, forward: str):
    cost = model_cost(preset("pools", size))
    for found, printed in ((cost.active, active), (cost.total, total), (cost.forward, forward)):
        digits = len(printed.partition(".")[2])
        assert f"{found / 1e6:.{digits}f}" == printed


def test_the_flagship_at_tiny_by_hand():
    # d = 128, P = 64, n = 128, e = 8, k = 12, L = 4, V = 4096, A = 2·128·32·8 = 65,536.
    # slot, active: 64·129 + 1024·129 + 12·128 + 128 = 142,016; total: 64·129 + 8192·257 + 128.
    # active  4·(65,536 + 256 + 64 + 142,016) + 4096·128 + 128 = 1,355,904
    # total   4·(65,536 + 256 + 64 + 2,113,728) + 4096·128 + 128 = 9,242,752
    # forward 4·(2·65,536 + 2·512·128 + 2·128·(64 + 1024 + 12)) + 2·4096·128 = 3,223,552
    # training: the slot is 6·64·128 + 2·1024·128 + 10·12·128 = 326,656, the rest three times
    #           3·(4·(131,072 + 131,072) + 1,048,576) + 4·326,656 = 7,598,080
    cost = model_cost(preset("pools", "tiny"))
    assert (cost.active, cost.total) == (1_355_904, 9_242_752)
    assert (cost.forward, cost.training) == (3_223_552, 7_598_080)


@pytest.mark.parametrize(
    ("architecture", "size", "free_size"),
    [
        # (64 + 8·128 + 12) / 2 and / 3; /2 · 2 − k of the top-k MLP: 2df + 2kd = 2d(P + en + k).
        ("dense", "tiny", 550),
        ("dense", "demo", 550),
        ("dense", "small", 1062),
        ("dense", "base", 2086),
        ("swiglu", "tiny", 367),
        ("swiglu", "small", 708),
        ("swiglu", "base", 1391),
        ("swiglu", "large", 2756),
        ("swiglu", "1b", 5487),
        ("swiglu", "8b", 10948),
        ("topk-mlp", "tiny", 1088),
        ("topk-mlp", "small", 2112),
        ("pools", "tiny", 128),
        ("pools", "small", 256),
        ("pools", "base", 512),
    ],
)
def test_free_sizes(architecture: str, size: str, free_size: int):
    assert preset(architecture, size).slot(0).free_size == free_size


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_slot_costs_what_the_flagships_does(architecture: str, size: str):
    config, flagship = preset(architecture, size), preset("pools", size)
    found = config.slot(0).cost(config.width).forward
    expected = flagship.slot(0).cost(config.width).forward
    assert abs(found / expected - 1) <= TOLERANCE
    # Trunk and head are equal, so the whole models are closer still.
    ratio = model_cost(config).forward / model_cost(flagship).forward
    assert abs(ratio - 1) < abs(found / expected - 1) + 1e-12
    assert with_slots(config, *flagship.ffn) == flagship


@pytest.mark.parametrize("width", WIDTHS)
def test_product_keys_get_a_square_near_the_flagships_units(width: int):
    peer = slot("peer", width)
    assert isinstance(peer, PeerConfig)
    side = round(peer.experts**0.5)
    assert side**2 == peer.experts
    assert abs(side - (64 * width) ** 0.5) <= 0.5
    pooled = slot("pooled-peer", width)
    assert isinstance(pooled, PooledPeerConfig)
    assert pooled.pools == 64


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_every_recipe_can_be_built(architecture: str, size: str):
    with torch.device("meta"):
        model = Transformer(preset(architecture, size))
    assert [slot.kind for slot in model.config.ffn] == [architecture]
    assert len(model.pools()) == model.config.layers


def test_the_table_grows_and_names_differ():
    totals = [model_cost(preset("dense", size)).total for size in PRESETS]
    assert totals == sorted(totals)
    assert len(set(ARCHITECTURES)) == len(ARCHITECTURES) == 8
    assert preset("pools", "8b").tied_embeddings is False
    assert preset("pools", "1b").rope_theta == 5e5


@settings(deadline=None)
@given(st.sampled_from(SMALLEST), st.sampled_from([16, 63, 100, 128]), st.integers(1, 5_000_000))
def test_no_other_size_comes_closer(config: PoolConfig, width: int, forward: int):
    found = match(config, width, forward)
    distance = abs(found.cost(width).forward - forward)
    assert found.free_size >= config.free_size
    for size in (found.free_size - 1, found.free_size + 1):
        if size >= config.free_size:
            other = config.with_size(size).cost(width).forward
            assert abs(other - forward) >= distance


@settings(deadline=None)
@given(st.sampled_from(SMALLEST), st.integers(1, 3000))
def test_a_size_that_fits_exactly_is_found(config: PoolConfig, more: int):
    size = config.free_size + more
    forward = config.with_size(size).cost(64).forward
    assert match(config, 64, forward).cost(64).forward == forward


def test_a_budget_below_the_smallest_gives_the_smallest():
    assert match(DenseConfig(hidden=1), 128, 0) == DenseConfig(hidden=1)


def test_other_slots_on_the_same_trunk():
    config = preset("dense", "demo")
    mixed = with_slots(config, DenseConfig(hidden=7), HierarchyConfig.tiny())
    assert [type(mixed.slot(layer)) for layer in range(2)] == [DenseConfig, HierarchyConfig]
    assert with_slots(mixed, *config.ffn) == config


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("pools", "tyni"), "preset 'tyni': did you mean 'tiny'?"),
        (lambda: preset("pols", "tiny"), "architecture 'pols': did you mean 'pools'?"),
        (lambda: slot("monet", 64), "architecture 'monet': did you mean 'monet-"),
        (lambda: preset("pools", "xxl"), "preset 'xxl': expected one of: 1b, 8b, base, "),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(call, message: str):
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value).startswith(message)
