"""Rotary position embedding.

Pair i of a head's coordinates (i, i + D/2) turns by the angle position · θ^(−2i/D), so that a
query-key product depends on the distance of the two positions only.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
arXiv 2104.09864; the half-split pairing is that of GPT-NeoX and Llama.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# B batch, T sequence, H heads, D coordinates of one head.


def rope_angles(
    position_BT: Int[Tensor, "B T"], dim: int, theta: float
) -> tuple[Float[Tensor, "B T half"], Float[Tensor, "B T half"]]:
    """Cosines and sines of every position, in float32."""
    step = torch.arange(0, dim, 2, device=position_BT.device, dtype=torch.float32) / dim
    angle = position_BT[..., None].float() * theta**-step
    return angle.cos(), angle.sin()


def rotate(
    x_BHTD: Float[Tensor, "B H T D"],
    cos_BTC: Float[Tensor, "B T half"],
    sin_BTC: Float[Tensor, "B T half"],
) -> Float[Tensor, "B H T D"]:
    """Turn queries or keys by the angles of their positions."""
    cos, sin = cos_BTC[:, None].to(x_BHTD.dtype), sin_BTC[:, None].to(x_BHTD.dtype)
    left, right = x_BHTD.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
