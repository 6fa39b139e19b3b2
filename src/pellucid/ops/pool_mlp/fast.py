"""Read whole open pools by a grouped product and keep the strongest units, chunk by chunk.

Cost per token: 2·d·e·m FLOPs and one top-k over e·m scores. No gradient is recorded.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Score = Literal["relu", "gelu_abs"]

CHUNK_SCORES = 1 << 21  # 8 MB of float32 scores: stays in cache through product, gate and top-k
SMALLEST_CHUNK = 1024  # tokens: below this the products per pool become too thin


@torch.no_grad()
def pool_select(
    x: Float[Tensor, "T d"],
    pool: Int[Tensor, "T e"],
    gate: Float[Tensor, "T e"],
    reads: Float[Tensor, "P m d"],
    bias: Float[Tensor, "P m"],
    k: int,
    *,
    score: Score = "relu",
    threshold: Float[Tensor, "P m"] | None = None,
) -> Int[Tensor, "T k"]:
    """Flat indices (pool · m + slot) of each token's k strongest units, in no order.

    Strength is gate · relu(a) or |gate · gelu(a)|, a = reads · x + bias; ``threshold`` is
    subtracted before ranking. A unit of strength 0 ranks last; where fewer than k units speak,
    the remaining indices name silent units of open pools.
    """
    num_slots = reads.shape[1]
    rows = max(SMALLEST_CHUNK, CHUNK_SCORES // (pool.shape[1] * num_slots))
    x = x.to(reads.dtype)
    chosen = [
        _select_chunk(
            x[i : i + rows],
            pool[i : i + rows],
            gate[i : i + rows].to(reads.dtype),
            reads,
            bias,
            k,
            score,
            threshold,
        )
        for i in range(0, x.shape[0], rows)
    ]
    return torch.cat(chosen) if chosen else pool.new_zeros(0, k)


def _select_chunk(
    x: Tensor,
    pool: Tensor,
    gate: Tensor,
    reads: Tensor,
    bias: Tensor,
    k: int,
    score: Score,
    threshold: Tensor | None,
) -> Tensor:
    num_open, num_slots = pool.shape[1], reads.shape[1]
    pre = _grouped_read(x, pool, reads, bias)
    if score == "relu":
        strength = pre.relu_().mul_(gate[..., None])
    else:
        strength = F.gelu(pre).mul_(gate[..., None]).abs_()
    if threshold is not None:
        silent = strength <= 0
        strength.sub_(threshold[pool]).masked_fill_(silent, -torch.inf)
    local = strength.view(-1, num_open * num_slots).topk(k, dim=1, sorted=False).indices
    place = torch.div(local, num_slots, rounding_mode="floor")
    return pool.gather(1, place) * num_slots + local % num_slots


def _grouped_read(x: Tensor, pool: Tensor, reads: Tensor, bias: Tensor) -> Tensor:
    """Pre-activations [t, e, m] of the open pools: one product per pool over its tokens."""
    num_pools, num_slots = reads.shape[:2]
    flat = pool.reshape(-1)
    order = torch.argsort(flat, stable=True)
    token = torch.div(order, pool.shape[1], rounding_mode="floor")
    grouped = x[token]
    read = x.new_empty(flat.shape[0], num_slots)
    start = 0
    for index, count in enumerate(torch.bincount(flat, minlength=num_pools).tolist()):
        if count:
            rows = slice(start, start + count)
            torch.addmm(bias[index], grouped[rows], reads[index].t(), out=read[rows])
            start += count
    pre = torch.empty_like(read)
    pre[order] = read
    return pre.view(*pool.shape, num_slots)
