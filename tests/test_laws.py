"""The nine laws over every pool, every variant of it, and every pool inside a model."""

import math
import typing
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

import laws
from pellucid.core.host import edit_units
from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer
from pellucid.pools import POOLS, Pool, PoolConfig, TiedMLP
from pellucid.pools.hierarchy import Hierarchy, HierarchyConfig
from pellucid.pools.monet_hd import MonetHDConfig
from pellucid.pools.monet_vd import MonetVDConfig
from pellucid.pools.peer import PeerConfig
from pellucid.pools.pooled_peer import PooledPeerConfig
from pellucid.pools.topk_mlp import TopKMLPConfig

WIDTH = 6
SELECT_NONE_AWAY = ("dense", "swiglu", "peer-all-experts")


def _variants() -> Iterator[tuple[str, PoolConfig]]:
    """Each pool's ``tiny()``, then that with one choice changed, for every choice it offers."""
    for cls in POOLS:
        tiny = cls.tiny()
        yield tiny.kind, tiny
        hints = typing.get_type_hints(cls)
        for field in fields(cls):
            options: tuple[object, ...] = ()
            if typing.get_origin(hints[field.name]) is typing.Literal:
                options = typing.get_args(hints[field.name])
            elif hints[field.name] is bool:
                options = (False, True)
            for option in options:
                if option != getattr(tiny, field.name):
                    name = f"{tiny.kind}-{field.name}={option}"
                    yield name, replace(tiny, **{field.name: option})


HIERARCHY = HierarchyConfig.tiny()
PEER, POOLED = PeerConfig.tiny(), PooledPeerConfig.tiny()
EXTRA: tuple[tuple[str, PoolConfig], ...] = (
    ("peer-all-experts", replace(PEER, k=9, heads=3)),
    ("peer-large", replace(PEER, experts=49, heads=3, k=11)),
    ("pooled-peer-one-unit", replace(POOLED, k=1)),
    ("pooled-peer-all-open", replace(POOLED, k=12)),
    ("pooled-peer-more-than-all-pools", replace(POOLED, pools=4, open_pools=6, k=12)),
    ("monet-hd-sparse", replace(MonetHDConfig.tiny(), side=4, kept=2, neurons=4)),
    ("monet-hd-all-kept", replace(MonetHDConfig.tiny(), kept=3, heads=1)),
    ("monet-vd-sparse", replace(MonetVDConfig.tiny(), side=4, kept=2, neurons=4)),
    ("monet-vd-all-kept", replace(MonetVDConfig.tiny(), kept=3, heads=1)),
    ("pools-one-pool", replace(HIERARCHY, pools=1, open_pools=1, gate="ones")),
    ("pools-one-open", replace(HIERARCHY, open_pools=1, gate="p")),
    ("pools-all-open", replace(HIERARCHY, open_pools=5, k=35)),
    ("pools-high-jump", replace(HIERARCHY, select="jumprelu", jump_threshold=0.15)),
    ("pools-unit-balance", replace(HIERARCHY, unit_balance=0.1)),
    (
        "pools-everything",
        replace(
            HIERARCHY, gate="p", select="batchtopk", shared="sink_unit", pool_scaling=True, k=2
        ),
    ),
)
VARIANTS = dict([*_variants(), *EXTRA])


def _build(config: PoolConfig) -> Pool:
    """A pool off its initial values, in float64 and evaluation mode."""
    tied = TiedMLP(WIDTH, 3)
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0, tied=tied).double().eval()
    laws.perturb(pool)
    laws.perturb(tied.double())
    return pool


def _transformer() -> Transformer:
    """One layer per kind of slot, with a sink unit and a tied MLP among them."""
    slots = (
        *(cls.tiny() for cls in POOLS),
        replace(HIERARCHY, shared="sink_unit"),
        replace(HIERARCHY, shared="tied_mlp", select="jumprelu"),
    )
    config = TransformerConfig(
        width=WIDTH,
        layers=len(slots),
        heads=3,
        kv_heads=1,
        head_dim=2,
        vocab_size=11,
        context=8,
        ffn=slots,
        tied_mlp_width=5,
    )
    model = Transformer(config).double().eval()
    laws.perturb(model)
    return model


