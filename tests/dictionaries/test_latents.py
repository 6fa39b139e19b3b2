"""Latents as codes, their sums and counts by hand, and one pass's error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.dictionaries.latents import Latents, Pass
from pellucid.ops.rows import DenseRows

TABLE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def _listed() -> Latents:
    """Row 0 has latents 2 and 0, row 1 latent 1 and padding."""
    gate = torch.tensor([[1.0, 0.5], [1.0, 0.0]])
    act = torch.tensor([[2.0, 4.0], [-3.0, 7.0]])
    return Latents(unit=torch.tensor([[2, 0], [1, 1]]), gate=gate, act=act, value=gate * act)


def _every(gate: Tensor, act: Tensor) -> Latents:
    return Latents(unit=None, gate=gate, act=act, value=gate * act)


def test_listed_latents_decode_by_hand():
    # 2·(1, 1) + .5·4·(1, 0) = (4, 2);  −3·(0, 1) = (0, −3).
    assert _listed().decode(DenseRows(TABLE)).tolist() == [[4.0, 2.0], [0.0, -3.0]]


def test_unlisted_latents_decode_by_hand():
    # 2·(1, 0) + 3·(1, 1) = (5, 3); the second row is silent.
    latents = _every(
        torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), torch.tensor([[2.0, 9.0, 3.0]] * 2)
    )
    assert latents.decode(DenseRows(TABLE)).tolist() == [[5.0, 3.0], [0.0, 0.0]]


def test_listed_latents_are_their_own_code():
    latents = _listed()
    code = latents.code()
    assert code.unit is latents.unit
    assert code.gate is latents.gate
    assert code.act is latents.act


def test_a_code_is_as_wide_as_the_fullest_row():
    gate = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    act = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    code = _every(gate, act).code()
    assert code.unit.shape == (2, 2)
    first = dict(zip(code.unit[0].tolist(), code.value[0].tolist()))
    assert first == {1: 2.0, 3: 4.0}
    second = dict(zip(code.unit[1].tolist(), code.gate[1].tolist()))
    assert second.pop(2) == 1.0
    assert list(second.values()) == [0.0], "padding has gate 0"


@pytest.mark.parametrize("rows", [0, 3])
def test_a_code_of_nothing_has_no_width(rows):
    code = _every(torch.zeros(rows, 4), torch.ones(rows, 4)).code()
    assert code.unit.shape == code.gate.shape == code.act.shape == (rows, 0)


@settings(max_examples=30)
@given(st.integers(0, 5), st.integers(1, 9), st.integers(0, 99))
def test_a_code_says_the_same_as_its_latents(rows, latents, seed):
    torch.manual_seed(seed)
    gate = (torch.rand(rows, latents) > 0.6).float() * torch.randn(rows, latents)
    every = _every(gate, torch.randn(rows, latents))
    code = every.code()
    dense = torch.zeros(rows, latents).scatter_add(1, code.unit, code.value)
    assert torch.equal(dense, every.value)
    listed = Latents(unit=code.unit, gate=code.gate, act=code.act, value=code.value)
    assert torch.equal(listed.fired(latents), every.fired(latents))


def test_firings_by_hand():
    # Latents 2, 0 and 1 once each: a negative value is a firing, padding is none.
    assert _listed().fired(4).tolist() == [1, 1, 1, 0]
    gate = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    act = torch.tensor([[1.0, 0.0, 1.0], [-1.0, 2.0, 1.0]])
    assert _every(gate, act).fired(3).tolist() == [2, 1, 0]


def test_no_rows_fire_nothing():
    empty = torch.zeros(0, 3)
    assert _every(empty, empty).fired(3).tolist() == [0, 0, 0]
    unit = torch.zeros(0, 2, dtype=torch.long)
    listed = Latents(unit=unit, gate=empty[:, :2], act=empty[:, :2], value=empty[:, :2])
    assert listed.fired(3).tolist() == [0, 0, 0]
    assert listed.decode(DenseRows(TABLE)).shape == (0, 2)


def test_the_error_by_hand():
    # Residuals (3, 4) − (1, 0) − (2, 0) = (0, 4) and (0, 0) − (1, 0) − (0, 3) = (−1, −3):
    # squared norms 16 and 10, mean 13, over V = 2: 6.5.
    rows = DenseRows(TABLE)
    seen = Pass(
        z=torch.zeros(2, 2),
        target=torch.tensor([[3.0, 4.0], [0.0, 0.0]]),
        base=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        reads=rows,
        writes=rows,
        latents=_listed(),
        variance=torch.tensor(2.0),
    )
    assert seen.error(torch.tensor([[2.0, 0.0], [0.0, 3.0]])).item() == 6.5


def test_gradients_pass_through_the_value_alone():
    value = torch.tensor([[2.0, -3.0]], requires_grad=True)
    latents = Latents(
        unit=torch.tensor([[2, 1]]), gate=torch.ones(1, 2), act=torch.zeros(1, 2), value=value
    )
    latents.decode(DenseRows(TABLE)).sum().backward()
    # Σ over the width: 2 for (1, 1), 1 for (0, 1).
    assert value.grad is not None
    assert value.grad.tolist() == [[2.0, 1.0]]
