"""Causal self-attention with rotary positions, grouped keys and optional query-key norm.

    out = W_o · concat_h softmax(q_h K_h^T / √D, causal) V_h

Sources: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762; grouped keys: Ainslie et
al., "GQA", arXiv 2305.13245; query-key norm: Henry et al., arXiv 2010.04245. Cost per token:
2·d·D·(2H + 2H_kv) FLOPs for the projections and 4·H·D·context for the products.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pellucid.nn.norm import RMSNorm
from pellucid.nn.rope import rotate

# B batch, T new positions, S all positions (cached and new), H heads, D coordinates of a head.


# Appends one layer's new keys and values to those of earlier positions and returns all of them;
# ``update`` of transformers' caches has this form.
Remember = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class Attention(nn.Module):
    """One attention layer; ``layer`` is its place in a cache."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        qk_norm: bool,
        layer: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.layer = heads, kv_heads, head_dim, layer
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.query_norm = RMSNorm(head_dim, eps) if qk_norm else None
        self.key_norm = RMSNorm(head_dim, eps) if qk_norm else None

    def forward(
        self,
        x_BTd: Float[Tensor, "B T d"],
        rope: tuple[Float[Tensor, "B T half"], Float[Tensor, "B T half"]],
        mask_BTS: Bool[Tensor, "B T S"] | None = None,
        remember: Remember | None = None,
    ) -> Float[Tensor, "B T d"]:
        """Attend causally, or where ``mask_BTS`` is true (which must then imply causality)."""
        batch, seq, _ = x_BTd.shape
        q, k, v = (
            project(x_BTd).view(batch, seq, -1, self.head_dim).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if remember is not None:
            k, v = remember(k, v, self.layer)
        if mask_BTS is None and 1 < seq < k.shape[2]:
            # The causal flag below would count positions from the first cached one.
            mask_BTS = x_BTd.new_ones(1, seq, k.shape[2], dtype=torch.bool).tril(k.shape[2] - seq)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v.to(q.dtype),
            attn_mask=None if mask_BTS is None else mask_BTS[:, None],
            is_causal=mask_BTS is None and seq > 1,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(y.transpose(1, 2).reshape(batch, seq, -1))
