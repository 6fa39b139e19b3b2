"""How many units speak: L0, effective L0 and dead units.

L0            mean count of units with value ≠ 0, value = gate · act
effective L0  mean of the fewest units that hold 90 % of Σ |value| · ‖write‖
dead          share of units that never fired in the pass
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.unit import Code

MASS_SHARE = 0.9  # of a row's mass, held by its effective units


def active_units(code: Code) -> Int[Tensor, "*batch"]:
    """The number of units with a value other than 0, per row; padding does not count."""
    return (code.value != 0).sum(-1)


def l0(code: Code) -> float:
    """The mean number of active units per row."""
    return active_units(code).double().mean().item()


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
