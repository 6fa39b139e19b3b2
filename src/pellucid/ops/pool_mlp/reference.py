"""Score every unit of every pool, mask the closed pools, take the top k: the oracle."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def pool_select(
    x: Float[Tensor, "T d"],
    pool: Int[Tensor, "T e"],
    gate: Float[Tensor, "T e"],
    reads: Float[Tensor, "P m d"],
    bias: Float[Tensor, "P m"],
    k: int,
    *,
    score: str = "relu",
    threshold: Float[Tensor, "P m"] | None = None,
) -> Int[Tensor, "T k"]:
    """Indices of the k strongest units; a unit that cannot speak ranks last."""
    pre = torch.einsum("td,pmd->tpm", x, reads) + bias
    dense_gate = x.new_zeros(x.shape[0], reads.shape[0]).scatter(1, pool, gate)[..., None]
    act = F.relu(pre) if score == "relu" else F.gelu(pre)
    strength = (dense_gate * act).abs()
    ranked = strength if threshold is None else strength - threshold
    open_pool = torch.zeros_like(dense_gate, dtype=torch.bool).scatter(1, pool[..., None], True)
    ranked = ranked.masked_fill(~(open_pool & (strength > 0)), -torch.inf)
    return ranked.flatten(1).topk(k, dim=1).indices
