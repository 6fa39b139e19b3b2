"""MONET-VD against a loop over every expert, by hand, and in its units."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import laws
from pellucid.core.host import edit_units
from pellucid.pools.monet_vd import MonetVD, MonetVDConfig

TINY = MonetVDConfig.tiny()
VARIANTS = {
    "tiny": TINY,
    "row": replace(TINY, router="row"),
    "batch": replace(TINY, router="batch"),
    "sparse": replace(TINY, side=4, kept=2, neurons=4),
    "all-kept": replace(TINY, kept=3, heads=1),
}
X = torch.tensor([[1.0, 0.0]])


def _build(config: MonetVDConfig, width: int = 8) -> MonetVD:
    pool = config.build(name="blocks.0.ffn", width=width, output_rms=1.0).double().eval()
    laws.perturb(pool)
    return pool


def _hand_pool() -> MonetVD:
    """Silent, with g1 = (.75, .25) and g2 = (.6, .4) at X."""
    config = MonetVDConfig(side=2, kept=2, heads=1, neurons=2)
    pool = config.build(name="ffn", width=2, output_rms=1.0)
    with torch.no_grad():
        pool.reads.zero_()
        pool.router.weight.zero_()
        pool.router.weight[0, 0, 0, 0] = math.log(3)
        pool.router.weight[1, 0, 0, 0] = math.log(1.5)
    return pool


def _without(pool: MonetVD, row: int, col: int) -> Tensor:
    """The output at X without expert (row, col), by an edit of its units alone."""
    expert = row * pool.side + col
    units = torch.arange(expert * (pool.neurons + 1), (expert + 1) * (pool.neurons + 1))
    return edit_units(pool, laws.silence, unit=units).apply(X, pool(X))


def _oracle(pool: MonetVD, x: Tensor) -> Tensor:
    """Every expert (i, j) on its own: an MLP with its own reads, writes and bias."""
    routing, y = pool.router(x), torch.zeros_like(x)
    for i in range(pool.side):
        for j in range(pool.side):
            gate = (routing.row[:, :, i] * routing.col[:, :, j]).sum(1)
            half = pool.neurons // 2
            by_row, by_col = (
                F.relu(x @ pool.reads[side, place].T + pool.read_bias[side, place]).square()
                for side, place in ((0, i), (1, j))
            )
            top = by_row @ pool.top[i, :half] + by_col @ pool.top[i, half:]
            bottom = by_row @ pool.bottom[j, :half] + by_col @ pool.bottom[j, half:]
            out = torch.cat([top + pool.top_bias[i], bottom + pool.bottom_bias[j]], -1)
            y = y + gate[:, None] * out
    return y


def test_by_hand():
    # a1 = (4, 1), a2 = (1, 9), every V 1 but V22_1 = -1. Top: Σ g1 a1 = 3.25 and Σ g2 a2 = 4.2 make
    # 7.45. Bottom: .6·1 - .4·9 = -3 and 3.25 make .25. Expert (0, 1), gate .3, gives its top
    # .3·(4 + 9) = 3.9 and its bottom .3·(4 - 9) = -1.5.
    pool = _hand_pool()
    with torch.no_grad():
        pool.reads[:, :, 0, 0] = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        pool.top.fill_(1)
        pool.bottom.fill_(1)
        pool.bottom[1, 1] = -1
    torch.testing.assert_close(pool(X), torch.tensor([[7.45, 0.25]]))
    torch.testing.assert_close(_without(pool, 0, 1), torch.tensor([[3.55, 1.75]]))


@pytest.mark.parametrize("rows", [1, 63])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_a_loop_over_every_expert(variant: str, rows: int):
    pool = _build(VARIANTS[variant])
    x = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)
    wrt = [x, *pool.parameters()]
    fast, slow = pool(x), _oracle(pool, x)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-11)  # up to 80 terms, relu² of order 10
    weight = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), wrt),
        torch.autograd.grad((slow * weight).sum(), wrt),
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)  # and over 63 rows


def test_an_odd_width_is_served():
    pool, x = _build(TINY, width=7), torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(pool(x), _oracle(pool, x), rtol=0, atol=1e-12)


def test_each_half_of_a_unit_comes_from_its_own_side():
    # Expert (1, 2) of a 3 × 3 × 3 pool: channel 0 reads from row 1, channel 1 from column 2; every
    # write has its top from row 1 and its bottom from column 2.
    pool = _build(TINY)
    units = (1 * 3 + 2) * 3 + torch.arange(2)
    assert torch.equal(pool.read(units), torch.stack([pool.reads[0, 1, 0], pool.reads[1, 2, 0]]))
    assert torch.equal(pool.write(units), torch.cat([pool.top[1], pool.bottom[2]], -1))


def test_an_experts_bias_is_a_channel_that_always_acts():
    pool = _build(TINY)
    bias = torch.tensor([2, (1 * 3 + 2) * 3 + 2])  # experts (0, 0) and (1, 2), channel m = 2
    assert (pool.read(bias) == 0).all()
    assert (pool.activate(torch.randn(4, 8, dtype=torch.float64), unit=bias).act == 1).all()
    expected = torch.cat([pool.top_bias[[0, 1]], pool.bottom_bias[[0, 2]]], -1)
    assert torch.equal(pool.write(bias), expected)
