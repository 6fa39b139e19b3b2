"""What both decoders are built of: the parts of a config, and the deviations they start at."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pellucid.models.config import TransformerConfig
from pellucid.models.parts import (
    attention_of,
    draw,
    draw_attention,
    slot_of,
    tied_mlp_of,
    wants_tied_mlp,
    weight_std,
)
from pellucid.pools import POOLS, TiedMLP
from pellucid.pools.dense import Dense
from pellucid.pools.hierarchy import Hierarchy, HierarchyConfig

HIERARCHY = HierarchyConfig.tiny()
TIED = replace(HIERARCHY, shared="tied_mlp")
CONFIG = TransformerConfig(
    width=100,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    vocab_size=1000,
    context=8,
    ffn=(HIERARCHY,),
    tied_mlp_width=3,
    norm_eps=1e-3,
)


def test_attention_has_the_configs_shape():
    attention = attention_of(CONFIG, 1)
    shapes = [tuple(m.weight.shape) for m in (attention.query, attention.key, attention.out)]
    # 4 and 2 heads of 6, from and to 100.
    assert shapes == [(24, 100), (12, 100), (100, 24)]
    assert attention.layer == 1
    assert attention.query_norm is not None
    assert attention.query_norm.eps == 1e-3
    assert attention_of(replace(CONFIG, qk_norm=False), 0).query_norm is None


def test_a_slot_is_the_layers_own_under_its_own_name():
    mixed = replace(CONFIG, ffn=(POOLS[0].tiny(), HIERARCHY))
    for layer, kind in enumerate((Dense, Hierarchy)):
        pool = slot_of(mixed, layer, f"somewhere.{layer}", None)
        assert type(pool) is kind
        assert pool.spec.name == f"somewhere.{layer}"


@pytest.mark.parametrize("layers", [2, 8])
def test_slots_start_with_their_share_of_the_stream(layers):
    pool = slot_of(replace(CONFIG, layers=layers), 0, "ffn", None).eval()
    rms = pool(torch.randn(4096, 100)).square().mean().sqrt().item()
    # .25 / √(2 · layers): .125 and .0625, on other rows than those calibrated on.
    assert rms == pytest.approx({2: 0.125, 8: 0.0625}[layers], rel=0.05)


@pytest.mark.parametrize("slot", [cls.tiny() for cls in POOLS], ids=lambda slot: slot.kind)
def test_only_a_hierarchy_that_says_so_wants_the_tied_mlp(slot):
    assert not wants_tied_mlp(slot)
    assert wants_tied_mlp(TIED)
    assert not wants_tied_mlp(replace(HIERARCHY, shared="sink_unit"))


def test_one_slot_that_wants_it_brings_the_tied_mlp():
    assert tied_mlp_of(CONFIG) is None
    tied = tied_mlp_of(replace(CONFIG, ffn=(HIERARCHY, TIED)))
    assert isinstance(tied, TiedMLP)
    assert tied.up.shape == (3, 100)


def test_embeddings_start_at_unit_scale_and_matrices_small():
    embedding, linear = nn.Embedding(1000, 100), nn.Linear(100, 1000, bias=False)
    assert weight_std(embedding) == 0.1  # 1 / √100
    assert weight_std(linear) == 0.02
    for module in (embedding, linear):
        draw(module)
        # 100,000 draws: a standard error of .22 per cent; five of them.
        assert module.weight.std().item() == pytest.approx(weight_std(module), rel=0.011)


def test_attention_outputs_start_smaller_the_more_layers_there_are():
    attention = attention_of(replace(CONFIG, head_dim=100), 0)
    draw_attention(attention, 8)
    for linear in (attention.query, attention.key, attention.value):
        # At least 20,000 draws: .5 per cent; five of them.
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.025)
    # .02 / √16
    assert attention.out.weight.std().item() == pytest.approx(0.005, rel=0.025)
