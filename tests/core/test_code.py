"""Arithmetic on codes, by hand."""

import pytest
import torch

from pellucid.core.code import check_exclusive, keep_largest, named_gates, take_largest
from pellucid.core.unit import Code


def _code(rows: int = 2) -> Code:
    return Code(
        torch.tensor([[4, 0, 2]] * rows),
        torch.tensor([[0.5, 0.0, 2.0]] * rows),
        torch.tensor([[3.0, 7.0, -1.0]] * rows),
    )


def test_named_gates_by_hand():
    # Unit 1 is not listed, unit 0 is at gate 0; the order asked for is the order given.
    found = named_gates(_code(), torch.tensor([2, 1, 4, 0]), 5)
    assert found.tolist() == [[2.0, 0.0, 0.5, 0.0]] * 2


def test_a_unit_named_twice_has_its_gate_in_both_places():
    found = named_gates(_code(), torch.tensor([2, 4, 2, 1, 4, 2]), 5)
    assert found.tolist() == [[2.0, 0.5, 2.0, 0.0, 0.5, 2.0]] * 2


def test_naming_nothing_gives_nothing():
    assert named_gates(_code(), torch.zeros(0, dtype=torch.long), 5).shape == (2, 0)


def test_both_places_of_a_unit_lead_its_gradient_back():
    gate = torch.tensor([[0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    code = Code(torch.tensor([[4, 1]]), gate, torch.ones(1, 2, dtype=torch.float64))
    found = named_gates(code, torch.tensor([1, 4, 1]), 5)
    (grad,) = torch.autograd.grad((found * torch.tensor([1.0, 10.0, 100.0])).sum(), gate)
    # Unit 4 once with weight 10, unit 1 twice with 1 and 100.
    assert grad.tolist() == [[10.0, 101.0]]


def test_padding_adds_nothing_to_a_named_gate():
    code = Code(
        torch.tensor([[1, 1, 1]]), torch.tensor([[0.0, 0.7, 0.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    )
    assert named_gates(code, torch.tensor([1]), 2).tolist() == [[pytest.approx(0.7)]]


def test_take_largest_weighs_by_the_write_norm():
    # |value| = 1.5, 0, 2; norms 2, 9, 1: weights 3, 0, 2.
    norm = torch.tensor([[2.0, 9.0, 1.0]] * 2)
    assert take_largest(_code(), norm, 1).unit.tolist() == [[4], [4]]
    two = take_largest(_code(), norm, 2)
    assert two.unit.tolist() == [[4, 2], [4, 2]]
    assert two.value.tolist() == [[1.5, -2.0]] * 2


@pytest.mark.parametrize("limit", [None, 3, 4])
def test_a_limit_that_does_not_bind_changes_nothing(limit):
    code = _code()
    assert keep_largest(code, torch.ones(9, 2), limit) is code


def test_unit_and_limit_exclude_each_other():
    check_exclusive(torch.arange(1), None)
    check_exclusive(None, 1)
    check_exclusive(None, None)
    with pytest.raises(ValueError, match="not both"):
        check_exclusive(torch.arange(1), 1)
