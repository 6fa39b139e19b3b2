"""Formulas against what is counted: parameters, operations and bytes of real modules."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pellucid.core.cost import Cost
from pellucid.models.config import TransformerConfig
from pellucid.models.cost import Memory, model_cost, model_memory, slot_cost, sum_costs
from pellucid.models.presets import ARCHITECTURES, PRESETS, preset
from pellucid.models.transformer import Transformer
from pellucid.pools.dense import DenseConfig, SwiGLUConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.train.optim import OptimConfig, build_optimizer, param_groups

TOY = TransformerConfig(
    width=12,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=6,
    vocab_size=20,
    context=10,
    ffn=(DenseConfig(hidden=5),),
)


def on_meta(config: TransformerConfig) -> Transformer:
    """A model without storage: shapes are all that is counted."""
    with torch.device("meta"):
        return Transformer(config)


def counted(model: Transformer) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_toy_by_hand():
    # d = 12, D = 6, H = 4, H_kv = 2, f = 5, L = 3, V = 20, context 10.
    # attention 2·12·6·(4 + 2) = 864; norms 2·12 + 2·6 = 36; slot 2·12·5 + 5 + 12 = 137
    # parameters 3·(864 + 36 + 137) + 20·12 + 12 = 3363
    # forward    3·(2·864 + 2·10·24 + 4·12·5) + 2·20·12 = 3·(1728 + 480 + 240) + 480 = 7824
    cost = model_cost(TOY)
    assert cost == Cost(total=3363, active=3363, forward=7824, training=3 * 7824)
    assert counted(on_meta(TOY)) == 3363
    assert model_memory(TOY) == Memory(weights=4 * 3363, optimizer=8 * 3363)


@pytest.mark.parametrize(
    "change",
    [
        {"tied_embeddings": False},
        {"qk_norm": False},
        {"kv_heads": 4},
        {"ffn": (DenseConfig(hidden=5), SwiGLUConfig(hidden=3), HierarchyConfig.tiny())},
        {"ffn": (HierarchyConfig(pools=5, slots=7, open_pools=3, k=4, shared="sink_unit"),)},
        {"ffn": (HierarchyConfig(pools=5, slots=7, open_pools=3, k=4, shared="tied_mlp"),)},
        {"ffn": (HierarchyConfig(pools=5, slots=7, open_pools=3, k=4, pool_scaling=True),)},
        {"ffn": (HierarchyConfig(pools=5, slots=7, open_pools=3, k=4, select="jumprelu"),)},
    ],
    ids=str,
)
def test_every_option_of_the_trunk_is_counted(change: dict[str, object]):
    config = replace(TOY, **change)
    assert model_cost(config).total == counted(on_meta(config))


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_preset_has_the_parameters_it_says(architecture: str, size: str):
    config = preset(architecture, size)
    cost = model_cost(config)
    assert cost.total == counted(on_meta(config))
    assert cost.active <= cost.total
    assert cost.forward < cost.training <= 3 * cost.forward


@pytest.mark.parametrize("architecture", ["dense", "swiglu"])
@pytest.mark.parametrize("size", ["demo", "tiny", "small"])
def test_forward_operations_are_those_that_run(architecture: str, size: str):
    # The counter takes attention as a full square, of which a causal model needs half: that is
    # 4·T·H·D a token where 2·T·H·D are needed.
    config = preset(architecture, size)
    model = on_meta(config).eval()
    seq = config.context
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, seq, dtype=torch.long, device="meta"))
    unneeded = config.layers * seq * 2 * seq * config.heads * config.head_dim
    per_token = (counter.get_total_flops() - unneeded) / seq
    assert per_token == pytest.approx(model_cost(config).forward, rel=0.02)


@pytest.mark.parametrize("architecture", ["monet-hd", "monet-vd"])
@pytest.mark.parametrize("size", ["demo", "tiny"])
def test_forward_operations_of_monet_are_those_that_run(architecture: str, size: str):
    config = preset(architecture, size)
    slot = config.slot(0).build(name="ffn", width=config.width, output_rms=1.0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        slot(torch.randn(3, config.width))
    # Every product of the formula, and no other, is a matrix product.
    assert counter.get_total_flops() == 3 * config.slot(0).cost(config.width).forward


def test_training_operations_are_those_that_run():
    # Backward costs twice the forward, except that the embedding's input needs no gradient; the
    # first layer's input does, through the embedding.
    config = preset("dense", "demo")
    model = on_meta(config)
    seq = config.context
    with FlopCounterMode(display=False) as counter:
        logits, _ = model.forward_with_parts(torch.zeros(1, seq, dtype=torch.long, device="meta"))
        logits.sum().backward()
    # Attention, full squares: 4·T·H·D forward; backward takes 2.5 times that where it is fused
    # (scores are computed again) and 2 where not, so its share is bounded rather than known.
    square = config.layers * seq * 4 * seq * config.heads * config.head_dim
    low = counter.get_total_flops() - 3.5 * square
    high = counter.get_total_flops() - 3.0 * square
    needed = 3 * (model_cost(config).forward - square / seq / 2)
    assert low / seq * 0.98 <= needed <= high / seq * 1.02


def test_bytes_are_those_that_are_held():
    config = preset("pools", "demo")
    model = Transformer(config)
    optim = OptimConfig()
    optimizer = build_optimizer(param_groups(model, model.unit_tables(), optim), optim)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moments = [
        tensor
        for state in optimizer.state.values()
        for name, tensor in state.items()
        if name != "step"
    ]
    memory = model_memory(config)
    assert memory.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert memory.optimizer == sum(tensor.numel() * tensor.element_size() for tensor in moments)


def test_slots_are_summed_over_layers():
    mixed = replace(TOY, ffn=(DenseConfig(hidden=5), DenseConfig(hidden=7), SwiGLUConfig(hidden=2)))
    # Forward 4·12·5, 4·12·7 and 6·12·2.
    assert slot_cost(mixed).forward == 240 + 336 + 144
    assert slot_cost(TOY).forward == 3 * 240
    assert model_cost(mixed).forward - model_cost(TOY).forward == 0


def test_nothing_costs_nothing():
    assert sum_costs([]) == Cost(total=0, active=0, forward=0, training=0)


def test_a_shared_small_mlp_is_held_once_and_used_everywhere():
    alone = HierarchyConfig(pools=5, slots=7, open_pools=3, k=4)
    config = replace(TOY, ffn=(alone,), tied_mlp_width=9)
    shared = replace(config, ffn=(replace(alone, shared="tied_mlp"),))
    # Two tables of 9 × 12 once; 4·12·9 FLOPs in each of three layers.
    assert model_cost(shared).total - model_cost(config).total == 216
    assert model_cost(shared).forward - model_cost(config).forward == 3 * 432
