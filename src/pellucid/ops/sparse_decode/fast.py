"""The three products on torch's own kernels, with [T, K, d] never built.

``sparse_decode`` is an embedding bag; ``sparse_read`` a sampled product over a CSR pattern (fp32
and fp64) or a chunked batch product (half types); ``segment_outer`` sorts the pairs by row and is
an embedding bag over tokens. Work is O(T·K·d), memory O(T·K + T·d). A table is never cast: x and
values take its type.
"""

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 22  # a gathered chunk of the half-precision path: 8 MB at bf16


def sparse_decode(
    unit: Int[Tensor, "T K"], value: Float[Tensor, "T K"], table: Float[Tensor, "N d"]
) -> Float[Tensor, "T d"]:
    """y_t = Σ_k value_tk · table[unit_tk]; differentiable in ``value`` and ``table``."""
    return _SparseDecode.apply(unit, value.to(table.dtype), table)


def sparse_read(
    x: Float[Tensor, "T d"], unit: Int[Tensor, "T K"], table: Float[Tensor, "N d"]
) -> Float[Tensor, "T K"]:
    """a_tk = table[unit_tk] · x_t; differentiable in ``x`` and ``table``."""
    return _SparseRead.apply(x.to(table.dtype), unit, table)


def segment_outer(
    unit: Int[Tensor, "T K"], value: Float[Tensor, "T K"], x: Float[Tensor, "T d"], rows: int
) -> Float[Tensor, "N d"]:
    """out_n = Σ over the pairs (t, k) with unit_tk = n of value_tk · x_t; not differentiable."""
    flat = unit.reshape(-1)
    order = torch.argsort(flat, stable=True)
    count = torch.bincount(flat, minlength=rows)
    start = torch.cumsum(count, 0) - count
    token = torch.div(order, max(unit.shape[1], 1), rounding_mode="floor")
    return F.embedding_bag(token, x, start, per_sample_weights=value.reshape(-1)[order], mode="sum")


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, unit: Tensor, value: Tensor, table: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(unit, value, table)
        return _bag(unit, value, table)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        unit, value, table = ctx.saved_tensors
        grad = grad.contiguous()
        _, need_value, need_table = ctx.needs_input_grad
        return (
            None,
            _sample(grad, unit, table) if need_value else None,
            segment_outer(unit, value, grad, table.shape[0]) if need_table else None,
        )


class _SparseRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, unit: Tensor, table: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(x, unit, table)
        return _sample(x, unit, table)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        x, unit, table = ctx.saved_tensors
        grad = grad.contiguous()
        need_x, _, need_table = ctx.needs_input_grad
        return (
            _bag(unit, grad, table) if need_x else None,
            None,
            segment_outer(unit, grad, x, table.shape[0]) if need_table else None,
        )


def _bag(unit: Tensor, value: Tensor, table: Tensor) -> Tensor:
    if unit.numel() == 0:
        return table.new_zeros(unit.shape[0], table.shape[1])
    return F.embedding_bag(unit, table, per_sample_weights=value, mode="sum")


def _sample(x: Tensor, unit: Tensor, table: Tensor) -> Tensor:
    """table[unit_tk] · x_t without the gathered [T, K, d]; autocast would change its type."""
    if unit.numel() == 0:
        return x.new_zeros(unit.shape)
    with torch.autocast(x.device.type, enabled=False):
        if unit.shape[1] > table.shape[0]:
            # Fewer products than entries asked for; the sampled product refuses such a pattern.
            return F.linear(x, table).gather(1, unit)
        if x.dtype in (torch.float32, torch.float64):
            return _sample_csr(x, unit, table)
        rows = max(1, CHUNK_ELEMENTS // (unit.shape[1] * table.shape[1]))
        parts = [
            torch.bmm(table[unit[i : i + rows]], x[i : i + rows].unsqueeze(-1)).squeeze(-1)
            for i in range(0, x.shape[0], rows)
        ]
        return torch.cat(parts)


def _sample_csr(x: Tensor, unit: Tensor, table: Tensor) -> Tensor:
    rows, width = unit.shape
    column, order = torch.sort(unit, dim=1, stable=True)
    start = torch.arange(0, rows * width + 1, width, device=x.device)
    with warnings.catch_warnings():
        # torch announces once per process that CSR tensors are in beta.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        pattern = torch.sparse_csr_tensor(
            start,
            column.reshape(-1),
            x.new_zeros(rows * width),
            size=(rows, table.shape[0]),
            check_invariants=False,
        )
        sampled = torch.sparse.sampled_addmm(pattern, x.contiguous(), table.t(), beta=0.0)
    return torch.empty_like(sampled.values().view(rows, width)).scatter_(
        1, order, sampled.values().view(rows, width)
    )
