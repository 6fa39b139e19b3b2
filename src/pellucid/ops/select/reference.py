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

SAMPLED = 61  # one in so many entries guesses the floor; a prime, so that all columns are met
SMALL = 1 << 16  # entries that are ranked without a guess


def batch_threshold(strength: Float[Tensor, "T C"], k: int) -> Float[Tensor, ""]:
    """The smallest of the k · T largest positive strengths of the whole batch, 0 for none."""
    flat = strength.reshape(-1)
    place = _largest(flat, k * strength.shape[0])
    return flat[place].min() if place.numel() else strength.new_zeros(())


def batch_topk(
    strength: Float[Tensor, "T C"], k: int
) -> tuple[Int[Tensor, "T K"], Bool[Tensor, "T K"]]:
    """The columns of the k · T largest positive entries of the whole batch, and which count.

    K is the most that one row holds; rows with fewer are filled up with column 0.
    """
    rows, columns = strength.shape
    place = _largest(strength.reshape(-1), k * rows)
    row = torch.div(place, columns, rounding_mode="floor")
    count = torch.bincount(row, minlength=rows)
    most = int(count.max()) if rows else 0
    slot = torch.arange(len(place), device=place.device) - (count.cumsum(0) - count)[row]
    unit = place.new_zeros(rows, most)
    kept = torch.zeros(rows, most, dtype=torch.bool, device=place.device)
    unit[row, slot], kept[row, slot] = place % columns, True
    return unit, kept


def _largest(flat: Float[Tensor, " n"], amount: int) -> Int[Tensor, " m"]:
    """The places of so many of the largest positive entries, ascending; fewer if fewer are > 0.

    Ranking all entries costs ten times what reading them does. A sample therefore guesses a floor
    that more than enough entries exceed, and only those are ranked; where the guess was too high,
    all positive ones are.
    """
    floor = _floor(flat, amount)
    place = (flat > floor).nonzero().squeeze(1)
    if place.numel() < amount and bool(floor > 0):
        place = (flat > 0).nonzero().squeeze(1)
    if place.numel() > amount:
        place = place[flat[place].topk(amount, sorted=False).indices].sort().values
    return place


def _floor(flat: Float[Tensor, " n"], amount: int) -> Float[Tensor, ""]:
    sample = flat[::SAMPLED]
    expected = amount / SAMPLED
    rank = int(1.2 * expected + 4 * expected**0.5) + 1
    if flat.numel() < SMALL or rank >= sample.numel():
        return flat.new_zeros(())
    return sample.topk(rank, sorted=False).values.min().clamp_min(0)


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
        pulled = grad * near
        to_threshold = -pulled.sum_to_size(threshold.shape) / ctx.width
        return pulled / ctx.width if ctx.to_input else None, to_threshold, None, None


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
        pulled = grad * near
        # θ is the same for all that is summed up here.
        to_threshold = -pulled.sum_to_size(threshold.shape) * threshold / ctx.width
        passed = grad * (strength > threshold)
        if ctx.to_input:
            passed = passed + pulled * threshold / ctx.width
        return passed, to_threshold, None, None
