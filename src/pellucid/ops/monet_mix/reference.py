"""MONET's mixing through the gate of every expert (i, j): the oracle, never the path that runs."""

import torch
from jaxtyping import Float
from torch import Tensor


def mix_horizontal(
    row: Float[Tensor, "T H n"], col: Float[Tensor, "T H n"], act: Float[Tensor, "T n m"]
) -> Float[Tensor, "T n m"]:
    """The factor on write row (j, c): Σ_i gate_ij act_ic."""
    gate = torch.einsum("thi,thj->tij", row, col)
    return torch.einsum("tij,tic->tjc", gate, act)


def mix_vertical(
    row: Float[Tensor, "T H n"],
    col: Float[Tensor, "T H n"],
    act_row: Float[Tensor, "T n c"],
    act_col: Float[Tensor, "T n c"],
) -> tuple[Float[Tensor, "T n m"], Float[Tensor, "T n m"]]:
    """The factors on the top write rows of i and on the bottom write rows of j, m = 2c."""
    gate = torch.einsum("thi,thj->tij", row, col)
    top = [torch.einsum("tij,tic->tic", gate, act_row), torch.einsum("tij,tjc->tic", gate, act_col)]
    low = [torch.einsum("tij,tic->tjc", gate, act_row), torch.einsum("tij,tjc->tjc", gate, act_col)]
    return torch.cat(top, -1), torch.cat(low, -1)
