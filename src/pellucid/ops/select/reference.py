"""Batch-wide top-k, and the step whose threshold learns by a straight-through gradient.

    step(s, θ) = [s > θ]      ∂/∂θ ≈ −(1 / ε) · [|s − θ| < ε / 2],   ∂/∂s = 0

s · step(s, θ) is the JumpReLU, with its published gradient up to |s − θ| < ε / 2.
Sources: Rajamanoharan et al., "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU
Sparse Autoencoders", arXiv 2407.14435; Bussmann et al., "BatchTopK Sparse Autoencoders",
arXiv 2412.06410.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def batch_threshold(strength: Float[Tensor, "T C"], k: int) -> Float[Tensor, ""]:
    """The smallest strength among the k · T largest positive ones of the whole batch."""
    flat = strength.reshape(-1)
    top = flat.topk(min(k * strength.shape[0], flat.numel()), sorted=False).values
    positive = top[top > 0]
    return positive.min() if positive.numel() else strength.new_zeros(())


def step(
    strength: Float[Tensor, "*s"], threshold: Float[Tensor, "*s"], width: float
) -> Float[Tensor, "*s"]:
    """1 where s > θ, else 0; its sum over a row is an L0 that thresholds can be trained on.

    ``width`` is the ε of the straight-through gradient."""
    return _Step.apply(strength, threshold, width)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, strength: Tensor, threshold: Tensor, width: float) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(strength, threshold)
        ctx.width = width
        return (strength > threshold).to(strength.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, None]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        strength, threshold = ctx.saved_tensors
        near = (strength - threshold).abs() < ctx.width / 2
        return None, -grad * near / ctx.width, None
