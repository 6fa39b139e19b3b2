"""How much one firing of a unit says about the domain of the text.

    share_d = (fires_d / tokens_d) / Σ_d' (fires_d' / tokens_d')
    selectivity = 1 − H(share) / ln D

The numerator ln D − H(share) is what a firing tells about a domain drawn uniformly, in nats. It is
1 for a unit that fires in one domain only and 0 for one that fires at the same rate in all. Few
firings look selective by chance: ask for a minimum count, and print a figure on other documents
than those it was chosen on. O(units · D).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.stats.information import entropy


def domain_shares(
    fires: Int[Tensor, "units domains"], tokens: Int[Tensor, " domains"]
) -> Float[Tensor, "units domains"]:
    """Each unit's share of firings per domain at equal tokens per domain.

    Rows sum to 1, or to 0 for a unit that never fired; a domain without tokens has share 0.
    """
    rate = fires.double() / tokens.double().clamp_min(1.0)
    return rate / rate.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def domain_selectivity(
    fires: Int[Tensor, "units domains"], tokens: Int[Tensor, " domains"]
) -> Float[Tensor, " units"]:
    """1 − H(share)/ln D per unit, D the domains with tokens; 0 for a unit that never fired."""
    present = int((tokens > 0).sum())
    if present < 2:
        return torch.zeros(fires.shape[0], dtype=torch.float64)
    selectivity = 1.0 - entropy(domain_shares(fires, tokens)) / math.log(present)
    return torch.where(fires.sum(-1) > 0, selectivity.clamp(0.0, 1.0), 0.0)
