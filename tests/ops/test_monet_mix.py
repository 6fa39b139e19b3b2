"""Factored mixing against the gates of all experts, forward and backward, and by hand."""

import pytest
import torch

from pellucid.ops.monet_mix import mix_horizontal, mix_vertical, reference

SIZES = [(1, 1, 1, 1), (63, 3, 5, 2), (2, 2, 7, 3), (0, 2, 3, 2)]


def _gates(rows: int, heads: int, side: int) -> torch.Tensor:
    return torch.randn(rows, heads, side, dtype=torch.float64).softmax(-1).requires_grad_()


def _acts(rows: int, side: int, channels: int) -> torch.Tensor:
    return torch.randn(rows, side, channels, dtype=torch.float64, requires_grad=True)


def test_horizontal_by_hand():
    # Σ_i g1_i a_i = .75·4 + .25·1 = 3.25, shared out over the columns .6 : .4.
    row, col = torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[0.6, 0.4]]])
    mixed = mix_horizontal(row, col, torch.tensor([[[4.0], [1.0]]]))
    torch.testing.assert_close(mixed, torch.tensor([[[1.95], [1.3]]]))


def test_vertical_by_hand():
    # Own: g1_i a1_i = 3, .25 and g2_j a2_j = .6, 3.6. Borrowed: g1_i · (.6·1 + .4·9 = 4.2) =
    # 3.15, 1.05 and g2_j · (.75·4 + .25·1 = 3.25) = 1.95, 1.3.
    row, col = torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[0.6, 0.4]]])
    acts = torch.tensor([[[4.0], [1.0]]]), torch.tensor([[[1.0], [9.0]]])
    top, bottom = mix_vertical(row, col, *acts)
    torch.testing.assert_close(top, torch.tensor([[[3.0, 3.15], [0.25, 1.05]]]))
    torch.testing.assert_close(bottom, torch.tensor([[[1.95, 0.6], [1.3, 3.6]]]))


@pytest.mark.parametrize(("rows", "heads", "side", "channels"), SIZES)
def test_horizontal_equals_the_reference(rows: int, heads: int, side: int, channels: int):
    inputs = _gates(rows, heads, side), _gates(rows, heads, side), _acts(rows, side, channels)
    fast, slow = mix_horizontal(*inputs), reference.mix_horizontal(*inputs)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)  # sums of at most n² terms
    weight = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), inputs),
        torch.autograd.grad((slow * weight).sum(), inputs),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("rows", "heads", "side", "channels"), SIZES)
def test_vertical_equals_the_reference(rows: int, heads: int, side: int, channels: int):
    # The shortcut holds where gates sum to 1, so gradients are compared at the logits.
    logits = [
        torch.randn(rows, heads, side, dtype=torch.float64, requires_grad=True) for _ in range(2)
    ]
    acts = [_acts(rows, side, channels) for _ in range(2)]
    gates = [logit.softmax(-1) for logit in logits]
    fast = torch.cat(mix_vertical(*gates, *acts), -1)
    slow = torch.cat(reference.mix_vertical(*gates, *acts), -1)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)
    weight = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), [*logits, *acts], retain_graph=True),
        torch.autograd.grad((slow * weight).sum(), [*logits, *acts]),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
