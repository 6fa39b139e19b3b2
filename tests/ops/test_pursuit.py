"""Pursuits against a solver per token, on dense and sparse rows; recovery, rank, gradients."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.ops.pursuit import gomp, matching_pursuit, omp, oneshot, reference, refit, solve
from pellucid.ops.rows import AtomRows, DenseRows, SparseRows

# float64 least squares on well-conditioned supports of a few atoms.
EXACT = {"atol": 1e-10, "rtol": 1e-10}


def _table(atoms: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(atoms, width).to(dtype), dim=1)


def _sparse(atoms: int, nonzeros: int, width: int) -> SparseRows:
    index = torch.rand(atoms, width).argsort(1)[:, :nonzeros].to(torch.int16)
    return SparseRows(F.normalize(torch.randn(atoms, nonzeros).double(), dim=1), index, width)


def _dense_code(unit: Tensor, value: Tensor, atoms: int) -> Tensor:
    return value.new_zeros(unit.shape[0], atoms).scatter_add(1, unit, value)


def _error(z: Tensor, rows: AtomRows, unit: Tensor, value: Tensor) -> Tensor:
    return (z - rows.decode(unit, value)).norm(dim=1)


def test_omp_by_hand():
    # Atoms e1, e2, (e1 + e2)/√2 and z = (3, 1). Correlations 3, 1, 2.83: e1 first, r = (0, 1).
    # Then 0 (taken), 1, 0.71: e2, and the fit is exact.
    rows = DenseRows(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5]]))
    z = torch.tensor([[3.0, 1.0]])
    unit, value = omp(z, rows, 2, "signed")
    assert unit.tolist() == [[0, 1]]
    torch.testing.assert_close(value, z, atol=1e-6, rtol=0)  # rounding of float32 atoms
    # Both at once: 3 and 2.83. z = 2·e1 + √2·atom 2, since the second entry is all atom 2's.
    unit, value = oneshot(z, rows, 2, "signed")
    assert unit.tolist() == [[0, 2]]
    torch.testing.assert_close(value, torch.tensor([[2.0, 2**0.5]]), atol=1e-6, rtol=0)


def test_signs_by_hand():
    # z = −2·e1 + e2: by sign e2 (1) comes first, by magnitude e1 (−2).
    rows, z = DenseRows(torch.eye(2)), torch.tensor([[-2.0, 1.0]])
    assert omp(z, rows, 1, "signed")[0].tolist() == [[1]]
    assert omp(z, rows, 1, "relu")[0].tolist() == [[1]]
    unit, value = omp(z, rows, 1, "abs")
    assert (unit.tolist(), value.tolist()) == ([[0]], [[-2.0]])


@pytest.mark.parametrize("sign", ["signed", "abs"])
@pytest.mark.parametrize("per_iteration", [1, 3, 8])
@pytest.mark.parametrize("batch", [0, 1, 63])
def test_equals_a_solver_per_token(batch, per_iteration, sign):
    table, z = _table(40, 20), torch.randn(batch, 20).double()
    unit, value = gomp(z, DenseRows(table), 8, sign, per_iteration=per_iteration)
    right_unit, right = reference.gomp(z, table, 8, sign, per_iteration=per_iteration)
    assert torch.equal(unit, right_unit)
    torch.testing.assert_close(value, right, **EXACT)


def test_omp_and_oneshot_are_the_ends_of_gomp():
    rows, z = DenseRows(_table(30, 12)), torch.randn(9, 12).double()
    for found, step in ((omp(z, rows, 5, "abs"), 1), (oneshot(z, rows, 5, "abs"), 5)):
        unit, value = gomp(z, rows, 5, "abs", per_iteration=step)
        assert torch.equal(found[0], unit)
        assert torch.equal(found[1], value)
    assert torch.equal(oneshot(z, rows, 5, "abs")[0], rows.top(z, None, 5, "abs"))


@pytest.mark.parametrize("per_iteration", [1, 2, 4])
def test_structured_pursuit_equals_dense_pursuit(per_iteration):
    rows, z = _sparse(100, 4, 24), torch.randn(30, 24).double()
    dense = DenseRows(rows.gather(torch.arange(100)))
    for sign in ("signed", "abs"):
        unit, value = gomp(z, rows, 6, sign, per_iteration=per_iteration)
        right_unit, right = gomp(z, dense, 6, sign, per_iteration=per_iteration)
        assert torch.equal(unit, right_unit)
        torch.testing.assert_close(value, right, **EXACT)
        torch.testing.assert_close(refit(z, rows, unit), refit(z, dense, unit), **EXACT)


@pytest.mark.parametrize("elements", [1, 500])
def test_chunks_do_not_show(monkeypatch, elements):
    rows, z = _sparse(50, 3, 16), torch.randn(21, 16).double()
    unit, value = omp(z, rows, 5, "abs")
    fitted = refit(z, rows, unit.flip(1))
    monkeypatch.setattr(solve, "CHUNK_ELEMENTS", elements)
    again = omp(z, rows, 5, "abs")
    assert torch.equal(again[0], unit)
    torch.testing.assert_close(again[1], value, **EXACT)
    torch.testing.assert_close(refit(z, rows, unit.flip(1)), fitted, **EXACT)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_exact_supports_are_recovered_without_noise(kind):
    """Width 64, 256 atoms, 4 active with random signs: OMP by magnitude finds all of them."""
    rows = DenseRows(_table(256, 64)) if kind == "dense" else _sparse(256, 16, 64)
    unit = torch.rand(100, 256).argsort(1)[:, :4]
    value = (1 + torch.rand(100, 4).double()) * torch.randn(100, 4).sign()
    z = rows.decode(unit, value)
    found = omp(z, rows, 4, "abs")
    right = _dense_code(unit, value, 256)
    same = (_dense_code(*found, 256) - right).abs().amax(1) < 1e-9
    # Four atoms of 256 can be confused by chance: a few rows of a hundred, not more.
    assert same.sum() >= 95
    # By sign alone half the coefficients are invisible.
    signed = (_dense_code(*omp(z, rows, 4, "signed"), 256) - right).abs().amax(1) < 1e-9
    assert signed.sum() < 50


def test_float32_recovers_too():
    rows = DenseRows(_table(256, 64, torch.float32))
    unit = torch.rand(50, 256).argsort(1)[:, :4]
    value = (1 + torch.rand(50, 4)) * torch.randn(50, 4).sign()
    found = omp(rows.decode(unit, value), rows, 4, "abs")
    assert found[1].dtype == torch.float32
    gap = (_dense_code(*found, 256) - _dense_code(unit, value, 256)).abs().amax(1)
    assert (gap < 1e-5).sum() >= 47  # z itself carries float32 rounding


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(2, 9), st.integers(0, 99))
def test_refit_never_errs_more_than_any_other_code(batch, entries, width, seed):
    torch.manual_seed(seed)
    rows, z = _sparse(20, 2, width), torch.randn(batch, width).double()
    unit = torch.rand(batch, 20).argsort(1)[:, :entries]
    fitted = _error(z, rows, unit, refit(z, rows, unit))
    encoder = rows.some(z, unit)
    for other in (encoder, encoder.relu(), torch.zeros_like(encoder)):
        assert (fitted <= _error(z, rows, unit, other) + 1e-9).all()


def test_more_steps_never_err_more():
    rows, z = _sparse(60, 3, 20), torch.randn(40, 20).double()
    errors = [_error(z, rows, *omp(z, rows, k, "abs")) for k in range(1, 12)]
    assert all((b <= a + 1e-9).all() for a, b in pairwise(errors))
    assert (errors[0] <= z.norm(dim=1)).all()


def test_the_residual_is_orthogonal_to_the_support():
    rows, z = DenseRows(_table(40, 20)), torch.randn(15, 20).double()
    unit, value = omp(z, rows, 6, "signed")
    left = rows.some(z - rows.decode(unit, value), unit)
    torch.testing.assert_close(left, torch.zeros_like(left), **EXACT)


@pytest.mark.parametrize("batch", [0, 1, 63])
def test_refit_equals_lstsq(batch):
    table, z = _table(30, 12), torch.randn(batch, 12).double()
    unit = torch.rand(batch, 30).argsort(1)[:, :7]
    right = [reference.lstsq(z[b], table[unit[b]]) for b in range(batch)]
    expected = torch.stack(right) if right else z.new_zeros(0, 7)
    torch.testing.assert_close(refit(z, DenseRows(table), unit), expected, **EXACT)


def test_refit_leaves_padding_at_zero():
    rows, z = DenseRows(_table(30, 12)), torch.randn(20, 12).double()
    unit = torch.rand(20, 30).argsort(1)[:, :6]
    keep = torch.rand(20, 6) < 0.6
    value = refit(z, rows, unit, keep)
    assert (value[~keep] == 0).all()
    assert (value[keep] != 0).all()
    for b in range(20):
        right = reference.lstsq(z[b], rows.table[unit[b, keep[b]]])
        torch.testing.assert_close(value[b, keep[b]], right, **EXACT)
    nothing = refit(z, rows, unit, torch.zeros_like(keep))
    assert (nothing == 0).all()


def test_a_repeated_unit_keeps_its_first_place():
    rows, z = DenseRows(_table(10, 6)), torch.randn(3, 6).double()
    unit = torch.tensor([[4, 4, 2, 4]]).expand(3, 4)
    value = refit(z, rows, unit)
    assert (value[:, [1, 3]] == 0).all()
    torch.testing.assert_close(value[:, [0, 2]], refit(z, rows, unit[:, [0, 2]]), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_collinear_and_empty_atoms_get_nothing(dtype):
    first, other = _table(2, 5, dtype).unbind(0)
    nearly = F.normalize(first + 1e-7 * other, dim=0)
    table = torch.stack((first, first, -first, nearly, torch.zeros_like(first), other))
    z = torch.randn(8, 5).to(dtype)
    unit, value = omp(z, DenseRows(table), 6, "abs")
    assert torch.isfinite(value).all()
    assert ((value != 0).sum(1) == 2).all(), "two directions carry everything"
    assert (value[unit == 4] == 0).all()
    right = z @ torch.linalg.pinv(table[[0, 5]]) @ table[[0, 5]]
    torch.testing.assert_close(DenseRows(table).decode(unit, value), right, atol=1e-5, rtol=1e-5)


def test_more_atoms_than_dimensions():
    """After as many independent atoms as dimensions, the fit is exact and the rest has nothing."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):  # conditioned badly
        rows, z = DenseRows(_table(12, 4, dtype)), torch.randn(30, 4).to(dtype)
        for k in (4, 9, 12):
            unit, value = omp(z, rows, k, "abs")
            assert torch.isfinite(value).all()
            assert ((value != 0).sum(1) <= 4).all()
            assert all(len(set(row)) == k for row in unit.tolist())
            assert (_error(z, rows, unit, value) < tolerance).all()


