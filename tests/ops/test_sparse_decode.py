"""The three sparse products against plain gathers, forward and backward, at awkward sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.ops.sparse_decode import fast, reference, segment_outer, sparse_decode, sparse_read

# (T rows, K entries, N table rows, d width)
SIZES = [
    (1, 1, 1, 1),
    (63, 5, 100, 7),
    (100, 63, 63, 100),
    (1, 100, 3, 1),
    (63, 1, 1, 63),
    (0, 3, 5, 4),
    (3, 0, 5, 4),
    (0, 0, 1, 1),
]
# float64 sums of at most 6,300 products of order 1.
EXACT = {"atol": 1e-11, "rtol": 1e-11}


def _inputs(
    size: tuple[int, int, int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(unit, value, x, table); units repeat within rows wherever K > N, and by chance."""
    rows, entries, units, width = size
    return (
        torch.randint(units, (rows, entries)),
        torch.randn(rows, entries).to(dtype).requires_grad_(),
        torch.randn(rows, width).to(dtype).requires_grad_(),
        torch.randn(units, width).to(dtype).requires_grad_(),
    )


def test_by_hand():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0]])
    unit = torch.tensor([[2, 0], [1, 1]])
    value = torch.tensor([[10.0, 1.0], [5.0, 7.0]])
    # 10(2,3) + 1(1,0) = (21,30); (5+7)(0,1) = (0,12)
    assert sparse_decode(unit, value, table).tolist() == [[21.0, 30.0], [0.0, 12.0]]
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    # (2,3)·(1,2) = 8, (1,0)·(1,2) = 1; (0,1)·(3,4) = 4 twice
    assert sparse_read(x, unit, table).tolist() == [[8.0, 1.0], [4.0, 4.0]]
    # Row 0: 1(1,2); row 1: (5+7)(3,4); row 2: 10(1,2); row 3: never named
    assert segment_outer(unit, value, x, 4).tolist() == [[1, 2], [36, 48], [10, 20], [0, 0]]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_equals_the_gather(size):
    unit, value, x, table = _inputs(size)
    torch.testing.assert_close(
        sparse_decode(unit, value, table), reference.sparse_decode(unit, value, table), **EXACT
    )
    torch.testing.assert_close(
        sparse_read(x, unit, table), reference.sparse_read(x, unit, table), **EXACT
    )
    torch.testing.assert_close(
        segment_outer(unit, value, x, size[2]),
        reference.segment_outer(unit, value, x, size[2]),
        **EXACT,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_equal_autograd_through_the_gather(size):
    unit, value, x, table = _inputs(size)
    for ours, plain, leaves in (
        (sparse_decode(unit, value, table), reference.sparse_decode, (unit, value, table)),
        (sparse_read(x, unit, table), reference.sparse_read, (x, unit, table)),
    ):
        expected = plain(*leaves)
        upstream = torch.randn_like(expected)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = torch.autograd.grad(ours, wanted, upstream)
        for grad, right in zip(found, torch.autograd.grad(expected, wanted, upstream)):
            torch.testing.assert_close(grad, right, **EXACT)


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (5, 3, 4, 2), (4, 6, 3, 5)], ids=str)
def test_gradients_equal_finite_differences(size):
    unit, value, x, table = _inputs(size)
    assert torch.autograd.gradcheck(lambda v, w: sparse_decode(unit, v, w), (value, table))
    assert torch.autograd.gradcheck(lambda a, w: sparse_read(a, unit, w), (x, table))


def test_only_the_gradients_that_are_wanted_are_made():
    unit, value, x, table = _inputs((4, 3, 5, 2))
    (only,) = torch.autograd.grad(sparse_decode(unit, value.detach(), table).sum(), [table])
    assert only.shape == table.shape
    (only,) = torch.autograd.grad(sparse_read(x, unit, table.detach()).sum(), [x])
    assert only.shape == x.shape


