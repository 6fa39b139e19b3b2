"""Sparse-row products against the dense table, forward and backward, at awkward sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.ops.expander import (
    expander_all,
    expander_combine,
    expander_decode,
    expander_gather,
    expander_outer,
    expander_read,
    expander_topk,
    fast,
    reference,
    scan,
)

# (B tokens, K chosen rows, n rows, s non-zeros, d width)
SIZES = [
    (1, 1, 1, 1, 1),
    (63, 5, 100, 3, 7),
    (100, 63, 63, 10, 20),
    (1, 100, 3, 4, 4),
    (130, 2, 1, 2, 5),
    (0, 3, 5, 2, 4),
    (3, 0, 5, 2, 4),
]
# float64 sums of at most 6,300 products of order 1.
EXACT = {"atol": 1e-11, "rtol": 1e-11}


class _Case:
    """Random leaves of one size; rows chosen twice wherever K > n, and by chance."""

    def __init__(self, size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        tokens, chosen, rows, nonzeros, width = size
        self.width = width
        self.unit = torch.randint(rows, (tokens, chosen))
        self.index = torch.rand(rows, width).argsort(1)[:, :nonzeros].to(torch.int16)
        self.z = torch.randn(tokens, width).to(dtype).requires_grad_()
        self.value = torch.randn(tokens, chosen).to(dtype).requires_grad_()
        self.code = torch.randn(tokens, rows).to(dtype).requires_grad_()
        self.values = torch.randn(rows, nonzeros).to(dtype).requires_grad_()

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.z, self.value, self.code, self.values

    def results(self, home) -> list[Tensor]:
        """Every differentiable product, by the module ``home``."""
        z, unit, values, index, width = self.z, self.unit, self.values, self.index, self.width
        return [
            home.expander_all(z, values, index),
            home.expander_read(z, unit, values, index),
            home.expander_decode(unit, self.value, values, index, width),
            home.expander_combine(self.code, values, index, width),
            home.expander_gather(unit, values, index, width),
        ]

    def outer(self, home) -> Tensor:
        return home.expander_outer(self.unit, self.value.detach(), self.z.detach(), self.index)


class _Fast:
    """The ops as users import them, under the names that the reference has."""

    expander_all = staticmethod(expander_all)
    expander_combine = staticmethod(expander_combine)
    expander_read = staticmethod(expander_read)
    expander_decode = staticmethod(expander_decode)
    expander_gather = staticmethod(expander_gather)
    expander_outer = staticmethod(expander_outer)


def _same(case: _Case) -> None:
    """Results and gradients of the fast ops equal those of the dense table."""
    torch.testing.assert_close(case.outer(_Fast), case.outer(reference), **EXACT)
    for ours, plain in zip(case.results(_Fast), case.results(reference)):
        torch.testing.assert_close(ours, plain, **EXACT)
        upstream = torch.randn_like(plain)
        found = torch.autograd.grad(ours, case.leaves, upstream, allow_unused=True)
        right = torch.autograd.grad(plain, case.leaves, upstream, allow_unused=True)
        for a, b in zip(found, right):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, **EXACT)


def test_by_hand():
    # Row 0 is (0, 2, 3), row 1 is (5, 0, -1).
    values, index = torch.tensor([[2.0, 3.0], [5.0, -1.0]]), torch.tensor([[1, 2], [0, 2]])
    z = torch.tensor([[1.0, 10.0, 100.0], [1.0, 1.0, 1.0]])
    unit, value = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[10.0, 1.0], [3.0, 4.0]])
    # (0·1 + 2·10 + 3·100, 5·1 − 100), (2 + 3, 5 − 1)
    assert expander_all(z, values, index).tolist() == [[320.0, -95.0], [5.0, 4.0]]
    assert expander_read(z, unit, values, index).tolist() == [[320.0, -95.0], [4.0, 4.0]]
    # 10·(0, 2, 3) + (5, 0, −1); (3 + 4)·(5, 0, −1)
    right = [[5.0, 20.0, 29.0], [35.0, 0.0, -7.0]]
    assert expander_decode(unit, value, values, index, 3).tolist() == right
    code = torch.tensor([[10.0, 1.0], [0.0, 7.0]])
    assert expander_combine(code, values, index, 3).tolist() == right
    assert expander_gather(unit[0], values, index, 3).tolist() == [[0, 2, 3], [5, 0, -1]]
    # Row 0: 10·z_0 at places 1, 2; row 1: 1·z_0 + 7·z_1 at places 0, 2
    assert expander_outer(unit, value, z, index).tolist() == [[100.0, 1000.0], [8.0, 107.0]]
    assert expander_topk(z, values, index, None, 1, "signed").tolist() == [[0], [0]]
    assert expander_topk(z, values, index, torch.tensor([0.0, 2.0]), 1, "abs").tolist() == [
        [0],
        [1],
    ]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_and_gradients_equal_the_dense_table(size):
    _same(_Case(size))


@pytest.mark.parametrize("elements", [1, 17, 300])
def test_chunks_do_not_show(monkeypatch, elements):
    monkeypatch.setattr(fast, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(scan, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(scan, "CHUNK_ROWS", 4)
    case = _Case((23, 5, 31, 3, 9))
    _same(case)
    bias = torch.randn(31).double()
    for sign in ("relu", "abs"):
        args = (case.z, case.values, case.index, bias, 6, sign)
        assert torch.equal(expander_topk(*args), reference.expander_topk(*args))


@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (4, 3, 5, 2, 4)], ids=str)
def test_gradients_equal_finite_differences(size):
    case = _Case(size)
    unit, index, width = case.unit, case.index, case.width
    check = torch.autograd.gradcheck
    assert check(lambda z, v: expander_all(z, v, index), (case.z, case.values))
    assert check(lambda z, v: expander_read(z, unit, v, index), (case.z, case.values))
    assert check(lambda f, v: expander_decode(unit, f, v, index, width), (case.value, case.values))
    assert check(lambda f, v: expander_combine(f, v, index, width), (case.code, case.values))
    assert check(lambda v: expander_gather(unit, v, index, width), (case.values,))


def test_only_the_gradients_that_are_wanted_are_made():
    case = _Case((4, 3, 5, 2, 6))
    values, index = case.values, case.index
    for result in (
        expander_all(case.z.detach(), values, index),
        expander_read(case.z.detach(), case.unit, values, index),
        expander_decode(case.unit, case.value.detach(), values, index, 6),
        expander_combine(case.code.detach(), values, index, 6),
    ):
        (only,) = torch.autograd.grad(result.sum(), [values])
        assert only.shape == values.shape
    for result, leaf in (
        (expander_all(case.z, values.detach(), index), case.z),
        (expander_read(case.z, case.unit, values.detach(), index), case.z),
        (expander_decode(case.unit, case.value, values.detach(), index, 6), case.value),
        (expander_combine(case.code, values.detach(), index, 6), case.code),
    ):
        (only,) = torch.autograd.grad(result.sum(), [leaf])
        assert only.shape == leaf.shape


def test_an_upstream_gradient_may_be_strided():
    case = _Case((6, 3, 5, 2, 4))
    for result in case.results(_Fast):
        upstream = torch.randn(*reversed(result.shape), dtype=torch.float64).permute(
            *reversed(range(result.dim()))
        )
        strided = torch.autograd.grad(result, [case.values], upstream, retain_graph=True)[0]
        plain = torch.autograd.grad(result, [case.values], upstream.contiguous())[0]
        assert torch.equal(strided, plain)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99)
)
def test_the_products_are_dual(tokens, chosen, rows, nonzeros, seed):
    # <decode(value), z> = <value, read(z)> = <outer(value, z), values>, and the same over all rows
    torch.manual_seed(seed)
    case = _Case((tokens, chosen, rows, nonzeros, 5))
    every, read, decoded, combined, _ = case.results(_Fast)
    first, second = (decoded * case.z).sum(), (case.value * read).sum()
    torch.testing.assert_close(first, second, **EXACT)
    torch.testing.assert_close(first, (case.outer(_Fast) * case.values).sum(), **EXACT)
    torch.testing.assert_close((combined * case.z).sum(), (case.code * every).sum(), **EXACT)


@pytest.mark.parametrize("sign", ["relu", "signed", "abs"])
@pytest.mark.parametrize(
    "size", [(1, 1, 1, 1), (63, 100, 7, 5), (70, 1001, 9, 1), (0, 4, 3, 2)], ids=str
)
def test_topk_equals_the_full_sort(size, sign):
    tokens, rows, width, k = size
    case = _Case((tokens, 1, rows, min(3, width), width))
    for bias in (None, torch.randn(rows).double()):
        args = (case.z, case.values, case.index, bias, k, sign)
        assert torch.equal(expander_topk(*args), reference.expander_topk(*args))


@pytest.mark.parametrize("elements", [8, 1 << 20])
def test_topk_leaves_out_what_is_excluded(monkeypatch, elements):
    monkeypatch.setattr(scan, "CHUNK_ELEMENTS", elements)
    case = _Case((9, 1, 50, 3, 8))
    best = expander_topk(case.z, case.values, case.index, None, 6, "abs")
    rest = expander_topk(case.z, case.values, case.index, None, 4, "abs", best[:, :2])
    assert torch.equal(rest, best[:, 2:])


def test_topk_gives_ties_to_the_lower_row():
    """Every row the same: scores are equal, so the first rows win, in order."""
    values, index = torch.ones(40, 2), torch.tensor([[0, 2]]).expand(40, 2)
    found = expander_topk(torch.randn(3, 4), values, index, None, 5, "signed")
    assert found.tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
def test_places_may_have_any_integer_type(dtype):
    case = _Case((5, 3, 9, 2, 7))
    right = case.results(_Fast)
    case.index = case.index.to(dtype)
    assert all(torch.equal(a, b) for a, b in zip(case.results(_Fast), right))
    found = expander_topk(case.z, case.values, case.index, None, 2, "relu")
    assert torch.equal(
        found, reference.expander_topk(case.z, case.values, case.index, None, 2, "relu")
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # One rounding of a sum of about ten products of order 1: 2^-8 and 2^-11 of some units.
    [(torch.bfloat16, 0.1), (torch.float16, 0.01), (torch.float32, 1e-4)],
    ids=str,
)
def test_lower_precision_stays_near_float64(dtype, tolerance):
    case = _Case((63, 5, 30, 4, 12), dtype)
    exact = _Case((63, 5, 30, 4, 12))
    exact.unit, exact.index = case.unit, case.index
    exact.z, exact.value, exact.code, exact.values = (t.detach().double() for t in case.leaves)
    for low, right in zip(case.results(_Fast), exact.results(reference)):
        assert low.dtype == dtype
        torch.testing.assert_close(low.double(), right, atol=tolerance, rtol=tolerance)
        low.sum().backward()
    for leaf in case.leaves:
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        assert torch.isfinite(leaf.grad).all()


def test_tokens_and_codes_take_the_type_of_the_values():
    case = _Case((4, 3, 5, 2, 6), torch.float32)
    case.z, case.value = case.z.bfloat16(), case.value.double()
    case.code = case.code.double()
    assert {result.dtype for result in case.results(_Fast)} == {torch.float32}


def test_equal_inputs_give_equal_bits():
    case = _Case((100, 40, 20, 5, 16), torch.float32)

    def run() -> list[Tensor]:
        results = case.results(_Fast)
        loss = sum(result.square().sum() for result in results)
        assert isinstance(loss, Tensor)
        return [*results, *torch.autograd.grad(loss, case.leaves)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run()))


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


def _chosen(home, case: _Case) -> None:
    """One training step through chosen rows only, as a dictionary makes it."""
    read = home.expander_read(case.z, case.unit, case.values, case.index)
    decoded = home.expander_decode(case.unit, read, case.values, case.index, case.width)
    decoded.square().sum().backward()


def test_neither_a_dense_table_nor_gathered_rows_are_built(monkeypatch):
    tokens, chosen, rows, _, width = size = (40, 10, 300, 3, 60)
    monkeypatch.setattr(fast, "CHUNK_ELEMENTS", 400)
    monkeypatch.setattr(scan, "CHUNK_ELEMENTS", 600)
    case, saved = _Case(size), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with _Largest() as seen, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _chosen(_Fast, case)
        expander_topk(case.z, case.values, case.index, None, 4, "relu")
    # z [B, d] is the largest of the inputs; [B, n], [B, K, d] and [n, d] are far above.
    assert seen.elements <= tokens * width
    assert max(saved) <= tokens * width
    assert tokens * width < min(tokens * rows, tokens * chosen * width, rows * width)
    with _Largest() as seen:
        _chosen(reference, case)
    assert seen.elements >= rows * width, "the recorder must see what it looks for"


def test_a_step_over_all_rows_builds_no_dense_table():
    tokens, rows, width = 8, 300, 60
    case = _Case((tokens, 1, rows, 3, width))
    with _Largest() as seen:
        code = expander_all(case.z, case.values, case.index)
        expander_combine(code.relu(), case.values, case.index, width).sum().backward()
    assert seen.elements <= tokens * rows < rows * width
