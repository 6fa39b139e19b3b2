"""Load balance: P · Σ_i F_i · P_i, the z-loss, and the sign update of a selection bias.

F_i is the share of all assignments that pool i received (no gradient), P_i its mean probability.
Sources: Fedus et al., "Switch Transformers", arXiv 2101.03961 (loss); Zoph et al., "ST-MoE",
arXiv 2202.08906 (z-loss); Wang et al., "Auxiliary-Loss-Free Load Balancing", arXiv 2408.15664
(bias).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def balance_loss(probability: Float[Tensor, "T P"], load: Float[Tensor, " P"]) -> Float[Tensor, ""]:
    """P · Σ_i F_i · P_i, which is 1 at perfect balance; ``load`` counts assignments per pool."""
    share = load / load.sum().clamp_min(1)
    return probability.shape[1] * (share * probability.mean(0)).sum()


def z_loss(logits: Float[Tensor, "T P"]) -> Float[Tensor, ""]:
    """Mean squared logsumexp of the router's logits: keeps them from drifting upwards."""
    return logits.logsumexp(-1).square().mean()


def bias_step(
    bias: Float[Tensor, " P"], load: Float[Tensor, " P"] | Int[Tensor, " P"], rate: float
) -> Float[Tensor, " P"]:
    """bias + rate · sign(mean load − load): rarely chosen pools become easier to choose."""
    load = load.to(bias.dtype)
    return bias + rate * torch.sign(load.mean() - load)
