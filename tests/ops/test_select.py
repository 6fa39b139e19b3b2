"""Threshold selections by hand, and their straight-through gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.ops.select import batch_threshold, batch_topk, jump_relu, step


def test_batch_threshold_by_hand():
    # k · T = 4 largest of the batch: 9, 8, 7, 5; the smallest of them is 5.
    strength = torch.tensor([[9.0, 1.0, 8.0], [7.0, 5.0, 4.0]])
    assert batch_threshold(strength, 2).item() == 5.0


def test_one_row_may_take_more_than_its_share():
    # k · T = 2: both from the first row.
    assert batch_threshold(torch.tensor([[9.0, 8.0], [1.0, 2.0]]), 1).item() == 8.0


def test_units_that_do_not_speak_never_set_the_threshold():
    assert batch_threshold(torch.tensor([[3.0, 0.0], [0.0, -1.0]]), 2).item() == 3.0


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (1, 1)], ids=str)
def test_without_positive_strength_the_threshold_is_zero(shape):
    found = batch_threshold(torch.zeros(shape), 2)
    assert found.shape == ()
    assert found.item() == 0.0


def test_fewer_candidates_than_places():
    assert batch_threshold(torch.tensor([[3.0, 2.0]]), 100).item() == 2.0


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_the_threshold_keeps_the_k_times_rows_largest(rows, columns, k, seed):
    torch.manual_seed(seed)
    strength = torch.randn(rows, columns, dtype=torch.float64)
    kept = (strength >= batch_threshold(strength, k)) & (strength > 0)
    assert int(kept.sum()) == min(k * rows, int((strength > 0).sum()))
    if kept.any() and not kept.all():
        assert strength[kept].min() >= strength[~kept].max()


def test_step_is_strict():
    strength = torch.tensor([0.4, 0.5, 0.6])
    assert step(strength, torch.full((3,), 0.5), 0.1).tolist() == [0.0, 0.0, 1.0]


def test_step_keeps_the_type():
    for dtype in (torch.float64, torch.bfloat16):
        assert step(torch.ones(2, dtype=dtype), torch.zeros(2, dtype=dtype), 0.1).dtype == dtype


def test_the_straight_through_gradient_by_hand():
    # ε = .2: inside |s − θ| < .1 the gradient to θ is −upstream / ε, outside it is 0.
    strength = torch.tensor([0.35, 0.45, 0.55, 0.65], dtype=torch.float64, requires_grad=True)
    threshold = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
    (step(strength, threshold, 0.2) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert threshold.grad is not None
    torch.testing.assert_close(
        threshold.grad, torch.tensor([0.0, -10.0, -15.0, 0.0], dtype=torch.float64)
    )
    assert strength.grad is None or (strength.grad == 0).all()


def test_jumprelu_gradients_are_those_of_the_paper():
    # y = s · step(s, θ): dy/ds = [s > θ], dy/dθ = −(s / ε) · [|s − θ| < ε / 2].
    strength = torch.tensor([0.3, 0.52, 0.9], dtype=torch.float64, requires_grad=True)
    threshold = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    (strength * step(strength, threshold, 0.1)).sum().backward()
    assert strength.grad is not None
    assert threshold.grad is not None
    assert strength.grad.tolist() == [0.0, 1.0, 1.0]
    torch.testing.assert_close(
        threshold.grad, torch.tensor([0.0, -5.2, 0.0], dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_the_gradient_estimates_that_of_the_expectation():
    # s uniform on (0, 1): E[step] = 1 − θ, so the derivative is −1; the estimate averages to it.
    strength = torch.rand(200_000, dtype=torch.float64)
    threshold = torch.full_like(strength, 0.5).requires_grad_()
    step(strength, threshold, 0.1).mean().backward()
    assert threshold.grad is not None
    # Binomial, p = .1: standard error of the sum is sqrt(.1 · .9 / 2e5) / .1 = .0067; four of them.
    assert threshold.grad.sum().item() == pytest.approx(-1.0, abs=0.027)


def test_empty():
    threshold = torch.zeros(0, 3, requires_grad=True)
    step(torch.zeros(0, 3), threshold, 0.1).sum().backward()
    assert threshold.grad is not None
    assert threshold.grad.shape == (0, 3)


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 6), st.integers(0, 99))
def test_batch_topk_keeps_no_more_than_its_share_even_in_a_tie(rows, columns, k, seed):
    torch.manual_seed(seed)
    strength = torch.randint(-2, 3, (rows, columns)).double()  # full of ties
    unit, kept = batch_topk(strength, k)
    assert int(kept.sum()) == min(k * rows, int((strength > 0).sum()))
    mask = torch.zeros(rows, columns, dtype=torch.long)
    mask.scatter_add_(1, unit, kept.long())
    assert mask.max() <= 1 if rows else True
    if rows and mask.any() and not mask.all():
        assert strength[mask == 1].min() >= strength[mask == 0].max()


@given(st.integers(1, 4), st.integers(30, 60), st.integers(1, 3), st.integers(0, 99))
def test_a_row_may_hold_far_more_than_its_share(rows, columns, k, seed):
    # All that is strong lies in one row, far beyond its share of k.
    torch.manual_seed(seed)
    strength = torch.rand(rows, columns)
    strength[0] += 10
    unit, kept = batch_topk(strength, k)
    expected = torch.zeros(rows * columns, dtype=torch.bool)
    expected[strength.flatten().topk(k * rows).indices] = True
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask.scatter_(1, unit, kept)
    assert torch.equal(mask.flatten(), expected)
    assert unit.shape[1] == kept.sum(1).max()


@pytest.mark.parametrize("order", ["random", "sorted", "periodic", "tied", "few"])
def test_large_batches_are_ranked_exactly_wherever_the_strong_entries_lie(order):
    """A sample guesses what need not be ranked; ``periodic`` misleads it both ways."""
    rows, columns, k = 600, 305, 7  # 305 is a multiple of the sample's stride
    strength = torch.randn(rows, columns)
    match order:
        case "sorted":
            strength = strength.flatten().sort().values.view(rows, columns)
        case "periodic":
            strength[:, ::61] += 10  # the sample meets nothing else
        case "tied":
            strength = strength.round()
        case "few":
            strength -= 3.5
    unit, kept = batch_topk(strength, k)
    flat = strength.flatten()
    amount = min(k * rows, int((flat > 0).sum()))
    assert int(kept.sum()) == amount
    found = strength.gather(1, unit)[kept].sort(descending=True).values
    assert torch.equal(found, flat.sort(descending=True).values[:amount])
    assert batch_threshold(strength, k) == found[-1]
    pairs = torch.arange(rows)[:, None].expand_as(unit)[kept] * columns + unit[kept]
    assert pairs.unique().numel() == amount


def _leaves(*values):
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]


def test_jump_relu_by_hand():
    # θ = .5, ε = .2: |s − θ| < .1 for the second and third. To θ: −(θ/ε) · upstream = −2.5 each,
    # upstream 1, so −5 in all; to s: 1 where s > θ.
    strength, threshold = _leaves([0.35, 0.45, 0.55, 0.65], [0.5])
    out = jump_relu(strength, threshold, 0.2)
    assert out.tolist() == [0.0, 0.0, 0.55, 0.65]
    out.sum().backward()
    assert threshold.grad.tolist() == pytest.approx([-5.0])
    assert strength.grad.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_the_input_learns_of_the_step_if_asked():
    # The opposite of what θ gets: θ/ε = 2.5 for jump_relu, 1/ε = 5 for step, near θ only.
    strength, threshold = _leaves([0.35, 0.45, 0.55, 0.65], [0.5])
    jump_relu(strength, threshold, 0.2, to_input=True).sum().backward()
    assert strength.grad.tolist() == pytest.approx([0.0, 2.5, 3.5, 1.0])
    strength, threshold = _leaves([0.35, 0.45, 0.55, 0.65], [0.5])
    step(strength, threshold, 0.2, to_input=True).sum().backward()
    assert strength.grad.tolist() == pytest.approx([0.0, 5.0, 5.0, 0.0])
    assert threshold.grad.tolist() == pytest.approx([-10.0])


@pytest.mark.parametrize("gate", [step, jump_relu])
def test_a_threshold_per_column_gathers_its_rows(gate):
    strength, threshold = _leaves([[0.45, 9.0], [0.55, 0.0]], [0.5, 9.05])
    wide = threshold.detach().expand(2, 2).clone().requires_grad_()
    upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    gate(strength, threshold, 0.2).backward(upstream)
    gate(strength, wide, 0.2).backward(upstream)
    assert torch.equal(threshold.grad, wide.grad.sum(0))
    assert (threshold.grad != 0).all()
