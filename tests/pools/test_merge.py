"""Repeats in sparse rows: merged by hand, against a dense scatter, and in gradients."""

import pytest
import torch

from pellucid.pools.merge import first_of_each, merge_repeats


def test_by_hand():
    unit = torch.tensor([[5, 2, 5, 0], [1, 1, 1, 1]])
    gate = torch.tensor([[0.5, 0.25, 0.125, 1.0], [1.0, 2.0, 3.0, 4.0]])
    merged, total = merge_repeats(unit, gate, 6)
    # Ascending, and the room left over names the last unit again at gate 0.
    assert merged.tolist() == [[0, 2, 5, 5], [1, 1, 1, 1]]
    assert total.tolist() == [[1.0, 0.25, 0.625, 0.0], [10.0, 0.0, 0.0, 0.0]]


def test_first_of_each_by_hand():
    first = first_of_each(torch.tensor([[0, 0, 3, 3, 3, 4]]))
    assert first.tolist() == [[True, False, True, False, False, True]]


@pytest.mark.parametrize(
    ("rows", "entries", "units"), [(1, 1, 1), (63, 9, 4), (0, 3, 5), (5, 2, 9)]
)
def test_keeps_the_dense_sum_and_lists_no_unit_twice(rows: int, entries: int, units: int):
    unit = torch.randint(units, (rows, entries))
    gate = torch.rand(rows, entries, dtype=torch.float64) + 0.1
    merged, total = merge_repeats(unit, gate, units)
    assert merged.shape == (rows, min(entries, units))
    expected = torch.zeros(rows, units, dtype=torch.float64).scatter_add(1, unit, gate)
    found = torch.zeros(rows, units, dtype=torch.float64).scatter_add(1, merged, total)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)  # at most 9 terms of order 1
    listed = torch.zeros(rows, units).scatter_add(1, merged, (total != 0).float())
    assert (listed <= 1).all()
    assert (merged.diff(dim=1) >= 0).all()


def test_gradient_of_a_merged_gate_reaches_every_repeat():
    unit = torch.tensor([[2, 0, 2]])
    gate = torch.ones(1, 3, requires_grad=True)
    merged, total = merge_repeats(unit, gate, 3)
    (total * (merged + 1)).sum().backward()  # weights 1 for unit 0 and 3 for unit 2
    assert gate.grad is not None
    assert gate.grad.tolist() == [[3.0, 1.0, 3.0]]
