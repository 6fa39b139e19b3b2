"""Product-key routing: the k best of side² addresses per head, found from 2·side scores.

    q = norm(Q_h x) [2·dk], halves q1, q2;   r = C_h q1,  t = C'_h q2 [side]
    I_h = the k largest r_i + t_j;   address i·side + j;   γ_h = softmax over I_h

``norm``: "rms" per head (default: causal, no state), "batch" (PEER's; running statistics in
evaluation, and in training rows see one another), "none". Keys are per head, or shared by all heads
as in PEER. Lample et al., "Large Memory Layers with Product Keys", arXiv 1907.05242; He, "Mixture
of A Million Experts", arXiv 2407.04153. Cost per token: 4·h·dk·(d + side) FLOPs, dk the width of a
half key. Gradient reaches all queries, and those keys that some token's choice used.
"""

from math import isqrt
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.errors import ConfigError
from pellucid.ops.product_topk import product_topk
from pellucid.pools.batch_norm import batch_norm

Norm = Literal["rms", "batch", "none"]

CHUNK_SCORES = 1 << 20  # 4 MB of float32 scores: stays in cache from the product to the top-k
RMS_EPS = 1e-6


class ProductKeyRouter(nn.Module):
    """Queries, keys, and the k best addresses of each head."""

    def __init__(
        self,
        *,
        width: int,
        side: int,
        heads: int,
        k: int,
        key_width: int,
        share_keys: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.k = k
        self.side = side
        self.normalise = norm == "rms"
        self.query = nn.Parameter(torch.randn(heads, 2 * key_width, width) / width**0.5)
        keys = torch.rand(1 if share_keys else heads, 2, side, key_width) * 2 - 1
        self.keys = nn.Parameter(keys / (2 * key_width) ** 0.5)
        self.batch_norm = None
        if norm == "batch":
            self.batch_norm = nn.BatchNorm1d(heads * 2 * key_width, affine=False)
            assert self.batch_norm.running_var is not None
            # Exact for Gaussian rows of unit variance, so that evaluation is sound from step 0.
            self.batch_norm.running_var.copy_(self.query.detach().square().sum(-1).flatten())

    def forward(
        self, x: Float[Tensor, "T d"], *, track: bool = False
    ) -> tuple[Int[Tensor, "T h k"], Float[Tensor, "T h k"]]:
        """Each head's k addresses, best first, and their gates, which sum to 1 per head.

        Scores are computed in at least float32, whatever autocast says: in bf16 they tie. In
        training ``track`` moves the running statistics that "batch" keeps.
        """
        with torch.autocast(x.device.type, enabled=False):
            query = self._query(x, track)
            heads, width = query.shape[1], 2 * self.side
            keys = self.keys.to(query.dtype).expand(heads, -1, -1, -1)
            rows = max(1, CHUNK_SCORES // (heads * width))
            parts = [self._best(part, keys) for part in query.split(rows)]
        address, score = (torch.cat(found) for found in zip(*parts))
        return address, score.softmax(-1)

    def _query(self, x: Float[Tensor, "T d"], track: bool) -> Float[Tensor, "T h w"]:
        precise = torch.promote_types(self.query.dtype, torch.float32)
        query = F.linear(x.to(precise), self.query.flatten(0, 1).to(precise))
        if self.batch_norm is not None:
            query = batch_norm(self.batch_norm, query, track=track)
        query = query.unflatten(-1, self.query.shape[:2])
        if self.normalise:
            query = F.rms_norm(query, query.shape[-1:], eps=RMS_EPS)
        return query

    def _best(
        self, query: Float[Tensor, "T h w"], keys: Float[Tensor, "h 2 n dk"]
    ) -> tuple[Int[Tensor, "T h k"], Float[Tensor, "T h k"]]:
        halves = query.unflatten(-1, (2, -1))
        first, second = torch.einsum("thpc,hpnc->pthn", halves, keys)
        score, i, j = product_topk(first, second, self.k)
        return i * self.side + j, score


def square_side(field: str, count: int) -> int:
    """√count, or a ``ConfigError`` that offers the nearest squares."""
    side = isqrt(count)
    if side * side != count:
        raise ConfigError(
            f"{field}: product keys need a perfect square, found {count}; "
            f"use {side**2} or {(side + 1) ** 2}"
        )
    return side


def check_choice(field: str, k: int, options: int) -> None:
    """Refuse one address per head out of many: its softmax is identically 1."""
    if k == 1 < options:
        raise ConfigError(
            f"{field}: expected at least 2 per head, found 1; the softmax over one choice is "
            "identically 1, so the router would get no gradient from the task"
        )


def routing_params(width: int, side: int, heads: int, key_width: int, share_keys: bool) -> int:
    """Entries of the queries and keys."""
    return 2 * heads * width * key_width + 2 * (1 if share_keys else heads) * side * key_width


def routing_flops(width: int, side: int, heads: int, key_width: int) -> int:
    """Forward FLOPs per token of the queries and the two score lists."""
    return 4 * heads * key_width * (width + side)