def test_a_zero_row_is_left_at_zero():
    unit, value = omp(torch.zeros(2, 5), DenseRows(_table(7, 5, torch.float32)), 3, "abs")
    assert (value == 0).all()
    assert all(len(set(row)) == 3 for row in unit.tolist())


def test_taken_atoms_stay_out_where_all_others_correlate_negatively():
    # r = −e2 after e1; ⟨e2, r⟩ = −1 and ⟨e1, r⟩ = 0, yet e1 is taken: e2 comes, with −1.
    unit, value = omp(torch.tensor([[2.0, -1.0]]), DenseRows(torch.eye(2)), 2, "signed")
    assert (unit.tolist(), value.tolist()) == ([[0, 1]], [[2.0, -1.0]])


def test_low_precision_rows_are_solved_in_higher():
    rows, z = DenseRows(_table(40, 16).bfloat16()), torch.randn(10, 16)
    unit, value = omp(z, rows, 5, "abs")
    assert value.dtype == torch.float32
    exact = refit(z.double(), DenseRows(rows.table.double()), unit)
    torch.testing.assert_close(value.double(), exact, atol=1e-5, rtol=1e-5)  # float32 results
    assert omp(z.bfloat16(), rows, 5, "abs")[1].dtype == torch.float32


def test_solved_codes_carry_no_gradient():
    table = _table(9, 5).requires_grad_()
    z = torch.randn(3, 5).double().requires_grad_()
    unit, value = omp(z, DenseRows(table), 2, "abs")
    assert not value.requires_grad
    assert not refit(z, DenseRows(table), unit).requires_grad


