"""Products with chosen sparse rows, K per token, with neither [n, d] nor [B, K, d] ever built.

    a_bk = ⟨D_{unit_bk}, z_b⟩        y_b = Σ_k value_bk · D_{unit_bk}

Row D_j has ``values[j]`` at the places ``index[j]`` and zeros elsewhere, as the dictionaries of
2607.01799 have. Work O(B·K·s), in chunks of ``CHUNK_ELEMENTS`` gathered values; gradients with
respect to ``values`` are [n, s]. Sums run in at least float32; results have the type of
``values``, which z and value take first.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 20


def expander_read(
    z: Float[Tensor, "B d"],
    unit: Int[Tensor, "B K"],
    values: Float[Tensor, "n s"],
    index: Int[Tensor, "n s"],
) -> Float[Tensor, "B K"]:
    """a_bk = ⟨D_{unit_bk}, z_b⟩; differentiable in ``z`` and ``values``."""
    return _Read.apply(z.to(values.dtype), unit, values, index)


def expander_decode(
    unit: Int[Tensor, "B K"],
    value: Float[Tensor, "B K"],
    values: Float[Tensor, "n s"],
    index: Int[Tensor, "n s"],
    width: int,
) -> Float[Tensor, "B {width}"]:
    """y_b = Σ_k value_bk · D_{unit_bk}; differentiable in ``value`` and ``values``."""
    return _Decode.apply(unit, value.to(values.dtype), values, index, width)


def expander_gather(
    unit: Int[Tensor, "*u"], values: Float[Tensor, "n s"], index: Int[Tensor, "n s"], width: int
) -> Float[Tensor, "*u {width}"]:
    """The named rows, dense; differentiable in ``values``."""
    dense = values.new_zeros(*unit.shape, width)
    return dense.scatter_add(-1, index[unit].long(), F.embedding(unit, values))


def expander_outer(
    unit: Int[Tensor, "B K"],
    value: Float[Tensor, "B K"],
    x: Float[Tensor, "B d"],
    index: Int[Tensor, "n s"],
) -> Float[Tensor, "n s"]:
    """out_jt = Σ over the pairs (b, k) with unit_bk = j of value_bk · x_b[index_jt].

    The gradient of both other products with respect to ``values``; not differentiable.
    """
    work = torch.promote_types(x.dtype, torch.float32)
    nonzeros = index.shape[1]
    total = torch.zeros(index.numel(), dtype=work, device=x.device)
    slot = torch.arange(nonzeros, device=x.device)
    for part in _parts(unit, nonzeros):
        chosen = unit[part].reshape(-1)
        share = x[part].to(work).gather(1, _places(unit[part], index)).view(-1, nonzeros)
        share.mul_(value[part].to(work).reshape(-1, 1))
        target = chosen.long().unsqueeze(1) * nonzeros + slot
        total.index_add_(0, target.view(-1), share.view(-1))
    return total.view(index.shape).to(x.dtype)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, unit: Tensor, values: Tensor, index: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(z, unit, values, index)
        return _read(z, unit, values, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        z, unit, values, index = ctx.saved_tensors
        need_z, _, need_values, _ = ctx.needs_input_grad
        return (
            _decode(unit, grad, values, index, z.shape[1]) if need_z else None,
            None,
            expander_outer(unit, grad, z, index) if need_values else None,
            None,
        )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,  # noqa: ANN001
        unit: Tensor,
        value: Tensor,
        values: Tensor,
        index: Tensor,
        width: int,
    ) -> Tensor:
        ctx.save_for_backward(unit, value, values, index)
        return _decode(unit, value, values, index, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, None, None]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        unit, value, values, index = ctx.saved_tensors
        _, need_value, need_values, *_ = ctx.needs_input_grad
        return (
            None,
            _read(grad, unit, values, index) if need_value else None,
            expander_outer(unit, value, grad, index) if need_values else None,
            None,
            None,
        )


def _read(z: Tensor, unit: Tensor, values: Tensor, index: Tensor) -> Tensor:
    work = torch.promote_types(values.dtype, torch.float32)
    out = values.new_empty(unit.shape)
    for part in _parts(unit, index.shape[1]):
        found = z[part].to(work).gather(1, _places(unit[part], index))
        found = found.view(*unit[part].shape, index.shape[1]).mul_(F.embedding(unit[part], values))
        out[part] = found.sum(-1)
    return out


def _decode(unit: Tensor, value: Tensor, values: Tensor, index: Tensor, width: int) -> Tensor:
    work = torch.promote_types(values.dtype, torch.float32)
    out = torch.zeros(unit.shape[0], width, dtype=work, device=values.device)
    for part in _parts(unit, index.shape[1]):
        share = F.embedding(unit[part], values).to(work) * value[part].unsqueeze(-1)
        out[part].scatter_add_(1, _places(unit[part], index), share.flatten(1))
    return out.to(values.dtype)


def _parts(unit: Tensor, nonzeros: int) -> Iterator[slice]:
    """Slices of tokens whose chosen rows have at most ``CHUNK_ELEMENTS`` values together."""
    step = max(1, CHUNK_ELEMENTS // max(1, unit.shape[1] * nonzeros))
    for i in range(0, unit.shape[0], step):
        yield slice(i, i + step)


def _places(unit: Tensor, index: Tensor) -> Tensor:
    """Where the chosen rows' values stand: [B, K·s]."""
    chosen = index.index_select(0, unit.reshape(-1)).long()
    return chosen.view(unit.shape[0], unit.shape[1] * index.shape[1])
