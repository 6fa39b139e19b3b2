"""The three groups, and AdamW against its own equations and against torch's."""

import math

import pytest
import torch
from torch import nn

from pellucid.core.errors import ConfigError
from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer
from pellucid.pools import POOLS
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.train.optim import OptimConfig, build_optimizer, param_groups, set_lr


def decoder(*slots, **changes):
    shape = {"width": 16, "layers": len(slots), "heads": 2, "kv_heads": 1, "head_dim": 8}
    return Transformer(TransformerConfig(**shape, vocab_size=32, context=8, ffn=slots, **changes))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
        self.gain = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
        self.table = nn.Parameter(torch.tensor([[5.0]], dtype=torch.float64))


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_one_group(kind, tied: bool):
    model = decoder(kind.tiny(), kind.tiny(), tied_embeddings=tied)
    groups = param_groups(model, model.unit_tables(), OptimConfig())
    grouped = [id(p) for group in groups for p in group.params]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert len(grouped) == len(set(grouped))


def test_the_parts_beside_a_pool_are_grouped_too():
    sink = HierarchyConfig(pools=5, slots=7, open_pools=3, k=4, shared="sink_unit")
    tied = HierarchyConfig(pools=5, slots=7, open_pools=3, k=4, shared="tied_mlp")
    model = decoder(sink, tied)
    groups = {
        id(p): group.name
        for group in param_groups(model, model.unit_tables(), OptimConfig())
        for p in group.params
    }
    names = {name: groups[id(p)] for name, p in model.named_parameters()}
    assert len(groups) == len(names)
    assert names["blocks.0.ffn.sink.reads"] == "units"
    assert names["tied_mlp.up"] == "matrices"


def test_who_decays():
    model = decoder(HierarchyConfig.tiny())
    config = OptimConfig(weight_decay=0.3, unit_decay=0.01, unit_lr_scale=0.5)
    groups = {group.name: group for group in param_groups(model, model.unit_tables(), config)}
    assert {name: (g.weight_decay, g.lr_scale) for name, g in groups.items()} == {
        "matrices": (0.3, 1.0),
        "vectors": (0.0, 1.0),
        "units": (0.01, 0.5),
    }
    where = {id(p): name for name, group in groups.items() for p in group.params}
    found = {name: where[id(p)] for name, p in model.named_parameters()}
    assert found == {
        "embed.weight": "matrices",
        "blocks.0.attn_norm.gain": "vectors",
        "blocks.0.attn.query.weight": "matrices",
        "blocks.0.attn.key.weight": "matrices",
        "blocks.0.attn.value.weight": "matrices",
        "blocks.0.attn.out.weight": "matrices",
        "blocks.0.attn.query_norm.gain": "vectors",
        "blocks.0.attn.key_norm.gain": "vectors",
        "blocks.0.ffn_norm.gain": "vectors",
        "blocks.0.ffn.router": "matrices",
        "blocks.0.ffn.router_offset": "vectors",
        "blocks.0.ffn.reads": "units",
        "blocks.0.ffn.read_bias": "units",
        "blocks.0.ffn.writes": "units",
        "blocks.0.ffn.bias": "vectors",
        "norm.gain": "vectors",
    }


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = Two()
    model.gain.requires_grad_(False)
    assert [g.name for g in param_groups(model, [], OptimConfig())] == ["matrices"]
    assert [g.name for g in param_groups(model, [model.table], OptimConfig())] == [
        "matrices",
        "units",
    ]


def test_one_step_by_hand():
    # Adam's first step has m̂ = g and √v̂ = |g|, so every weight moves by lr against the sign of
    # its gradient (eps = 1e-8 beside gradients of size 1 changes the tenth digit), after decay:
    #   matrix  2 · (1 − .1 · .5) − .1 = 1.8       lr .1, decay .5
    #   gain    3 + .1                 = 3.1       no decay
    #   table   5 · (1 − .2 · .25) − .2 = 4.55     lr .1 · 2, decay .25
    model = Two()
    config = OptimConfig(lr=0.1, weight_decay=0.5, unit_decay=0.25, unit_lr_scale=2.0)
    optimizer = build_optimizer(param_groups(model, [model.table], config), config)
    (model.matrix - model.gain + 3 * model.table).sum().backward()
    optimizer.step()
    found = [p.item() for p in (model.matrix, model.gain, model.table)]
    assert found == pytest.approx([1.8, 3.1, 4.55], abs=1e-8)


def test_the_trajectory_is_that_of_torchs_adamw():
    config = OptimConfig(lr=0.03, betas=(0.8, 0.97), eps=1e-6, weight_decay=0.2)
    ours, theirs = (nn.Linear(5, 3, dtype=torch.float64) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(param_groups(ours, [], config), config)
    plain = {"betas": (0.8, 0.97), "eps": 1e-6, "foreach": False, "fused": False}
    reference = [
        torch.optim.AdamW([theirs.weight], lr=0.03, weight_decay=0.2, **plain),
        torch.optim.AdamW([theirs.bias], lr=0.03, weight_decay=0.0, **plain),
    ]
    x = torch.randn(20, 7, 5, dtype=torch.float64)
    for step, rows in enumerate(x):
        rate = 0.03 * (1 - step / 20)
        set_lr(optimizer, rate)
        for part in reference:
            part.param_groups[0]["lr"] = rate
        for model, steppers in ((ours, [optimizer]), (theirs, reference)):
            model.zero_grad()
            model(rows).sin().square().sum().backward()
            for stepper in steppers:
                stepper.step()
    # Twenty steps of float64 arithmetic in another order.
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-10, atol=1e-12)


def test_the_rate_is_scaled_for_the_units():
    model, config = Two(), OptimConfig(lr=1.0, unit_lr_scale=0.25)
    optimizer = build_optimizer(param_groups(model, [model.table], config), config)
    set_lr(optimizer, 0.5)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"matrices": 0.5, "vectors": 0.5, "units": 0.125}
    set_lr(optimizer, 0.5)
    assert optimizer.param_groups[2]["lr"] == 0.125


def test_it_converges_on_a_bowl():
    # |x|² from 5 at rate .1 needs some 50 sign-like steps; 200 leave it within one step's reach.
    x = nn.Parameter(torch.full((3, 3), 5.0))
    module = nn.ParameterList([x])
    config = OptimConfig(lr=0.1, weight_decay=0.0)
    optimizer = build_optimizer(param_groups(module, [], config), config)
    for _ in range(200):
        optimizer.zero_grad()
        x.square().sum().backward()
        optimizer.step()
    assert float(x.detach().abs().max()) < 0.1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("eps", 0.0),
        ("clip", 0.0),
        ("clip", -1.0),
        ("weight_decay", -0.1),
        ("unit_decay", -0.1),
        ("unit_lr_scale", -1.0),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
    ],
)
def test_a_setting_that_adam_cannot_use_is_named(field: str, value: object):
    with pytest.raises(ConfigError, match=rf"^{field}: expected .*, found "):
        OptimConfig(**{field: value})