def test_matching_pursuit_by_hand():
    # Atoms e1 and (0.6, 0.8); z = (2, 1). Correlations 2 and 2: the first, e1, r = (0, 1).
    # Then 0 and 0.8: r = (−0.48, 0.36). Then −0.48 and 0: nothing is left.
    rows = DenseRows(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    unit, value = matching_pursuit(torch.tensor([[2.0, 1.0]]), rows, 4)
    assert unit[0, :2].tolist() == [0, 1]
    torch.testing.assert_close(value, torch.tensor([[2.0, 0.8, 0.0, 0.0]]), atol=1e-6, rtol=0)


def test_matching_pursuit_merges_an_atom_taken_twice():
    # Atoms e1 and a = (−0.6, 0.8); z = (1, 1). Correlations 1 and 0.2: e1, r = (0, 1). 0 and 0.8:
    # a, r = (0.48, 0.36). 0.48 and 0: e1 again, r = (0, 0.36). 0 and 0.288: a again.
    rows = DenseRows(torch.tensor([[1.0, 0.0], [-0.6, 0.8]]))
    z = torch.tensor([[1.0, 1.0]])
    unit, value = matching_pursuit(z, rows, 4)
    assert unit[0, :2].tolist() == [0, 1]
    torch.testing.assert_close(value, torch.tensor([[1.48, 1.088, 0, 0]]), atol=1e-6, rtol=0)
    # The support is unchanged after the third step, which still counts.
    _, value = matching_pursuit(z, rows, 4, stop_on_duplicate=True)
    torch.testing.assert_close(value, torch.tensor([[1.48, 0.8, 0, 0]]), atol=1e-6, rtol=0)
    # ‖r‖ is 1, 0.6, 0.36 after the steps: below 0.7 after two.
    _, value = matching_pursuit(z, rows, 4, threshold=0.7)
    torch.testing.assert_close(value, torch.tensor([[1.0, 0.8, 0, 0]]), atol=1e-6, rtol=0)


def _rows_and_z(kind: str, batch: int) -> tuple[AtomRows, Tensor]:
    sparse = _sparse(14, 3, 7)
    rows = sparse if kind == "sparse" else DenseRows(sparse.gather(torch.arange(14)))
    rows = rows.with_weights(rows.weights.detach().requires_grad_())
    return rows, torch.randn(batch, 7).double().requires_grad_()


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("batch", [0, 1, 63])
def test_matching_pursuit_equals_autograd_through_the_recurrence(batch, kind, threshold, stop):
    rows, z = _rows_and_z(kind, batch)
    options = {"threshold": threshold, "stop_on_duplicate": stop}
    unit, value = matching_pursuit(z, rows, 8, **options)
    plain = reference.matching_pursuit(z, rows.gather(torch.arange(14)), 8, **options)
    ours = _dense_code(unit, value, 14)
    torch.testing.assert_close(ours, plain, **EXACT)
    for row, amounts in zip(unit.tolist(), value.tolist()):
        named = [u for u, amount in zip(row, amounts) if amount]
        assert len(set(named)) == len(named)
    if batch:
        upstream = torch.randn_like(ours)
        found = torch.autograd.grad(ours, [z, rows.weights], upstream)
        for a, b in zip(found, torch.autograd.grad(plain, [z, rows.weights], upstream)):
            torch.testing.assert_close(a, b, **EXACT)


def test_the_stops_bite():
    """Without stops some rows take an atom again; with them, they end with the step that did."""
    rows, z = _rows_and_z("sparse", 63)
    dense = rows.gather(torch.arange(14)).detach()
    free, stopped = (
        _dense_code(*matching_pursuit(z, rows, 12, stop_on_duplicate=s), 14).detach()
        for s in (False, True)
    )
    assert not torch.equal(free, stopped)
    assert ((z - free @ dense).norm(dim=1) <= (z - stopped @ dense).norm(dim=1) + 1e-9).all()
    # A threshold above every norm ends after one step, which is always taken.
    unit, value = matching_pursuit(z, rows, 12, threshold=1e3)
    assert ((value > 0).sum(1) == 1).all()
    assert torch.equal(unit[:, 0], rows.top(z, None, 1, "signed")[:, 0])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_matching_pursuit_gradients_equal_finite_differences(kind):
    rows, z = _rows_and_z(kind, 3)

    def values(z: Tensor, weights: Tensor) -> Tensor:
        return matching_pursuit(z, rows.with_weights(weights), 6)[1]

    assert torch.autograd.gradcheck(values, (z, rows.weights))


def test_matching_pursuit_makes_only_the_gradients_that_are_wanted():
    rows, z = _rows_and_z("sparse", 5)
    (only,) = torch.autograd.grad(matching_pursuit(z.detach(), rows, 4)[1].sum(), [rows.weights])
    assert only.shape == rows.weights.shape
    fixed = rows.with_weights(rows.weights.detach())
    (only,) = torch.autograd.grad(matching_pursuit(z, fixed, 4)[1].sum(), [z])
    assert only.shape == z.shape


def test_matching_pursuit_keeps_no_residual_per_step():
    """Saved for backward: the last residual, the weights, two lists of steps, the merge."""
    batch, steps, width = 20, 10, 32
    rows = DenseRows(_table(15, width).requires_grad_())
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        matching_pursuit(torch.randn(batch, width).double(), rows, steps)
    assert 0 < sum(saved) <= batch * width + rows.table.numel() + 3 * batch * steps
    assert sum(saved) < batch * steps * width


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_matching_pursuit_in_lower_precision(dtype):
    table, z = _table(30, 16).to(dtype).requires_grad_(), torch.randn(20, 16, requires_grad=True)
    unit, value = matching_pursuit(z, DenseRows(table), 5)
    assert value.dtype == torch.float32
    exact = reference.matching_pursuit(z.double(), table.double(), 5)
    close = (_dense_code(unit, value, 30).double() - exact).abs().amax(1) < 0.02
    assert close.sum() >= 15, "a few rows may choose another atom at a near tie"
    value.square().sum().backward()
    assert table.grad is not None
    assert z.grad is not None
    assert (table.grad.dtype, z.grad.dtype) == (dtype, torch.float32)
    assert torch.isfinite(table.grad).all()
