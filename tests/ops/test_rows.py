"""Dense and sparse rows behind one surface: every member against the plain table."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

from pellucid.ops.rows import AtomRows, DenseRows, SparseRows

N, S, D, B, K = 30, 4, 11, 7, 5
# float64 sums of at most 30 products of order 1.
EXACT = {"atol": 1e-12, "rtol": 1e-12}


def _places() -> Tensor:
    """Different ascending places per row."""
    return torch.stack([torch.randperm(D)[:S].sort().values for _ in range(N)])


def _dense() -> tuple[AtomRows, Tensor]:
    table = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    return DenseRows(table), table


def _sparse() -> tuple[AtomRows, Tensor]:
    values = torch.randn(N, S, dtype=torch.float64, requires_grad=True)
    index = _places().to(torch.int16)
    return SparseRows(values, index, D), values


MAKERS: tuple[Callable[[], tuple[AtomRows, Tensor]], ...] = (_dense, _sparse)


@pytest.fixture(params=MAKERS, ids=["dense", "sparse"])
def rows(request) -> AtomRows:
    return request.param()[0]


def _table(rows: AtomRows) -> Tensor:
    """The rows as a plain [n, d] table that autograd follows to the weights."""
    if isinstance(rows, SparseRows):
        empty = rows.values.new_zeros(rows.num, rows.width)
        return empty.scatter(1, rows.index.long(), rows.values)
    return rows.weights


def test_sparse_rows_by_hand():
    # Row 0 is (0, 2, 0, 3), row 1 is (5, 0, 0, -1).
    values = torch.tensor([[2.0, 3.0], [5.0, -1.0]])
    rows = SparseRows(values, torch.tensor([[1, 3], [0, 3]]), 4)
    z = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    assert (rows.num, rows.width) == (2, 4)
    assert rows.all(z).tolist() == [[3020.0, -995.0]]
    assert rows.some(z, torch.tensor([[1, 0, 1]])).tolist() == [[-995.0, 3020.0, -995.0]]
    assert rows.gather(torch.tensor([1])).tolist() == [[5.0, 0.0, 0.0, -1.0]]
    # 10·row 0 + 2·row 1
    right = [[10.0, 20.0, 0.0, 28.0]]
    assert rows.decode(torch.tensor([[0, 1]]), torch.tensor([[10.0, 2.0]])).tolist() == right
    assert rows.combine(torch.tensor([[10.0, 2.0]])).tolist() == right
    assert rows.top(z, None, 1, "abs").tolist() == [[0]]
    assert rows.top(z, torch.tensor([0.0, 5000.0]), 1, "signed").tolist() == [[1]]


def test_sizes(rows):
    assert (rows.num, rows.width) == (N, D)


def test_forward_and_gradients_equal_the_plain_table(rows):
    weights = rows.weights
    z = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    value = torch.randn(B, K, dtype=torch.float64, requires_grad=True)
    code = torch.randn(B, N, dtype=torch.float64, requires_grad=True)
    factor = torch.randn(N, dtype=torch.float64, requires_grad=True)
    unit, table = torch.randint(N, (B, K)), _table(rows)
    leaves = (weights, z, value, code, factor)
    for ours, plain in (
        (rows.all(z), z @ table.t()),
        (rows.some(z, unit), (table[unit] * z.unsqueeze(1)).sum(-1)),
        (rows.decode(unit, value), (value.unsqueeze(-1) * table[unit]).sum(1)),
        (rows.combine(code), code @ table),
        (rows.gather(unit), table[unit]),
        (rows.norms(), table.norm(dim=1)),
        (rows.scaled(factor).all(z), z @ (factor.unsqueeze(1) * table).t()),
        (rows.block(3, 17).all(z), z @ table[3:17].t()),
    ):
        torch.testing.assert_close(ours, plain, **EXACT)
        upstream = torch.randn_like(ours)
        found = torch.autograd.grad(ours, leaves, upstream, allow_unused=True, retain_graph=True)
        right = torch.autograd.grad(plain, leaves, upstream, allow_unused=True, retain_graph=True)
        for a, b in zip(found, right):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("sign", ["relu", "signed", "abs"])
def test_top_equals_the_sorted_table(rows, sign):
    z, bias = torch.randn(B, D).double(), torch.randn(N).double()
    score = z @ _table(rows).detach().t() + bias
    order = (score.abs() if sign == "abs" else score).argsort(dim=1, descending=True)
    assert torch.equal(rows.top(z, bias, 6, sign), order[:, :6])
    assert torch.equal(rows.top(z, bias, 4, sign, order[:, :2]), order[:, 2:6])


def test_a_block_is_a_view(rows):
    block = rows.block(2, 9)
    assert type(block) is type(rows)
    assert (block.num, block.width) == (7, D)
    assert block.weights.data_ptr() == rows.weights[2:].data_ptr()
    unit = torch.arange(7)
    assert torch.equal(block.gather(unit), rows.gather(unit + 2))


def test_other_weights_keep_the_places(rows):
    doubled = rows.with_weights(2 * rows.weights)
    unit = torch.arange(N)
    assert torch.equal(doubled.gather(unit), 2 * rows.gather(unit))


def test_an_outer_product_is_the_gradient_of_the_read(rows):
    x, unit = torch.randn(B, D).double(), torch.randint(N, (B, 1))
    (right,) = torch.autograd.grad(rows.some(x, unit).sum(), [rows.weights])
    total = torch.ones_like(rows.weights.detach())
    rows.add_outer(total, unit[:, 0], x)
    torch.testing.assert_close(total, right + 1, **EXACT)


def test_no_row_and_one_row(rows):
    empty, unit = torch.zeros(0, D).double(), torch.zeros(0, 3, dtype=torch.long)
    assert rows.all(empty).shape == (0, N)
    assert rows.some(empty, unit).shape == (0, 3)
    assert rows.decode(unit, torch.zeros(0, 3).double()).shape == (0, D)
    assert rows.combine(torch.zeros(0, N).double()).shape == (0, D)
    assert rows.top(empty, None, 3, "relu").shape == (0, 3)
    assert rows.gather(torch.tensor(3)).shape == (D,)
    single = rows.block(5, 6)
    z = torch.randn(2, D).double()
    torch.testing.assert_close(single.all(z), rows.all(z)[:, 5:6], **EXACT)
    assert single.top(z, None, 1, "abs").tolist() == [[0], [0]]


def test_low_precision_rows_set_the_type(rows):
    low = rows.with_weights(rows.weights.detach().bfloat16())
    z, unit = torch.randn(B, D), torch.randint(N, (B, K))
    assert low.all(z).dtype == torch.bfloat16
    assert low.some(z, unit).dtype == torch.bfloat16
    assert low.decode(unit, torch.randn(B, K)).dtype == torch.bfloat16
    # One rounding to 2^-8 of a sum of about 11 products of order 1.
    exact = z.double() @ _table(low).double().t()
    torch.testing.assert_close(low.all(z).double(), exact, atol=0.1, rtol=0.02)


def test_rows_are_frozen_and_their_base_is_abstract(rows):
    field = "table" if isinstance(rows, DenseRows) else "values"
    with pytest.raises(FrozenInstanceError):
        setattr(rows, field, torch.zeros(1, 1))
    with pytest.raises(TypeError, match="abstract"):
        AtomRows()