def test_an_upstream_gradient_may_be_strided():
    unit, value, x, table = _inputs((5, 3, 7, 4))
    upstream = torch.randn(4, 5, dtype=torch.float64).t()
    found = torch.autograd.grad(sparse_decode(unit, value, table), [value, table], upstream)
    again = torch.autograd.grad(
        sparse_decode(unit, value, table), [value, table], upstream.contiguous()
    )
    assert all(torch.equal(a, b) for a, b in zip(found, again))
    wide = torch.randn(7, 8, dtype=torch.float64)
    torch.testing.assert_close(
        sparse_read(x, unit, wide[:, ::2]), reference.sparse_read(x, unit, wide[:, ::2]), **EXACT
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99)
)
def test_the_products_are_dual(rows, entries, units, width, seed):
    # <decode(value), x> = <value, read(x)> = <segment_outer(value, x), table>
    torch.manual_seed(seed)
    unit, value, x, table = (t.detach() for t in _inputs((rows, entries, units, width)))
    first = (sparse_decode(unit, value, table) * x).sum()
    second = (value * sparse_read(x, unit, table)).sum()
    third = (segment_outer(unit, value, x, units) * table).sum()
    torch.testing.assert_close(first, second, **EXACT)
    torch.testing.assert_close(first, third, **EXACT)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # One rounding of a sum of about ten products of order 1: 2^-8 and 2^-11 of some units.
    [(torch.bfloat16, 0.08), (torch.float16, 0.01), (torch.float32, 1e-4)],
    ids=str,
)
def test_lower_precision_stays_near_float64(dtype, tolerance):
    unit, value, x, table = _inputs((63, 5, 100, 33), dtype)
    exact = [t.detach().double() for t in (value, x, table)]
    decoded, read = sparse_decode(unit, value, table), sparse_read(x, unit, table)
    assert decoded.dtype == read.dtype == dtype
    near = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(
        decoded.double(), reference.sparse_decode(unit, exact[0], exact[2]), **near
    )
    torch.testing.assert_close(
        read.double(), reference.sparse_read(exact[1], unit, exact[2]), **near
    )
    (decoded.sum() + read.sum()).backward()
    for leaf in (value, x, table):
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        assert torch.isfinite(leaf.grad).all()


def test_values_and_rows_take_the_tables_type():
    unit, value, x, table = _inputs((4, 3, 5, 2), torch.float32)
    assert sparse_decode(unit, value.bfloat16(), table).dtype == torch.float32
    assert sparse_read(x.bfloat16(), unit, table).dtype == torch.float32
    low = table.bfloat16()
    assert sparse_decode(unit, value, low).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(5, 8, 4, 3), (63, 5, 100, 7)], ids=str)
def test_autocast_changes_nothing(size, dtype):
    # The first size asks for more entries than there are rows, where all products are made.
    unit, value, x, table = _inputs(size, dtype)
    leaves = [value, x, table]

    def run() -> list[Tensor]:
        decoded, read = sparse_decode(unit, value, table), sparse_read(x, unit, table)
        assert decoded.dtype == read.dtype == dtype
        loss = (decoded.float() * decoded.float()).sum() + (read.float() * read.float()).sum()
        return [decoded, read, *torch.autograd.grad(loss, leaves)]

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run()
    assert all(torch.equal(one, other) for one, other in zip(plain, inside))


def test_the_half_path_is_the_same_in_chunks(monkeypatch):
    unit, _, x, table = (t.detach() for t in _inputs((63, 5, 100, 7), torch.bfloat16))
    whole = sparse_read(x, unit, table)
    monkeypatch.setattr(fast, "CHUNK_ELEMENTS", 4 * 5 * 7)  # four rows a chunk, the last partial
    assert torch.equal(sparse_read(x, unit, table), whole)
    monkeypatch.setattr(fast, "CHUNK_ELEMENTS", 1)  # less than a row: one row a chunk
    assert torch.equal(sparse_read(x, unit, table), whole)


def test_equal_inputs_give_equal_bits():
    unit, value, x, table = _inputs((100, 63, 10, 33), torch.float32)
    for run in (
        lambda: sparse_decode(unit, value, table),
        lambda: sparse_read(x, unit, table),
        lambda: segment_outer(unit, value.detach(), x.detach(), 10),
        lambda: torch.autograd.grad(sparse_decode(unit, value, table).square().sum(), [table])[0],
    ):
        assert torch.equal(run(), run())


class _Largest(TorchDispatchMode):
    """The most elements that any operation's result held."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, Tensor) and item.layout == torch.strided:
                self.elements = max(self.elements, item.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_tensor_of_rows_by_entries_by_width_is_built(monkeypatch, dtype):
    rows, entries, units, width = size = (50, 40, 60, 30)
    monkeypatch.setattr(fast, "CHUNK_ELEMENTS", entries * width)
    unit, value, x, table = _inputs(size, dtype)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with _Largest() as seen, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = sparse_decode(unit, value, table).sum() + sparse_read(x, unit, table).sum()
        y.backward()
    # The largest tensors are value [T, K], the table [N, d] and the rows [T, d].
    allowed = max(rows * entries, units * width, rows * width)
    assert seen.elements <= allowed
    assert max(saved) <= allowed
    with _Largest() as seen:
        reference.sparse_decode(unit, value, table).sum().backward()
    assert seen.elements >= rows * entries * width, "the recorder must see what it looks for"
