"""Units by name: ``blocks.3.ffn@pool=3``, ``blocks.3.ffn@pool=3,slot=17``, ``blocks.3.ffn@10,11``.

A bare ``blocks.3.ffn@*`` names every unit. Flat indices are row-major over the pool's axes.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.core.errors import AddressError, nearest
from pellucid.core.unit import PoolSpec


def split_address(text: str) -> tuple[str, str]:
    """``"NAME@UNITS"`` as (name, units); anything else is an ``AddressError``."""
    name, at, units = text.partition("@")
    if not at or not name or not units:
        raise AddressError(
            f"{text!r}: expected NAME@UNITS, for example blocks.1.ffn@pool=3 or blocks.1.ffn@10,11"
        )
    return name, units


def parse_units(units: str, spec: PoolSpec) -> Int[Tensor, " k"]:
    """The sorted flat indices that ``units`` names in a pool.

    ``units`` is ``*``, a list of flat indices, or ``axis=index`` pairs that fix some axes and
    leave the others free. Errors: an unknown axis (nearest offered) or an index out of range.
    """
    if units == "*":
        return torch.arange(spec.num_units)
    parts = [part.strip() for part in units.split(",")]
    if all("=" not in part for part in parts):
        flat = [_index(part, spec.num_units, f"{spec.name}@{units}", "unit") for part in parts]
        return torch.tensor(sorted(set(flat)))
    sizes = dict(spec.axes)
    fixed: dict[str, int] = {}
    for part in parts:
        axis, _, value = part.partition("=")
        if axis not in sizes:
            raise AddressError(
                f"{spec.name}@{units}: the pool has no axis {axis!r}; {nearest(axis, sizes)}"
            )
        if axis in fixed:
            raise AddressError(f"{spec.name}@{units}: {axis} is fixed twice; name it once")
        fixed[axis] = _index(value, sizes[axis], f"{spec.name}@{units}", axis)
    grid = torch.arange(spec.num_units).view([size for _, size in spec.axes])
    chosen = tuple(fixed.get(axis, slice(None)) for axis, _ in spec.axes)
    return grid[chosen].reshape(-1)


def format_unit(unit: int, spec: PoolSpec) -> str:
    """The address of one unit by its axes: ``blocks.3.ffn@pool=3,slot=17``."""
    places: list[str] = []
    for axis, size in reversed(spec.axes):
        unit, place = divmod(unit, size)
        places.append(f"{axis}={place}")
    return f"{spec.name}@{','.join(reversed(places))}"


def _index(text: str, size: int, address: str, axis: str) -> int:
    try:
        index = int(text)
    except ValueError:
        raise AddressError(
            f"{address}: {axis} must be a whole number from 0 to {size - 1}, found {text!r}"
        ) from None
    if not 0 <= index < size:
        raise AddressError(f"{address}: no such {axis}; it goes from 0 to {size - 1}")
    return index
