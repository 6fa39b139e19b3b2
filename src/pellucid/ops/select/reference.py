"""Batch-wide top-k, and the step and the JumpReLU whose threshold learns by a straight-through
gradient. With K(u) = [|u| < ½]:

    step(s, θ) = [s > θ]            ∂/∂θ ≈ −(1 / ε) · K((s − θ) / ε)    ∂/∂s = 0
    jump_relu(s, θ) = s · [s > θ]   ∂/∂θ ≈ −(θ / ε) · K((s − θ) / ε)    ∂/∂s = [s > θ]

With ``to_input`` the negated threshold gradient is added to s, so that s learns of the step too.
Sources: Rajamanoharan et al., "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU
Sparse Autoencoders", arXiv 2407.14435; Bussmann et al., "BatchTopK Sparse Autoencoders",
arXiv 2412.06410; Anthropic, "Circuits Updates, January 2025" (``to_input``).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

FIRST_LOOK = 4  # times k: how many entries of a row are looked at first


def batch_threshold(strength: Float[Tensor, "T C"], k: int) -> Float[Tensor, ""]:
    """The smallest strength among the k · T largest positive ones of the whole batch."""
    flat = strength.reshape(-1)
    top = flat.topk(min(k * strength.shape[0], flat.numel()), sorted=False).values
    positive = top[top > 0]
    return positive.min() if positive.numel() else strength.new_zeros(())


def batch_topk(
    strength: Float[Tensor, "T C"], k: int
) -> tuple[Int[Tensor, "T K"], Bool[Tensor, "T K"]]:
    """The columns of the k · T largest positive entries of the whole batch, and which count.

    K is the most that one row holds; rows with fewer are filled up. Rows are searched for their
    few largest first, and for more only where a row may hold more.
    """
    rows, columns = strength.shape
    width = min(columns, FIRST_LOOK * k)
    while True:
        value, unit = strength.topk(width, dim=-1)
        flat = value.reshape(-1)
        top = flat.topk(min(k * rows, flat.numel()), sorted=False).indices
        kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(0, top, True)
        kept = (kept & (flat > 0)).view_as(value)
        # The smallest entry looked at in some row is kept: there may be more behind it.
        if width == columns or not bool(kept[:, -1].any()):
            break
        width = min(columns, 2 * width)
    most = int(kept.sum(-1).max()) if kept.numel() else 0
    kept, order = kept.to(torch.uint8).topk(most, dim=-1)
    return unit.gather(-1, order), kept.bool()


def step(
    strength: Float[Tensor, "*s"],
    threshold: Float[Tensor, "*t"],
    width: float,
    *,
    to_input: bool = False,
) -> Float[Tensor, "*s"]:
    """1 where s > θ, else 0; its sum over a row is an L0 that thresholds can be trained on.

    ``threshold`` broadcasts over leading axes; ``width`` is the ε of the straight-through
    gradient."""
    return _Step.apply(strength, threshold, width, to_input)


def jump_relu(
    strength: Float[Tensor, "*s"],
    threshold: Float[Tensor, "*t"],
    width: float,
    *,
    to_input: bool = False,
) -> Float[Tensor, "*s"]:
    """s where s > θ, else 0; broadcasting and ``width`` as in ``step``."""
    return _JumpReLU.apply(strength, threshold, width, to_input)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, strength: Tensor, threshold: Tensor, width: float, to_input: bool) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(strength, threshold)
        ctx.width, ctx.to_input = width, to_input
        return (strength > threshold).to(strength.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        strength, threshold = ctx.saved_tensors
        near = (strength - threshold).abs() < ctx.width / 2
        pulled = grad * near / ctx.width
        return pulled if ctx.to_input else None, -pulled.sum_to_size(threshold.shape), None, None


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, strength: Tensor, threshold: Tensor, width: float, to_input: bool) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(strength, threshold)
        ctx.width, ctx.to_input = width, to_input
        return strength * (strength > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        strength, threshold = ctx.saved_tensors
        near = (strength - threshold).abs() < ctx.width / 2
        pulled = grad * near * threshold / ctx.width
        passed = grad * (strength > threshold)
        return (
            passed + pulled if ctx.to_input else passed,
            -pulled.sum_to_size(threshold.shape),
            None,
            None,
        )
