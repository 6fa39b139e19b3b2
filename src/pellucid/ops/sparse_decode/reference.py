"""The three products by plain gathers: the oracle, never the path that runs."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sparse_decode(
    unit: Int[Tensor, "T K"], value: Float[Tensor, "T K"], table: Float[Tensor, "N d"]
) -> Float[Tensor, "T d"]:
    """y_t = Σ_k value_tk · table[unit_tk]."""
    return torch.einsum("tk,tkd->td", value, table[unit])


def sparse_read(
    x: Float[Tensor, "T d"], unit: Int[Tensor, "T K"], table: Float[Tensor, "N d"]
) -> Float[Tensor, "T K"]:
    """a_tk = table[unit_tk] · x_t."""
    return torch.einsum("td,tkd->tk", x, table[unit])


def segment_outer(
    unit: Int[Tensor, "T K"], value: Float[Tensor, "T K"], x: Float[Tensor, "T d"], rows: int
) -> Float[Tensor, "N d"]:
    """out_n = Σ over the pairs (t, k) with unit_tk = n of value_tk · x_t."""
    out = x.new_zeros(rows, x.shape[1])
    pairs = (value.unsqueeze(-1) * x.unsqueeze(1)).reshape(-1, x.shape[1])
    return out.index_add(0, unit.reshape(-1), pairs)
