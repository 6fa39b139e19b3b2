"""RMSNorm by hand and against torch's own."""

import pytest
import torch
from torch import nn

from pellucid.nn.norm import RMSNorm


def test_by_hand():
    # mean(3², 4²) = 12.5: (3, 4) / √12.5 = (.848528, 1.131371), times the gains 2 and −1.
    norm = RMSNorm(2, eps=0.0).double()
    with torch.no_grad():
        norm.gain.copy_(torch.tensor([2.0, -1.0]))
    y = norm(torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert y.tolist() == [pytest.approx(1.697056, abs=1e-6), pytest.approx(-1.131371, abs=1e-6)]


def test_epsilon_is_inside_the_root():
    # x = 0.1: mean square .01, plus .03 is .04, root .2: y = .5.
    y = RMSNorm(1, eps=0.03).double()(torch.tensor([0.1], dtype=torch.float64))
    assert y.item() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (2, 3, 63), (0, 5)], ids=str)
def test_equal_to_torch_forward_and_backward(shape):
    ours, theirs = RMSNorm(shape[-1], 1e-5).double(), nn.RMSNorm(shape[-1], 1e-5).double()
    with torch.no_grad():
        ours.gain.normal_()
        theirs.weight.copy_(ours.gain)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y, expected = ours(x), theirs(x)
    # float64 rounding of sums of 100 squares.
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-12)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, ours.gain], upstream)
    right = torch.autograd.grad(expected, [x, theirs.weight], upstream)
    for grad, other in zip(found, right):
        torch.testing.assert_close(grad, other, atol=1e-12, rtol=1e-12)


def test_scale_of_the_input_drops_out():
    x = torch.randn(9, 63, dtype=torch.float64)
    norm = RMSNorm(63, eps=0.0).double()
    torch.testing.assert_close(norm(7 * x), norm(x), atol=1e-12, rtol=1e-12)
    # Gain 1: every row leaves with mean square 1.
    torch.testing.assert_close(
        norm(x).square().mean(-1), torch.ones(9, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_the_output_keeps_the_type_of_the_input():
    assert RMSNorm(4)(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16


def test_a_row_of_zeros_stays_zero_with_a_finite_gradient():
    x = torch.zeros(1, 4, requires_grad=True)
    y = RMSNorm(4)(x)
    y.sum().backward()
    assert (y == 0).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
