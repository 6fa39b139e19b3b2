"""What every feed-forward pool offers the trunk, beyond ``UnitPool``."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.code import check_exclusive
from pellucid.core.unit import Code, PoolSpec, Site
from pellucid.ops.sparse_decode import sparse_decode


class Pool(nn.Module, ABC):
    """A pool of units that fills a feed-forward slot and can be trained there.

    A subclass implements ``forward_with_parts`` on rows of any leading shape, ``_activate_rows``
    behind ``activate``, the other members of ``UnitPool``, and ``unit_tables``. Auxiliary losses
    leave as return values, already weighted. Beside ``after_step``, only ``forward_with_parts`` in
    training changes what the module remembers.
    """

    def __init__(self, spec: PoolSpec) -> None:
        super().__init__()
        self._spec = spec

    @property
    def spec(self) -> PoolSpec:
        return self._spec

    @abstractmethod
    def forward_with_parts(
        self, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"], Mapping[str, Float[Tensor, ""]]]:
        """The slot's output and its weighted auxiliary losses by name (empty in evaluation)."""

    @abstractmethod
    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]: ...

    @abstractmethod
    def write(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]: ...

    @abstractmethod
    def _activate_rows(
        self, rows: Float[Tensor, "T d"], unit: Int[Tensor, " k"] | None, limit: int | None
    ) -> Code:
        """``activate`` on a plain list of rows; ``unit`` and ``limit`` are never both given."""

    @abstractmethod
    def decode(self, code: Code) -> Float[Tensor, "*batch d"]: ...

    @abstractmethod
    def rest(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]: ...

    @abstractmethod
    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        """Parameters with one row per unit (reads, writes and their biases): own learning rate,
        no weight decay."""

    @abstractmethod
    def write_tables(self) -> tuple[nn.Parameter, ...]:
        """Parameters in which the output is linear: what ``calibrate`` scales."""

    @abstractmethod
    def after_step(self) -> None:
        """What changes between optimiser steps without a gradient: balance biases, thresholds."""

    def activate(
        self,
        x: Float[Tensor, "*batch d"],
        *,
        unit: Int[Tensor, " k"] | None = None,
        limit: int | None = None,
    ) -> Code:
        """The code of each row, as ``UnitPool`` says."""
        check_exclusive(unit, limit)
        code = self._activate_rows(x.reshape(-1, x.shape[-1]), unit, limit)
        shape = (*x.shape[:-1], code.unit.shape[-1])
        return Code(code.unit.view(shape), code.gate.view(shape), code.act.view(shape))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.forward_with_parts(x)[0]


class TablePool(Pool):
    """A pool whose unit j writes row j of one table, ``writes`` [N, d], that the subclass makes."""

    writes: nn.Parameter

    def write(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return self.writes[unit]

    def decode(self, code: Code) -> Float[Tensor, "*batch d"]:
        return decode_rows(code, self.writes)

    def write_tables(self) -> tuple[nn.Parameter, ...]:
        return (self.writes,)


def pool_spec(name: str, width: int, *axes: tuple[str, int]) -> PoolSpec:
    """The spec of a native pool: module ``name`` read at its input and written at its output."""
    return PoolSpec(
        name=name,
        reads=Site(module=name, port="in"),
        writes=Site(module=name, port="out"),
        axes=axes,
        d_in=width,
        d_out=width,
    )


def decode_rows(code: Code, table: Float[Tensor, "N d"]) -> Float[Tensor, "*batch d"]:
    """Σ value · table[unit] over each row's entries."""
    *batch, entries = code.unit.shape
    # Counted rather than left to reshape, which cannot infer it where a row has no entries.
    flat = (prod(batch), entries)
    rows = sparse_decode(code.unit.reshape(flat), code.value.reshape(flat), table)
    return rows.view(*batch, table.shape[1])


@torch.no_grad()
def calibrate(pool: Pool, output_rms: float, *, rows: int = 4096) -> None:
    """Scale the write tables so that Gaussian rows leave the pool with RMS ``output_rms``.

    Every architecture then starts with the same influence on the residual stream. Weights on the
    meta device, which are loaded later, are left alone.
    """
    tables = pool.write_tables()
    if any(table.is_meta for table in tables):
        return
    x = torch.randn(rows, pool.spec.d_in, device=tables[0].device, dtype=tables[0].dtype)
    was_training = pool.training
    pool.eval()
    rms = (pool(x) - pool.rest(x)).square().mean().sqrt()
    pool.train(was_training)
    for table in tables:
        table.mul_(output_rms / rms.clamp_min(1e-12))
