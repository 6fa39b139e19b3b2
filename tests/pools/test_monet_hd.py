"""MONET-HD against a loop over every expert, by hand, and in its units."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import laws
from pellucid.core.host import edit_units
from pellucid.pools.monet_hd import MonetHD, MonetHDConfig

TINY = MonetHDConfig.tiny()
VARIANTS = {
    "tiny": TINY,
    "row": replace(TINY, router="row"),
    "batch": replace(TINY, router="batch"),
    "sparse": replace(TINY, side=4, kept=2, neurons=4),
    "all-kept": replace(TINY, kept=3, heads=1),
}
X = torch.tensor([[1.0, 0.0]])


def _build(config: MonetHDConfig, width: int = 8) -> MonetHD:
    pool = config.build(name="blocks.0.ffn", width=width, output_rms=1.0).double().eval()
    laws.perturb(pool)
    return pool


def _hand_pool() -> MonetHD:
    """Silent, with g1 = (.75, .25) and g2 = (.6, .4) at X."""
    config = MonetHDConfig(side=2, kept=2, heads=1, neurons=2)
    pool = config.build(name="ffn", width=2, output_rms=1.0)
    with torch.no_grad():
        pool.reads.zero_()
        pool.router.weight.zero_()
        pool.router.weight[0, 0, 0, 0] = math.log(3)
        pool.router.weight[1, 0, 0, 0] = math.log(1.5)
    return pool


def _without(pool: MonetHD, row: int, col: int) -> Tensor:
    """The output at X without expert (row, col), by an edit of its units alone."""
    expert = row * pool.side + col
    units = torch.arange(expert * (pool.neurons + 1), (expert + 1) * (pool.neurons + 1))
    return edit_units(pool, laws.silence, unit=units).apply(X, pool(X))


def _oracle(pool: MonetHD, x: Tensor) -> Tensor:
    """Every expert (i, j) on its own: an MLP with its own reads, writes and bias."""
    routing, y = pool.router(x), torch.zeros_like(x)
    for i in range(pool.side):
        for j in range(pool.side):
            gate = (routing.row[:, :, i] * routing.col[:, :, j]).sum(1)
            act = F.relu(x @ pool.reads[i].T + pool.read_bias[i]).square()
            out = act @ pool.writes[j] + pool.write_bias[j]
            y = y + gate[:, None] * out
    return y


def test_by_hand():
    # a = (4, 1) = relu²(2, 1), V0 = (1, 0), V1 = (0, 1): Σ_i g1_i a_i = 3.25 splits .6 : .4. Expert
    # (0, 1) gives .75·.4·4 = 1.2 of the second entry. The second neuron is silent.
    pool = _hand_pool()
    with torch.no_grad():
        pool.reads[:, 0, 0] = torch.tensor([2.0, 1.0])
        pool.writes[:, 0] = torch.eye(2)
    torch.testing.assert_close(pool(X), torch.tensor([[1.95, 1.3]]))
    torch.testing.assert_close(_without(pool, 0, 1), torch.tensor([[1.95, 0.1]]))


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


def test_rows_read_and_columns_write():
    # Unit (1, 2, 1) of a 3 × 3 × 3 pool: reads from row 1, writes by column 2.
    pool = _build(TINY)
    unit = torch.tensor((1 * 3 + 2) * 3 + 1)
    assert torch.equal(pool.read(unit), pool.reads[1, 1])
    assert torch.equal(pool.write(unit), pool.writes[2, 1])


def test_an_experts_bias_is_a_channel_that_always_acts():
    pool = _build(TINY)
    bias = torch.tensor([2, (1 * 3 + 2) * 3 + 2])  # experts (0, 0) and (1, 2), channel m = 2
    assert (pool.read(bias) == 0).all()
    assert (pool.activate(torch.randn(4, 8, dtype=torch.float64), unit=bias).act == 1).all()
    assert torch.equal(pool.write(bias), pool.write_bias[[0, 2]])


def test_only_rows_and_columns_that_are_kept_take_part():
    pool = _build(VARIANTS["sparse"])
    x = torch.randn(1, 8, dtype=torch.float64)
    routing = pool.router(x)
    idle_row = routing.row[0].sum(0) == 0
    idle_col = routing.col[0].sum(0) == 0
    before = pool(x)
    with torch.no_grad():
        pool.reads[idle_row] = 7.0
        pool.writes[idle_col] = 7.0
        pool.write_bias[idle_col] = 7.0
    assert torch.equal(pool(x), before)
