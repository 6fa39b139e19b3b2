"""Products with all n sparse rows at once: scores, where the k largest are, and sums.

    a_bj = Σ_t values_jt · z_b[index_jt]        y_b = Σ_j value_bj · D_j

An embedding bag over z transposed: each value multiplies a contiguous run of tokens, so the work
O(B·n·s) stays on vector lanes. ``CHUNK_ROWS`` tokens are taken at a time, few enough that they
stay in cache while all latents pass by.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from pellucid.ops.sparse_decode import sparse_read
from pellucid.ops.topk_encode import Sign, stream_topk

CHUNK_ELEMENTS = 1 << 20  # scores held at once: 4 MB at fp32
CHUNK_ROWS = 64


def expander_all(
    z: Float[Tensor, "B d"], values: Float[Tensor, "n s"], index: Int[Tensor, "n s"]
) -> Float[Tensor, "B n"]:
    """a_bj = ⟨D_j, z_b⟩ for every row j; differentiable in ``z`` and ``values``."""
    return _All.apply(z.to(values.dtype), values, index)


def expander_combine(
    value: Float[Tensor, "B n"],
    values: Float[Tensor, "n s"],
    index: Int[Tensor, "n s"],
    width: int,
) -> Float[Tensor, "B {width}"]:
    """y_b = Σ_j value_bj · D_j over all rows; differentiable in ``value`` and ``values``."""
    return _Combine.apply(value.to(values.dtype), values, index, width)


@torch.no_grad()
def expander_topk(
    z: Float[Tensor, "B d"],
    values: Float[Tensor, "n s"],
    index: Int[Tensor, "n s"],
    bias: Float[Tensor, " n"] | None,
    k: int,
    sign: Sign,
    exclude: Int[Tensor, "B t"] | None = None,
) -> Int[Tensor, "B k"]:
    """The k ≤ n rows with the largest ⟨D_j, z⟩ + bias, highest first, lower one in a tie.

    ``relu`` and ``signed`` rank scores as they are, ``abs`` by magnitude. ``exclude`` names rows
    per z that are left out; k others must remain. [B, n] never exists. Not differentiable.
    """
    rows, latents = z.shape[0], values.shape[0]
    if rows == 0 or k == 0:
        return torch.zeros(rows, k, dtype=torch.long, device=z.device)
    work = torch.promote_types(values.dtype, torch.float32)
    step = min(rows, CHUNK_ROWS)
    block = max(1, CHUNK_ELEMENTS // step)

    def score(z_T: Tensor, first: int) -> Tensor:
        part = slice(first, first + block)
        out = _bag(index[part], values[part].to(work), z_T)
        return out if bias is None else out.add_(bias[part].unsqueeze(1))

    found = []
    for i in range(0, rows, step):
        z_T = z[i : i + step].to(work).t().contiguous()
        blocks = ((first, score(z_T, first)) for first in range(0, latents, block))
        left_out = None if exclude is None else exclude[i : i + step]
        found.append(stream_topk(blocks, k, sign, left_out))
    return torch.cat(found)


class _All(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, values: Tensor, index: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(z, values, index)
        return _all(z, values, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        z, values, index = ctx.saved_tensors
        need_z, need_values, _ = ctx.needs_input_grad
        return (
            _combine(grad, values, index, z.shape[1]) if need_z else None,
            _outer(grad, z, index) if need_values else None,
            None,
        )


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, values: Tensor, index: Tensor, width: int) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(value, values, index)
        return _combine(value, values, index, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        value, values, index = ctx.saved_tensors
        need_value, need_values, *_ = ctx.needs_input_grad
        return (
            _all(grad, values, index) if need_value else None,
            _outer(value, grad, index) if need_values else None,
            None,
            None,
        )


def _all(z: Tensor, values: Tensor, index: Tensor) -> Tensor:
    out = z.new_empty(z.shape[0], values.shape[0])
    for i in range(0, z.shape[0], CHUNK_ROWS):
        z_T = z[i : i + CHUNK_ROWS].t().contiguous()
        out[i : i + CHUNK_ROWS] = _bag(index, values, z_T).t()
    return out


def _bag(index: Tensor, values: Tensor, z_T: Tensor) -> Tensor:
    """Every score, latents by rows: [n, B] from z transposed, [d, B]."""
    return F.embedding_bag(index.int(), z_T, per_sample_weights=values, mode="sum")


def _combine(value: Tensor, values: Tensor, index: Tensor, width: int) -> Tensor:
    """Σ_j value_bj · D_j: an embedding bag per place over the latents that have a value there."""
    flat = index.reshape(-1).long()
    order = torch.argsort(flat, stable=True)
    count = torch.bincount(flat, minlength=width)
    start = torch.cumsum(count, 0) - count
    atom = torch.div(order, max(1, index.shape[1]), rounding_mode="floor")
    weight = values.reshape(-1)[order]
    out = value.new_empty(value.shape[0], width)
    for i in range(0, value.shape[0], CHUNK_ROWS):
        value_T = value[i : i + CHUNK_ROWS].t().contiguous()
        out[i : i + CHUNK_ROWS] = F.embedding_bag(
            atom, value_T, start, per_sample_weights=weight, mode="sum"
        ).t()
    return out


def _outer(value: Tensor, z: Tensor, index: Tensor) -> Tensor:
    """Σ_b value_bj · z_b[index_jt]: products of sparse rows, with tokens in place of the width."""
    place = index.long()
    step = max(CHUNK_ROWS, CHUNK_ELEMENTS // max(1, index.shape[0]))
    work = torch.promote_types(z.dtype, torch.float32)
    total = torch.zeros(index.shape, dtype=work, device=z.device)
    for i in range(0, z.shape[0], step):
        part = slice(i, i + step)
        total += sparse_read(value[part].t().contiguous(), place, z[part].t().contiguous())
    return total.to(z.dtype)
