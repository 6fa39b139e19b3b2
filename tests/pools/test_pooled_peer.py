"""Pooled PEER: PEER when a pool holds one unit, an all-pools oracle otherwise, and its counts."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import laws
from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.pools.peer import PeerConfig
from pellucid.pools.pooled_peer import PooledPeer, PooledPeerConfig

TINY = PooledPeerConfig.tiny()
VARIANTS = {
    "tiny": TINY,
    "shared-keys": replace(TINY, share_keys=True),
    "no-norm": replace(TINY, norm="none"),
    "batch-norm": replace(TINY, norm="batch"),
    "one-unit": replace(TINY, k=1),
    "all-open": replace(TINY, k=12),
    "more-than-all-pools": replace(TINY, pools=4, open_pools=6, k=12),
}


def _build(config: PooledPeerConfig, width: int = 8) -> PooledPeer:
    pool = config.build(name="blocks.0.ffn", width=width, output_rms=1.0).double().eval()
    laws.perturb(pool)
    return pool


def _oracle(pool: PooledPeer, x: Tensor) -> Tensor:
    """Read every pool, give closed ones gate 0, keep the k largest |gate · gelu| of all units."""
    config = pool.config
    address, gate = pool.router(x)
    dense = x.new_zeros(x.shape[0], config.pools)
    for head in range(config.heads):
        dense = dense.scatter_add(1, address[:, head], gate[:, head])
    value = (dense[:, :, None] * F.gelu(torch.einsum("td,pmd->tpm", x, pool.reads))).flatten(1)
    worst = value.abs().topk(config.k).values[:, -1:]
    return value.masked_fill(value.abs() < worst, 0.0) @ pool.writes


@pytest.mark.parametrize("rows", [1, 63])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_reading_every_pool(variant: str, rows: int):
    pool = _build(VARIANTS[variant])
    x = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)
    wrt = [x, *pool.parameters()]
    fast, slow = pool(x), _oracle(pool, x)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)  # at most 12 terms of order 1
    weight = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), wrt),
        torch.autograd.grad((slow * weight).sum(), wrt),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # and over 63 rows


@pytest.mark.parametrize("rows", [1, 63])
def test_pools_of_one_unit_are_peer(rows: int):
    pooled = _build(PooledPeerConfig(pools=25, slots=1, open_pools=8, heads=2, k=8, key_width=3))
    peer = PeerConfig(experts=25, heads=2, k=4, key_width=3)
    single = peer.build(name="ffn", width=8, output_rms=1.0).double().eval()
    single.router.load_state_dict(pooled.router.state_dict())
    with torch.no_grad():
        single.reads.copy_(pooled.reads.flatten(0, 1))
        single.writes.copy_(pooled.writes)
    x = torch.randn(rows, 8, dtype=torch.float64)
    code = pooled.activate(x)
    assert (code.value < 0).any(), "negative acts must take part"
    torch.testing.assert_close(pooled(x), single(x), rtol=0, atol=1e-12)
    units = torch.arange(25)
    one, other = pooled.activate(x, unit=units), single.activate(x, unit=units)
    torch.testing.assert_close(one.value, other.value, rtol=0, atol=1e-12)
    pooled(x).square().sum().backward()
    single(x).square().sum().backward()
    for name, parameter in single.named_parameters():
        twin = pooled.get_parameter(name)
        assert parameter.grad is not None
        assert twin.grad is not None
        found = twin.grad.reshape(parameter.shape)
        torch.testing.assert_close(found, parameter.grad, rtol=0, atol=1e-11)  # over 63 rows


def test_heads_that_open_the_same_pools_are_merged():
    # Both heads open the same two pools, so only 6 units are readable although k asks for 12: the
    # other entries are padding, and a pool's gate is the sum over its heads.
    pool = _build(VARIANTS["all-open"])
    with torch.no_grad():
        pool.router.query[1] = pool.router.query[0]
        pool.router.keys[1] = pool.router.keys[0]
    x = torch.randn(20, 8, dtype=torch.float64)
    laws.law_6_a_unit_occurs_once(pool, x)
    code = pool.activate(x)
    assert ((code.gate != 0).sum(-1) == 6).all()
    # Two gates of 1 in total, on each pool's three units: 2 · 3.
    torch.testing.assert_close(code.gate.sum(-1), torch.full((20,), 6.0).double())
    torch.testing.assert_close(pool(x), _oracle(pool, x), rtol=0, atol=1e-12)


def test_a_zero_row_has_no_unit_on():
    code = _build(TINY).activate(torch.zeros(2, 8, dtype=torch.float64))
    assert (code.gate == 0).all()


def test_gradient_reaches_every_parameter():
    pool = _build(TINY).train()
    y, parts = pool.forward_with_parts(torch.randn(500, 8, dtype=torch.float64))
    assert parts == {}
    y.square().sum().backward()
    for name, parameter in pool.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.abs().amax(-1) > 0).all(), name


def test_closed_pools_are_never_read():
    pool = _build(TINY).train()
    x = torch.randn(1, 8, dtype=torch.float64)
    address, _ = pool.router(x)
    closed = torch.ones(9, dtype=torch.bool)
    closed[address.flatten()] = False
    with torch.no_grad():
        pool.reads[closed] = torch.nan
        pool.writes.view(9, 3, 8)[closed] = torch.nan
    y = pool(x)
    assert torch.isfinite(y).all()
    y.sum().backward()
    assert pool.reads.grad is not None
    assert (pool.reads.grad[closed] == 0).all()


def test_builds_without_memory():
    with torch.device("meta"):
        pool = PooledPeerConfig().build(name="ffn", width=1024, output_rms=0.1)
    assert pool.spec.num_units == 2**20


@pytest.mark.parametrize("variant", VARIANTS)
def test_cost_counts_the_parameters(variant: str):
    config = VARIANTS[variant]
    pool = config.build(name="ffn", width=8, output_rms=1.0)
    assert config.cost(8).total == sum(parameter.numel() for parameter in pool.parameters())


def test_cost_by_hand():
    # d 8, √P 3, h 2, dk 3, b 4, m 3, k 5. Routing 96 + 36 numbers, 4hd·dk + 4h√P·dk = 264 FLOPs.
    cost = TINY.cost(8)
    assert cost.total == 132 + 2 * 27 * 8
    assert cost.active == 132 + 12 * 8 + 5 * 8
    assert cost.forward == 264 + 2 * 12 * 8 + 2 * 5 * 8
    assert cost.training == 3 * 264 + 2 * 12 * 8 + 10 * 5 * 8


def test_the_free_size_is_the_pool():
    assert TINY.free_size == 3
    assert TINY.with_size(6) == replace(TINY, slots=6)


def test_round_trips_through_json():
    assert from_dict(PooledPeerConfig, to_dict(TINY)) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pools": 10}, "^pools: .* found 10; use 9 or 16$"),
        ({"open_pools": 5}, "^open_pools: expected a multiple of heads = 2, found 5"),
        ({"open_pools": 2}, "^open_pools: expected at least 2 per head, found 1; .*no gradient"),
        ({"open_pools": 20}, "^open_pools: expected at most pools = 9 per head, found 10"),
        ({"k": 13}, "^k: expected at most open pools · slots = 12, found 13"),
        ({"slots": 0}, "^slots: "),
    ],
)
def test_refuses_in_one_line(change: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