@pytest.mark.parametrize("law", laws.LAWS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pool_obeys(variant, law):
    pool = _build(VARIANTS[variant])
    law(pool, torch.randn(3, 5, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("law", laws.LAWS)
@pytest.mark.parametrize("own_path", [False, True])
def test_the_sink_unit_obeys(law, own_path):
    pool = _build(replace(HIERARCHY, shared="sink_unit"))
    assert isinstance(pool, Hierarchy)
    assert pool.sink is not None
    law(pool if own_path else pool.sink, torch.randn(3, 5, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("law", laws.LAWS)
def test_every_pool_of_a_model_obeys_on_what_reaches_it(law):
    model = _transformer()
    pools = model.pools()
    assert len(pools) == len(POOLS) + 3, "one per layer and one sink unit"
    reads = {pool.spec.reads for pool in pools.values()}
    trace = model.run(torch.randint(11, (2, 8)), keep=reads)
    for pool in pools.values():
        law(pool, trace.kept[pool.spec.reads].detach())


@pytest.mark.parametrize("shape", [(), (1,), (63,), (2, 0), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_leading_shape(variant, shape):
    pool = _build(VARIANTS[variant])
    x = torch.randn(*shape, WIDTH, dtype=torch.float64)
    laws.law_1_forward_is_rest_plus_decode(pool, x)
    laws.law_2_decode_sums_value_times_write(pool, x)
    laws.law_8_widths_match_the_spec(pool, x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_laws_are_not_kept_by_silence(variant):
    # A pool whose units never speak, or which selects none away, would keep most laws for nothing.
    pool = _build(VARIANTS[variant])
    x = torch.randn(40, WIDTH, dtype=torch.float64)
    code = pool.activate(x)
    speaking = (code.value != 0).sum(-1)
    assert speaking.sum() > 0
    assert all(bool((parameter != 0).all()) for parameter in pool.parameters())
    if variant not in SELECT_NONE_AWAY:
        assert speaking.min() < pool.spec.num_units
    assert pool.decode(code).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_looking_changes_nothing_that_a_pool_remembers(variant):
    pool = _build(VARIANTS[variant]).train()
    pool.forward_with_parts(torch.randn(9, WIDTH, dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in pool.named_buffers()}
    x = 5 * torch.randn(3, 5, WIDTH, dtype=torch.float64) + 1
    for asked in ({}, {"unit": torch.tensor([1, 0])}, {"limit": 2}):
        pool.activate(x, **asked)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pool.named_buffers())


@pytest.mark.parametrize("variant", VARIANTS)
def test_naming_no_unit_edits_nothing(variant):
    pool = _build(VARIANTS[variant])
    x, none = torch.randn(3, 5, WIDTH, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
    assert pool.activate(x, unit=none).unit.shape == (3, 5, 0)
    y = torch.randn_like(x)
    assert torch.equal(edit_units(pool, laws.silence, unit=none).apply(x, y), y)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_unit_named_twice_is_answered_twice(variant):
    pool = _build(VARIANTS[variant])
    x = torch.randn(40, WIDTH, dtype=torch.float64)
    code = pool.activate(x, unit=torch.tensor([2, 0, 2, 1, 0]))
    assert (code.gate[:, [0, 1]] != 0).any(), "some of the five must speak"
    for one, other in ((0, 2), (1, 4)):
        laws.same(code.gate[:, one], code.gate[:, other])
        laws.same(code.act[:, one], code.act[:, other])
    laws.same(code.value[:, [0, 1, 3]], pool.activate(x, unit=torch.tensor([2, 0, 1])).value)


def test_units_selected_by_threshold_stand_on_both_sides_of_it():
    # Without this the jumprelu and batchtopk variants could be plain ReLUs.
    for variant in ("pools-high-jump", "pools-everything"):
        pool = _build(VARIANTS[variant])
        x = torch.randn(40, WIDTH, dtype=torch.float64)
        code = pool.activate(x)
        assert ((code.gate == 0) & (code.act > 0)).any(), variant
        assert (code.value > 0).any(), variant


CLOSED = 2
CLOSED_CONFIGS = {
    name: replace(HIERARCHY, balance=balance, select=select, **more)
    for select in ("topk", "batchtopk", "jumprelu")
    for balance in ("loss", "bias")
    for name, more in {
        f"{select}-{balance}": {},
        f"{select}-{balance}-scaled": {"pool_scaling": True, "shared": "sink_unit"},
    }.items()
} | {f"{b}-revived": replace(HIERARCHY, balance=b, unit_balance=0.1) for b in ("loss", "bias")}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CLOSED_CONFIGS)
def test_closed_pools_are_never_read(name, training):
    pool = _build(CLOSED_CONFIGS[name]).train(training)
    assert isinstance(pool, Hierarchy)
    with torch.no_grad():
        pool.router_offset[CLOSED] = -1e3
        units = slice(CLOSED * 7, CLOSED * 7 + 7)
        pool.reads[CLOSED] = math.nan
        pool.read_bias[CLOSED] = math.nan
        pool.writes[units] = math.nan
        if pool.log_threshold is not None:
            pool.log_threshold[CLOSED] = math.nan
    x = torch.randn(63, WIDTH, dtype=torch.float64, requires_grad=True)
    y, parts = pool.forward_with_parts(x)
    assert torch.isfinite(y).all()
    (y.square().sum() + sum(parts.values(), torch.zeros(()))).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    for parameter_name, parameter in pool.named_parameters():
        grad = parameter.grad
        assert grad is not None, parameter_name
        if parameter_name == "writes":
            assert (grad[units] == 0).all()
        elif parameter_name in ("reads", "read_bias"):
            assert (grad[CLOSED] == 0).all()
        elif parameter_name in ("scaling", "log_threshold"):
            # The closed pool's own scale and thresholds belong to the closed pool.
            grad = grad[torch.arange(len(grad)) != CLOSED]
        assert torch.isfinite(grad).all(), parameter_name
    code = pool.activate(x.detach())
    assert torch.isfinite(code.value).all()
    assert not ((code.unit >= units.start) & (code.unit < units.stop)).any()


def test_a_pool_that_reads_closed_pools_is_caught():
    # The oracle scores every unit and masks, as ours must not: NaN comes through its gradient.
    reads = torch.randn(5, WIDTH, dtype=torch.float64)
    reads[CLOSED] = math.nan
    reads.requires_grad_()
    x = torch.randn(9, WIDTH, dtype=torch.float64, requires_grad=True)
    closed = torch.arange(5) == CLOSED
    score = nn.functional.relu(x @ reads.t()).masked_fill(closed, 0.0)
    score.sum().backward()
    assert x.grad is not None
    assert not torch.isfinite(x.grad).all()


def test_no_variant_is_lost():
    kinds = {config.kind for config in VARIANTS.values()}
    assert kinds == {cls.tiny().kind for cls in POOLS}
    for gate in ("renorm", "p", "softmax_of_p", "ones"):
        assert any(isinstance(c, HierarchyConfig) and c.gate == gate for c in VARIANTS.values())
    assert isinstance(VARIANTS["topk-mlp"], TopKMLPConfig)
