"""Feature scaling by hand, against its formula row by row, and undone again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.ops.expander import expander_mask
from pellucid.ops.rows import DenseRows, SparseRows
from pellucid.ops.scale import block_means, scale_rows, unscale_rows

DOUBLE = torch.float64
# (E experts, m latents each, d width)
SIZES = [(1, 1, 1), (1, 63, 5), (5, 1, 4), (7, 9, 63), (4, 25, 3)]


def _inputs(size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, ω and Λ, none of them special."""
    experts, latents, width = size
    rows = torch.randn(experts * latents, width, dtype=DOUBLE)
    omega = 0.3 * torch.randn(experts, dtype=DOUBLE)
    return rows, omega, torch.eye(width, dtype=DOUBLE) + 0.1 * torch.randn(width, width).double()


def _sparse(size: tuple[int, int, int], nonzeros: int) -> SparseRows:
    experts, latents, width = size
    mask = expander_mask(experts * latents, nonzeros, width, 0)
    return SparseRows(torch.randn(mask.index.shape, dtype=DOUBLE), mask.index, width)


def test_block_means_by_hand():
    rows = DenseRows(torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0], [5.0, 7.0]]))
    assert block_means(rows, 2).tolist() == [[2.0, 1.0], [5.0, 6.0]]
    assert block_means(rows, 1).tolist() == [[3.5, 3.5]]
    assert block_means(rows, 4).tolist() == rows.table.tolist()


def test_scaled_rows_by_hand():
    # Expert 0: w̄ = (2, 1), ω = 1: ŵ = 2w − w̄ = (0, −1), (4, 3). Expert 1: ω = 0, unchanged.
    rows = DenseRows(torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0], [5.0, 7.0]]))
    scaled = scale_rows(rows, torch.tensor([1.0, 0.0]), torch.eye(2))
    assert scaled.weights.tolist() == [[0.0, -1.0], [4.0, 3.0], [5.0, 5.0], [5.0, 7.0]]


def test_the_low_pass_takes_the_mean_from_the_left():
    # Λ = [[0, 1], [0, 0]]: Λ w̄ = (1, 0) for w̄ = (2, 1); with ω = 1, ŵ = 2w − (1, 0).
    rows = DenseRows(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
    scaled = scale_rows(rows, torch.ones(1), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert scaled.weights.tolist() == [[1.0, 0.0], [5.0, 4.0]]


def test_sparse_rows_take_the_low_pass_at_their_own_places():
    # Dense rows (1, 0, 2) and (0, 3, 4): w̄ = (.5, 1.5, 3). With ω = 1: 2w − w̄ where w lives.
    rows = SparseRows(
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0, 2], [1, 2]], dtype=torch.int16), 3
    )
    scaled = scale_rows(rows, torch.ones(1), torch.eye(3))
    assert isinstance(scaled, SparseRows)
    assert scaled.weights.tolist() == [[1.5, 1.0], [4.5, 5.0]]
    assert torch.equal(scaled.index, rows.index)
    assert block_means(rows, 1).tolist() == [[0.5, 1.5, 3.0]]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scaling_is_its_formula_row_by_row(size):
    experts, latents, _ = size
    rows, omega, low_pass = _inputs(size)
    scaled = scale_rows(DenseRows(rows), omega, low_pass).weights
    for j in range(experts * latents):
        i = j // latents
        mean = rows[i * latents : (i + 1) * latents].mean(0)
        expected = (1 + omega[i]) * rows[j] - omega[i] * (low_pass @ mean)
        torch.testing.assert_close(scaled[j], expected)


@pytest.mark.parametrize("size", [(1, 5, 4), (3, 7, 63), (2, 50, 5)], ids=str)
def test_sparse_scaling_is_the_dense_one_masked(size):
    rows = _sparse(size, 3)
    _, omega, low_pass = _inputs(size)
    every = torch.arange(rows.num)
    dense = scale_rows(DenseRows(rows.gather(every)), omega, low_pass)
    torch.testing.assert_close(
        block_means(rows, size[0]), block_means(DenseRows(rows.gather(every)), size[0])
    )
    found = scale_rows(rows, omega, low_pass).gather(every)
    places = torch.zeros_like(found).scatter_(1, rows.index.long(), 1.0)
    torch.testing.assert_close(found, dense.weights * places)
    assert (places.sum(1) == 3).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients(sparse):
    size = (2, 3, 5)
    rows, omega, low_pass = _inputs(size)
    template = _sparse(size, 2) if sparse else DenseRows(rows)
    weights = template.weights.clone().requires_grad_()

    def scaled(weights: Tensor, omega: Tensor, low_pass: Tensor) -> Tensor:
        return scale_rows(template.with_weights(weights), omega, low_pass).weights

    inputs = (weights, omega.requires_grad_(), low_pass.requires_grad_())
    assert torch.autograd.gradcheck(scaled, inputs)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_undoing_recovers_the_rows(size):
    rows, omega, low_pass = _inputs(size)
    scaled = scale_rows(DenseRows(rows), omega, low_pass).weights
    # 1e-8: the inverse magnifies rounding by the condition of (1 + ω) I − ω Λ.
    torch.testing.assert_close(unscale_rows(scaled, omega, low_pass), rows, atol=1e-8, rtol=1e-8)


@settings(max_examples=25)
@given(st.integers(0, 99), st.floats(-0.8, 5.0))
def test_undoing_recovers_the_rows_for_any_regular_scale(seed, scale):
    torch.manual_seed(seed)
    rows = torch.randn(12, 4, dtype=DOUBLE)
    omega = torch.tensor([scale, 0.0, -scale / 10], dtype=DOUBLE)
    # (1 + ω) I − ω Λ = I + ω (I − Λ), far from singular for a small I − Λ.
    low_pass = torch.eye(4, dtype=DOUBLE) + 0.02 * torch.randn(4, 4, dtype=DOUBLE)
    scaled = scale_rows(DenseRows(rows), omega, low_pass).weights
    torch.testing.assert_close(unscale_rows(scaled, omega, low_pass), rows, atol=1e-8, rtol=1e-8)


def test_scaling_changes_no_function_class():
    # Any Ŵ is the scaling of some W: undo first, then scale.
    wanted, omega, low_pass = _inputs((7, 9, 63))
    rows = unscale_rows(wanted, omega, low_pass)
    found = scale_rows(DenseRows(rows), omega, low_pass).weights
    torch.testing.assert_close(found, wanted, atol=1e-8, rtol=1e-8)


def test_what_only_keeps_the_mean_cannot_be_undone():
    # ω = −1: ŵ_j = Λ w̄, the same for every latent of the expert.
    rows, _, low_pass = _inputs((3, 4, 5))
    omega = torch.tensor([0.5, -1.0, 0.5], dtype=DOUBLE)
    assert scale_rows(DenseRows(rows), omega, low_pass).weights[4:8].std(0).max() < 1e-12
    with pytest.raises(ConfigError, match=r"^omega: .* experts \[1\]"):
        unscale_rows(rows, omega, low_pass)


def test_a_singular_low_pass_cannot_be_undone():
    # ω = 1 and Λ = 2 I: (1 + ω) I − ω Λ = 0, so the mean is lost.
    rows, _, _ = _inputs((2, 4, 5))
    omega = torch.tensor([1.0, 0.0], dtype=DOUBLE)
    with pytest.raises(ConfigError, match=r"^omega: .* experts \[0\]"):
        unscale_rows(rows, omega, 2 * torch.eye(5, dtype=DOUBLE))
