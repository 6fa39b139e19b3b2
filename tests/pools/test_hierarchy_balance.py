"""Balance in hierarchical pools: its losses, its biases, and units that come back."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pellucid.pools.hierarchy import Hierarchy, HierarchyConfig

TINY = HierarchyConfig.tiny()
WIDTH = 6


def test_auxiliary_losses_by_hand(hand, row):
    pool = hand(open_pools=1, gate="p", balance_weight=0.5, router_z_weight=0.25).train()
    _, parts = pool.forward_with_parts(torch.stack((row, -row)))
    # Every row opens pool 0: F = (1, 0), P = (.8, .2), so .5 · 2 · .8; logsumexp(log p) = 0.
    assert set(parts) == {"balance", "router_z"}
    assert parts["balance"].item() == pytest.approx(0.8, abs=1e-6)
    assert parts["router_z"].item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        pool.router_offset += math.log(3)
    _, parts = pool.forward_with_parts(row[None])
    assert parts["router_z"].item() == pytest.approx(0.25 * math.log(3) ** 2, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, ("balance", "router_z")),
        ({"balance": "bias"}, ("router_z",)),
        ({"balance": "none", "router_z_weight": 0.0}, ()),
        ({"frozen_router": True}, ()),
        ({"select": "jumprelu"}, ("balance", "l0", "router_z")),
        ({"select": "jumprelu", "frozen_router": True}, ("l0",)),
    ],
    ids=str,
)
def test_which_losses_there_are(change, names):
    pool = replace(TINY, **change).build(name="ffn", width=WIDTH, output_rms=1.0).train()
    assert sorted(pool.forward_with_parts(torch.randn(9, WIDTH))[1]) == sorted(names)


def test_the_selection_bias_moves_the_choice_and_never_the_gates(hand, row, near):
    pool = hand(open_pools=1, gate="p", balance="bias")
    with torch.no_grad():
        pool.router_bias.copy_(torch.tensor([0.0, 10.0]))
    # Pool 1 is opened, at its own p = .2: s = .6, 0.
    near(pool(row), (0.6, 1.6))


def test_bias_balancing_moves_against_the_load(hand, row):
    pool = hand(open_pools=1, gate="p", balance="bias", bias_rate=0.25).train()
    pool(torch.stack((row, row)))
    pool(row[None])  # loads add up until the step
    assert pool.pool_load.tolist() == [3.0, 0.0]
    pool.after_step()
    assert pool.router_bias.tolist() == [-0.25, 0.25]
    assert pool.pool_load.tolist() == [0.0, 0.0]
    pool.eval()(row[None])
    assert pool.pool_load.tolist() == [0.0, 0.0], "evaluation does not count"


def _shares(pool: Hierarchy, x: Tensor) -> Tensor:
    _, chosen = pool._route(x)
    count = torch.bincount(chosen.flatten(), minlength=pool.config.pools).double()
    return count / count.sum()


def test_bias_balancing_evens_out_a_skewed_load():
    config = replace(TINY, pools=8, open_pools=2, balance="bias", bias_rate=0.05)
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).train()
    with torch.no_grad():
        pool.router_offset.copy_(torch.linspace(2.0, -2.0, 8))
    x = torch.randn(2000, WIDTH)
    assert _shares(pool, x).max() > 0.35
    assert _shares(pool, x).min() < 0.01
    with torch.no_grad():
        for _ in range(80):
            pool(torch.randn(200, WIDTH))
            pool.after_step()
    after = _shares(pool, x)
    # Even is 1/8; the sign step keeps each within some steps of .05 in its logit.
    assert after.max() < 0.16
    assert after.min() > 0.09


def test_other_balances_leave_the_bias_at_zero():
    for balance in ("loss", "none"):
        pool = replace(TINY, balance=balance).build(name="ffn", width=WIDTH, output_rms=1.0).train()
        pool(torch.randn(30, WIDTH))
        pool.after_step()
        assert (pool.router_bias == 0).all()


def test_the_balance_loss_evens_out_a_skewed_load():
    config = replace(TINY, pools=8, open_pools=2, balance_weight=1.0, router_z_weight=0.0)
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).train()
    with torch.no_grad():
        pool.router_offset.copy_(torch.linspace(2.0, -2.0, 8))
    optimiser = torch.optim.SGD([pool.router, pool.router_offset], lr=1.0)
    x = torch.randn(2000, WIDTH)
    before = _shares(pool, x).max()
    for _ in range(60):
        optimiser.zero_grad()
        _, parts = pool.forward_with_parts(torch.randn(200, WIDTH))
        parts["balance"].backward()
        optimiser.step()
    assert before > 0.35
    assert _shares(pool, x).max() < 0.25


DEAD = slice(4, 7)  # slots of every pool


def _with_dead_units(unit_balance: float, steps: int) -> Hierarchy:
    """Slots 4 to 6 of every pool read so faintly that they never win against the others."""
    config = replace(TINY, k=3, unit_balance=unit_balance, unit_balance_steps=steps)
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).train()
    with torch.no_grad():
        pool.reads[:, DEAD] *= 1e-3
        pool.reads[:, : DEAD.start] *= 3.0
        pool.read_bias[:, : DEAD.start] += 3.0
    return pool


def _used(pool: Hierarchy, x: Tensor) -> Tensor:
    """[pools, slots] whether a unit speaks anywhere in x."""
    code = pool.activate(x)
    used = torch.zeros(pool.spec.num_units, dtype=torch.bool)
    used[code.unit[code.gate > 0]] = True
    return used.view(pool.config.pools, pool.config.slots)


def _train(pool: Hierarchy, steps: int) -> None:
    """Fit one random linear map, which every unit can help with."""
    target = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.Adam(pool.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        x = torch.randn(128, WIDTH)
        y, parts = pool.forward_with_parts(x)
        loss = (y - x @ target).square().mean() + sum(parts.values(), torch.zeros(()))
        loss.backward()
        optimiser.step()
        pool.after_step()


def test_unit_balance_brings_back_units_that_never_win():
    x = torch.randn(2000, WIDTH)
    revived = {}
    for balance in (0.0, 0.05):
        pool = _with_dead_units(balance, steps=80)
        before = pool.reads[:, DEAD].detach().norm(dim=-1).max()
        assert not _used(pool.eval(), x)[:, DEAD].any(), "they must be dead to begin with"
        pool.train()
        _train(pool, 160)
        revived[balance] = _used(pool.eval(), x)[:, DEAD].double().mean().item()
        # The rule at the end is the read direction alone.
        assert (pool.unit_bias == 0).all()
        if balance:
            assert pool.reads[:, DEAD].detach().norm(dim=-1).min() > 10 * before
    # Without it nothing but the drift of others can bring them back. With it, over four seeds, 67
    # to 100 per cent of the 15 units were back.
    assert revived[0.0] < 0.1
    assert revived[0.05] > 0.5


def test_revive_brings_back_units_that_read_nothing():
    """Units whose pre-activation is negative everywhere: no selection bias can reach them."""
    x = torch.randn(2000, WIDTH)
    revived = {}
    for revive in (0.0, 0.05):
        config = replace(TINY, revive=revive, revive_after=5)
        pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).train()
        with torch.no_grad():
            pool.read_bias[:, DEAD] = -6.0
        assert not _used(pool.eval(), x)[:, DEAD].any(), "they must be dead to begin with"
        pool.train()
        _train(pool, 200)
        revived[revive] = _used(pool.eval(), x)[:, DEAD].double().mean().item()
    # 195 steps of .05 lift a bias of -6 above 0; without them nothing moves it.
    assert revived[0.0] == 0.0
    assert revived[0.05] > 0.9


def test_revive_waits_and_stops_by_hand(hand, row):
    pool = hand(k=1, revive=0.5, revive_after=2).train()
    for _ in range(3):
        pool(row[None])
        pool.after_step()
    # Unit 1 wins each time; the others were silent 1, 2, 3 steps and rose at the second and third.
    assert pool.silent.tolist() == [3, 0, 3, 3]
    assert pool.read_bias.tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert pool.unit_load.tolist() == [0.0] * 4


def test_revive_leaves_the_units_of_closed_pools_alone(hand, row):
    pool = hand(open_pools=1, gate="p", k=1, revive=0.125, revive_after=2).train()
    for _ in range(5):
        pool(row[None])
        pool.after_step()
    # Pool 0 opens each time and unit 1 wins, at 2 against unit 0's 1 to 1.5; units 2 and 3 had no
    # chance to be silent.
    assert pool.silent.tolist() == [5, 0, 0, 0]
    assert pool.read_bias.tolist() == [[0.5, 0.0], [0.0, 0.0]]
    with torch.no_grad():
        pool.router_offset.copy_(torch.tensor([0.2, 0.8]).log())
    for _ in range(2):
        pool(-row[None])
        pool.after_step()
    # Now pool 1 opens, where unit 3 wins (it reads 1) and unit 2 (it reads −3) has been silent
    # twice; unit 0, due for more when its pool closed, waits.
    assert pool.silent.tolist() == [5, 0, 2, 0]
    assert pool.read_bias.tolist() == [[0.5, 0.0], [0.125, 0.0]]


def test_revive_does_not_grow_biases_in_pools_that_never_open():
    config = replace(TINY, revive=0.05, revive_after=3)
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).train()
    with torch.no_grad():
        pool.router_offset[2] = -1e3
        for _ in range(20):
            pool(torch.randn(50, WIDTH))
            pool.after_step()
    assert (pool.read_bias[2] == 0).all()
    assert (pool.silent.view(5, 7)[2] == 0).all()


def test_the_unit_bias_rises_while_a_unit_is_selected_less_than_the_mean(hand, row):
    pool = hand(k=1, unit_balance=0.125, unit_balance_steps=8).train()
    pool(row[None])
    # Unit 1 wins: loads 0, 1 | 0, 0 against a mean of .25.
    assert pool.unit_load.tolist() == [0.0, 1.0, 0.0, 0.0]
    pool.after_step()
    assert pool.unit_bias.tolist() == [[0.125, -0.125], [0.125, 0.125]]
    assert pool.unit_load.tolist() == [0.0] * 4


def test_the_unit_bias_is_annealed_to_exactly_zero(hand, row):
    pool = hand(k=1, unit_balance=0.125, unit_balance_steps=8).train()
    largest = []
    for _ in range(9):
        pool(row[None])
        pool.after_step()
        largest.append(pool.unit_bias.abs().max().item())
    # Up by .125 a step until the cap (1 − step/8) · 8 · .125 comes down to meet it at step 4.
    assert largest == [0.125, 0.25, 0.375, 0.5, 0.375, 0.25, 0.125, 0.0, 0.0]


def test_the_unit_bias_ranks_but_adds_no_strength(hand, row, near):
    pool = hand(k=1, unit_balance=0.125).train()
    with torch.no_grad():
        pool.unit_bias.copy_(torch.tensor([[1.0, 0.0], [0.0, 99.0]]))
    # Ranked 1.8, 1.6 | .6, and unit 3 reads below zero: unit 0 wins, with its own strength .8.
    near(pool(row[None])[0], (0.8, 1.0))
    # In evaluation the bias is not there.
    near(pool.eval()(row), (0.0, 2.6))


@pytest.mark.parametrize(
    ("config", "moved"),
    [
        (replace(TINY, select="batchtopk", balance="bias"), ("threshold", "router_bias", "steps")),
        (replace(TINY, unit_balance=0.1), ("unit_bias", "steps")),
    ],
)
def test_state_survives_and_loads_are_not_part_of_it(config, moved):
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).train()
    for _ in range(3):
        pool(torch.randn(30, WIDTH))
        pool.after_step()
    again = config.build(name="ffn", width=WIDTH, output_rms=1.0).train()
    again.load_state_dict(pool.state_dict())
    assert not any("load" in name for name in pool.state_dict())
    for name in moved:
        assert name in pool.state_dict()
        assert (getattr(pool, name) != 0).any(), name
    x = torch.randn(30, WIDTH)
    for each in (pool, again):
        each(x)
        each.after_step()
    for name, value in pool.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("select", ["batchtopk", "jumprelu"])
def test_thresholds_start_where_k_units_pass(select):
    config = replace(TINY, pools=16, slots=32, open_pools=4, k=6, select=select)
    pool = config.build(name="ffn", width=WIDTH, output_rms=0.5).eval()
    x = torch.randn(4096, WIDTH)
    code = pool.activate(x)
    # Settled on other Gaussian rows: 5 % covers the spread between two draws of 4,096.
    assert (code.gate > 0).float().sum(-1).mean().item() == pytest.approx(6, rel=0.05)
    assert pool(x).square().mean().sqrt().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("training", [False, True])
def test_no_rows(training):
    pool = replace(TINY, shared="sink_unit").build(name="ffn", width=WIDTH, output_rms=1.0)
    assert pool.train(training)(torch.zeros(0, WIDTH)).shape == (0, WIDTH)
    assert pool.activate(torch.zeros(2, 0, WIDTH)).unit.shape == (2, 0, 4)
