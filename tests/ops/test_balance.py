"""Balance of load: hand-computed losses, their gradients, and the sign step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.ops.balance import balance_loss, bias_step, z_loss


def test_balance_loss_by_hand():
    # F = (3, 1) / 4, mean P = (.7, .3): 2 · (.75 · .7 + .25 · .3) = 1.2
    probability = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)
    load = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert balance_loss(probability, load).item() == pytest.approx(1.2, abs=1e-12)


def test_perfect_balance_costs_one():
    for pools in (1, 2, 63):
        probability = torch.full((5, pools), 1 / pools, dtype=torch.float64)
        load = torch.full((pools,), 7.0, dtype=torch.float64)
        assert balance_loss(probability, load).item() == pytest.approx(1.0, abs=1e-12)


def test_collapse_costs_as_many_as_there_are_pools():
    probability = torch.tensor([[1.0, 0.0, 0.0]] * 4)
    assert balance_loss(probability, torch.tensor([4.0, 0.0, 0.0])).item() == pytest.approx(3.0)


def test_the_gradient_goes_to_the_probabilities_alone():
    probability = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    balance_loss(probability, torch.tensor([3.0, 1.0], dtype=torch.float64)).backward()
    # d/dp_ti = P · F_i / T = 2 · F_i / 2 = F_i
    assert probability.grad is not None
    torch.testing.assert_close(
        probability.grad, torch.tensor([[0.75, 0.25]] * 2, dtype=torch.float64)
    )


def test_no_load_is_no_division_by_zero():
    assert balance_loss(torch.full((2, 2), 0.5), torch.zeros(2)).item() == 0.0


def test_z_loss_by_hand():
    # logsumexp(0, 0) = ln 2, logsumexp(ln 3, 0) = ln 4
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    expected = (math.log(2) ** 2 + math.log(4) ** 2) / 2
    assert z_loss(logits).item() == pytest.approx(expected, abs=1e-12)


def test_z_loss_pulls_drifting_logits_down():
    logits = torch.full((3, 4), 5.0, dtype=torch.float64, requires_grad=True)
    z_loss(logits).backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.long], ids=str)
def test_bias_step_by_hand(dtype):
    # Mean load 3: below it +.1, at it 0, above it −.1.
    load = torch.tensor([1, 3, 5], dtype=dtype)
    found = bias_step(torch.tensor([0.0, 0.5, 1.0]), load, 0.1)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.5, 0.9]))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.floats(0.001, 1.0))
def test_the_step_is_against_the_load(loads, rate):
    load = torch.tensor(loads, dtype=torch.float64)
    moved = bias_step(torch.zeros(len(loads), dtype=torch.float64), load, rate)
    assert (moved.abs() <= rate).all()
    assert (moved[load > load.mean()] == -rate).all()
    assert (moved[load < load.mean()] == rate).all()
    assert (moved[load == load.mean()] == 0).all()


def test_the_bias_it_was_given_is_left_alone():
    bias = torch.zeros(2)
    bias_step(bias, torch.tensor([0.0, 2.0]), 0.1)
    assert bias.tolist() == [0.0, 0.0]
