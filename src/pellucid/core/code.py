"""Arithmetic on codes that pools and dictionaries share: bounding one, naming units in one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.unit import Code


def check_exclusive(unit: Tensor | None, limit: int | None) -> None:
    """``activate`` takes ``unit`` or ``limit``, not both."""
    if unit is not None and limit is not None:
        raise ValueError("activate takes unit= or limit=, not both; name units or bound them")


def keep_largest(code: Code, table: Float[Tensor, "N d"], limit: int | None) -> Code:
    """The ``limit`` entries of each row with the largest |value|·‖write‖, or all for ``None``.

    ``table`` holds the write rows.
    """
    if limit is None or limit >= code.unit.shape[-1]:
        return code
    return take_largest(code, table.norm(dim=-1)[code.unit], limit)


def take_largest(code: Code, write_norm: Float[Tensor, "*batch k"], limit: int) -> Code:
    """The same with each entry's ‖write‖ given."""
    if limit >= code.unit.shape[-1]:
        return code
    top = (code.value.abs() * write_norm).topk(limit, dim=-1).indices
    return Code(code.unit.gather(-1, top), code.gate.gather(-1, top), code.act.gather(-1, top))


def named_gates(code: Code, unit: Int[Tensor, " k"], num_units: int) -> Float[Tensor, "*batch k"]:
    """The gate that a code gives to each named unit: 0 where the unit is not in the row.

    A unit is in a row at most once, padding (gate 0) aside, so gates are added up. One that is
    named twice has its gate in both places.
    """
    distinct, place = torch.unique(unit, return_inverse=True)
    column = torch.full((num_units,), distinct.shape[0], device=unit.device)
    column[distinct] = torch.arange(distinct.shape[0], device=unit.device)
    gates = code.gate.new_zeros(*code.gate.shape[:-1], distinct.shape[0] + 1)
    return gates.scatter_add(-1, column[code.unit], code.gate)[..., place]
