"""Matching pursuit, trainable: each step takes the best atom's whole correlation off the residual.

    j = argmax ⟨D_j, r⟩;   v = ReLU⟨D_j, r⟩;   f_j += v;   r −= v·D_j          r = z at the start

(Mallat and Zhang 1993; as a dictionary encoder Costa et al., arXiv 2506.03093.) The choice of j has
no gradient, v has: the gradient is that of the recurrence, found backwards with residuals rebuilt
on the way, r + v·D_j, so that [B, K, d] is never kept. Work per step: one correlation with all
atoms forward, O(B·d) backward.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from pellucid.ops.rows import AtomRows


def matching_pursuit(
    z: Float[Tensor, "B d"],
    rows: AtomRows,
    steps: int,
    *,
    threshold: float = 0.0,
    stop_on_duplicate: bool = False,
) -> tuple[Int[Tensor, "B {steps}"], Float[Tensor, "B {steps}"]]:
    """Units and values after at most ``steps`` steps; values are differentiable in z and rows.

    A row stops once ‖r‖ < ``threshold``, when nothing correlates positively and, with
    ``stop_on_duplicate``, after a step that chose an earlier unit again. A unit chosen again is
    one entry with the values added; what is left is padding, any unit with value 0.
    """
    unit, value = _Pursue.apply(z, rows.weights, rows, steps, threshold, stop_on_duplicate)
    earliest = (unit.unsqueeze(2) == unit.unsqueeze(1)).int().argmax(2)
    return unit, torch.zeros_like(value).scatter_add(1, earliest, value)


class _Pursue(torch.autograd.Function):
    """Units and values of every step, in order, before repeated ones are merged."""

    @staticmethod
    def forward(
        ctx,  # noqa: ANN001
        z: Tensor,
        weights: Tensor,
        rows: AtomRows,
        steps: int,
        threshold: float,
        stop_on_duplicate: bool,
    ) -> tuple[Tensor, Tensor]:
        residual = z.to(torch.promote_types(weights.dtype, torch.float32), copy=True)
        unit = torch.zeros(z.shape[0], steps, dtype=torch.long, device=z.device)
        value = residual.new_zeros(z.shape[0], steps)
        live = torch.arange(z.shape[0], device=z.device)
        for step in range(steps):
            if live.numel() == 0:
                break
            here = residual[live]
            chosen = rows.top(here, None, 1, "signed")
            atom = rows.gather(chosen[:, 0]).to(here.dtype)
            gain = (atom * here).sum(1).relu()
            here = here - gain.unsqueeze(1) * atom
            residual[live] = here
            unit[live, step], value[live, step] = chosen[:, 0], gain
            going = (gain > 0) & (here.norm(dim=1) >= threshold)
            if stop_on_duplicate:
                going &= (unit[live, :step] != chosen).all(1)
            live = live[going]
        ctx.rows, ctx.z_dtype = rows, z.dtype
        ctx.save_for_backward(residual, weights, unit, value)
        ctx.mark_non_differentiable(unit)
        return unit, value

    @staticmethod
    @once_differentiable
    def backward(ctx, _unit: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        last, weights, unit, value = ctx.saved_tensors
        rows = ctx.rows.with_weights(weights)
        need_z, need_weights, *_ = ctx.needs_input_grad
        residual = last.clone()
        upstream = torch.zeros_like(last)  # the gradient of the residual that a step leaves
        total = torch.zeros_like(weights, dtype=last.dtype)
        for step in reversed(range(unit.shape[1])):
            chosen, gain = unit[:, step], value[:, step]
            atom = rows.gather(chosen).to(last.dtype)
            residual += gain.unsqueeze(1) * atom
            slope = (grad[:, step] - (upstream * atom).sum(1)) * (gain > 0)
            if need_weights:
                both = slope.unsqueeze(1) * residual - gain.unsqueeze(1) * upstream
                rows.add_outer(total, chosen, both)
            upstream += slope.unsqueeze(1) * atom
        return (
            upstream.to(ctx.z_dtype) if need_z else None,
            total.to(weights.dtype) if need_weights else None,
            None,
            None,
            None,
            None,
        )
