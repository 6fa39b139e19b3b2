"""How many units speak: effective L0 and dead units.

effective L0  mean of the fewest units that hold 90 % of Σ |value| · ‖write‖
dead          share of units that never fired in the pass
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MASS_SHARE = 0.9  # of a row's mass, held by its effective units


def effective_units(
    mass: Float[Tensor, "*batch k"], *, share: float = MASS_SHARE
) -> Int[Tensor, "*batch"]:
    """The fewest units per row that hold ``share`` of its mass |value| · ‖write‖, or 0."""
    held = mass.double().sort(dim=-1, descending=True).values.cumsum(-1)
    total = held[..., -1:] if held.shape[-1] else held.sum(-1, keepdim=True)
    # A sum that reaches the share exactly must not miss it by one rounding.
    short = held < total * (share - 1e-12)
    return torch.where(total.squeeze(-1) > 0, short.sum(-1) + 1, 0)


def dead_fraction(fires: Int[Tensor, " units"]) -> float:
    """The share of units with no firing among ``fires`` counts."""
    return (fires == 0).double().mean().item()
