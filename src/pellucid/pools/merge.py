"""Sparse lists in which a unit may come up more than once, made into lists where it does not."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def first_of_each(sorted_unit: Int[Tensor, "T K"]) -> Bool[Tensor, "T K"]:
    """Where a value of a sorted row appears for the first time."""
    first = torch.ones_like(sorted_unit, dtype=torch.bool)
    first[:, 1:] = sorted_unit[:, 1:] != sorted_unit[:, :-1]
    return first


def merge_repeats(
    unit: Int[Tensor, "T K"], gate: Float[Tensor, "T K"], num_units: int
) -> tuple[Int[Tensor, "T k"], Float[Tensor, "T k"]]:
    """Each unit once per row with its gates added, ascending, padded by the last one at gate 0.

    A result has min(K, num_units) entries. Differentiable in ``gate``.
    """
    unit, order = torch.sort(unit, dim=1, stable=True)
    place = first_of_each(unit).long().cumsum(1) - 1
    merged = unit[:, -1:].expand_as(unit).scatter(1, place, unit)
    total = torch.zeros_like(gate).scatter_add(1, place, gate.gather(1, order))
    return merged[:, :num_units].contiguous(), total[:, :num_units]
