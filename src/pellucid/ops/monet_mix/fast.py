"""MONET's mixing with the n × n gates never formed: 4·H·n·m FLOPs a row instead of 2·n²·(H + m).

    horizontal   Σ_h col_hj (Σ_i row_hi a_ic)
    vertical     the same crossing for the channels that a half borrows from the other side;
                 a half's own channels need only Σ_h row_hi, since Σ_j col_hj = 1

Park et al., "Monet: Mixture of Monosemantic Experts for Transformers", 2412.04139.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def mix_horizontal(
    row: Float[Tensor, "T H n"], col: Float[Tensor, "T H n"], act: Float[Tensor, "T n m"]
) -> Float[Tensor, "T n m"]:
    """The factor on write row (j, c): Σ_h col_hj Σ_i row_hi act_ic."""
    return torch.bmm(col.mT, torch.bmm(row, act))


def mix_vertical(
    row: Float[Tensor, "T H n"],
    col: Float[Tensor, "T H n"],
    act_row: Float[Tensor, "T n c"],
    act_col: Float[Tensor, "T n c"],
) -> tuple[Float[Tensor, "T n m"], Float[Tensor, "T n m"]]:
    """The factors on the top write rows of i and on the bottom write rows of j, m = 2c.

    Every head's ``row`` and ``col`` gates must sum to 1.
    """
    own_row = row.sum(1).unsqueeze(-1) * act_row
    own_col = col.sum(1).unsqueeze(-1) * act_col
    top = torch.cat([own_row, mix_horizontal(col, row, act_col)], -1)
    low = torch.cat([mix_horizontal(row, col, act_row), own_col], -1)
    return top, low
