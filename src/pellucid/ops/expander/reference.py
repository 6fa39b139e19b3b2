"""The same products on the dense table: the oracle, never the path that runs."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.ops.sparse_decode import reference as dense
from pellucid.ops.topk_encode import Sign
from pellucid.ops.topk_encode.reference import topk_encode


def table(
    values: Float[Tensor, "n s"], index: Int[Tensor, "n s"], width: int
) -> Float[Tensor, "n {width}"]:
    """D [n, d], which the other ops never build."""
    empty = values.new_zeros(values.shape[0], width)
    return empty.scatter_add(1, index.long(), values)


def expander_all(
    z: Float[Tensor, "B d"], values: Float[Tensor, "n s"], index: Int[Tensor, "n s"]
) -> Float[Tensor, "B n"]:
    """a_bj = ⟨D_j, z_b⟩."""
    return z @ table(values, index, z.shape[1]).t()


def expander_combine(
    value: Float[Tensor, "B n"],
    values: Float[Tensor, "n s"],
    index: Int[Tensor, "n s"],
    width: int,
) -> Float[Tensor, "B {width}"]:
    """y_b = Σ_j value_bj · D_j."""
    return value @ table(values, index, width)


def expander_topk(
    z: Float[Tensor, "B d"],
    values: Float[Tensor, "n s"],
    index: Int[Tensor, "n s"],
    bias: Float[Tensor, " n"] | None,
    k: int,
    sign: Sign,
    exclude: Int[Tensor, "B t"] | None = None,
) -> Int[Tensor, "B k"]:
    """The k rows with the largest ⟨D_j, z⟩ + bias, highest first, lower one in a tie."""
    return topk_encode(z, table(values, index, z.shape[1]), bias, k, sign, exclude)


def expander_read(
    z: Float[Tensor, "B d"],
    unit: Int[Tensor, "B K"],
    values: Float[Tensor, "n s"],
    index: Int[Tensor, "n s"],
) -> Float[Tensor, "B K"]:
    """a_bk = ⟨D_{unit_bk}, z_b⟩."""
    return dense.sparse_read(z, unit, table(values, index, z.shape[1]))


def expander_decode(
    unit: Int[Tensor, "B K"],
    value: Float[Tensor, "B K"],
    values: Float[Tensor, "n s"],
    index: Int[Tensor, "n s"],
    width: int,
) -> Float[Tensor, "B {width}"]:
    """y_b = Σ_k value_bk · D_{unit_bk}."""
    return dense.sparse_decode(unit, value, table(values, index, width))


def expander_gather(
    unit: Int[Tensor, "*u"], values: Float[Tensor, "n s"], index: Int[Tensor, "n s"], width: int
) -> Float[Tensor, "*u {width}"]:
    """The named rows, dense."""
    return table(values, index, width)[unit]


def expander_outer(
    unit: Int[Tensor, "B K"],
    value: Float[Tensor, "B K"],
    x: Float[Tensor, "B d"],
    index: Int[Tensor, "n s"],
) -> Float[Tensor, "n s"]:
    """out_jt = Σ over the pairs (b, k) with unit_bk = j of value_bk · x_b[index_jt]."""
    whole = dense.segment_outer(unit, value, x, index.shape[0])
    return torch.gather(whole, 1, index.long())
