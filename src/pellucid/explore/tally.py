"""Counts of one pool's activity over text, without a dense [tokens, units] code.

A code is reduced to its entries with a value other than 0, and these are added to counts by unit
and, for pools of several axes, by *grain*: all axes but the last, such as the pool of a
hierarchy. Memory: 2 · units · domains counts, 2 · parents · grains sums, and a number for every
unit of every parent and batch in which it fired.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.core.unit import Code, PoolSpec, UnitPool
from pellucid.data.packing import PADDING, Batch
from pellucid.stats.activity import effective_units

ENTRIES = 1 << 22  # of a code or of a [rows, grains] table held at once: 64 MB
LARGE = 1 << 16  # units; beyond, a pool may ask for a limit before it lists those that are on
LIMIT = 1 << 12  # the limit given then
NORM_ROWS = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is known about the rows of a batch: their parent, its domain and its half."""

    parent: Int[Tensor, " rows"]
    domain: Int[Tensor, " rows"]
    half: Int[Tensor, " rows"]


class Tally:
    """Running counts for one pool; ``add`` takes the site's rows of one batch."""

    def __init__(
        self, pool: UnitPool, *, domains: int, parents: int, device: torch.device | str
    ) -> None:
        self.pool = pool
        self.write_norm = write_norms(pool, device)
        units = pool.spec.num_units
        self.fires = torch.zeros(2, units, domains, dtype=torch.int32)
        self.rows, self.active, self.effective = 0, 0, 0
        self.grains = num_grains(pool.spec)
        self._owners = parents
        self.mass = torch.zeros(parents, self.grains)
        self.used = torch.zeros(parents, self.grains)
        self.choices: list[Tensor] = []
        self._pairs: list[Tensor] = []

    @property
    def parents(self) -> Int[Tensor, "halves units"]:
        """In how many parents each unit fired."""
        units = self.fires.shape[1]
        found = torch.cat([torch.zeros(0, dtype=torch.int64), *self._pairs]).unique()
        self._pairs = [found]
        place = found // self._owners % 2 * units + found // self._owners // 2
        return torch.bincount(place, minlength=2 * units).view(2, units)

    def add(self, x: Float[Tensor, "rows d"], rows: Rows) -> None:
        units = self.pool.spec.num_units
        limit = LIMIT if units > LARGE else None
        step = max(1, ENTRIES // max(limit or units, self.grains))
        for start in range(0, x.shape[0], step):
            part = slice(start, start + step)
            here = Rows(parent=rows.parent[part], domain=rows.domain[part], half=rows.half[part])
            self._add_code(self.pool.activate(x[part], limit=limit), here)

    def _add_code(self, code: Code, rows: Rows) -> None:
        value, unit = code.value.float().cpu(), code.unit.cpu()
        row, column = (value != 0).nonzero(as_tuple=True)
        unit = unit[row, column]
        mass = value[row, column].abs() * self.write_norm[unit]
        self._count_units(row, unit, mass, rows)
        if self.grains > 1:
            self._count_grains(row, unit, mass, rows)

    def _count_units(self, row: Tensor, unit: Tensor, mass: Tensor, rows: Rows) -> None:
        _, units, domains = self.fires.shape
        place = (rows.half[row] * units + unit) * domains + rows.domain[row]
        ones = torch.ones(len(place), dtype=torch.int32)
        self.fires.view(-1).index_add_(0, place, ones)
        self._pairs.append(self._owned(row, unit, rows))
        count = torch.bincount(row, minlength=len(rows.parent))
        self.rows += len(count)
        self.active += len(row)
        listed = torch.zeros(len(count), int(count.max()) if len(count) else 0)
        listed[row, torch.arange(len(row)) - (count.cumsum(0) - count)[row]] = mass
        self.effective += int(effective_units(listed).sum())

    def _owned(self, row: Tensor, unit: Tensor, rows: Rows) -> Tensor:
        """A number for every unit of every parent in which it fired here, each once."""
        owner, local = rows.parent.unique(return_inverse=True)
        half = torch.zeros_like(owner).index_put_((local,), rows.half.to(owner.dtype))
        # A table of the few parents of a batch costs less than sorting all entries.
        fired = torch.zeros(len(owner), self.fires.shape[1], dtype=torch.bool)
        fired[local[row], unit] = True
        place, found = fired.nonzero(as_tuple=True)
        return (found * 2 + half[place]) * self._owners + owner[place]

    def _count_grains(self, row: Tensor, unit: Tensor, mass: Tensor, rows: Rows) -> None:
        grain = unit // self.pool.spec.axes[-1][1]
        table = torch.zeros(len(rows.parent), self.grains)
        table.view(-1).index_add_(0, row * self.grains + grain, mass)
        self.mass.index_add_(0, rows.parent, table)
        self.used.index_add_(0, rows.parent, (table > 0).float())
        largest, choice = table.max(dim=1)
        self.choices.append(torch.where(largest > 0, choice, -1).int())


def is_text(batch: Batch, end_of_text: int) -> Bool[Tensor, "batch seq"]:
    """Where a batch holds a document's own tokens: no padding, and no end of text before them."""
    return ((batch.document != PADDING) & (batch.tokens != end_of_text)).cpu()


def num_grains(spec: PoolSpec) -> int:
    """The number of places along all axes but the last; 1 for a pool of one axis."""
    return spec.num_units // spec.axes[-1][1]


def write_norms(pool: UnitPool, device: torch.device | str) -> Float[Tensor, " units"]:
    """‖write‖ of every unit, read some rows at a time."""
    chunks = torch.arange(pool.spec.num_units, device=device).split(NORM_ROWS)
    return torch.cat([pool.write(chunk).float().norm(dim=-1).cpu() for chunk in chunks])
