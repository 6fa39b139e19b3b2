"""A unit, a pool of units, and the sparse code a pool gives to its input.

    contribution of unit u to x = gate_u(x) · act_u(read_u · x) · write_u

Read is what a unit looks for, gate when it may speak, write what it says. Whatever is trained,
fitted or imported appears as a pool of such rank-one units behind ``UnitPool``, so that a metric
or a page written once serves every architecture.

Shapes: k units listed per row, ``*batch`` any leading axes, ``*u`` any axes of unit indices.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.core.errors import AddressError


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place in a host: a module's input or its output, reached by a plain forward hook.

    ``str(site)`` reads ``"blocks.3.ffn:in"`` or ``"model.layers.7.mlp:out"``.
    """

    module: str
    port: Literal["in", "out"]

    def __str__(self) -> str:
        return f"{self.module}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read ``MODULE:in`` or ``MODULE:out``; anything else is an ``AddressError``."""
        module, colon, port = text.rpartition(":")
        if not colon or not module or port not in ("in", "out"):
            raise AddressError(
                f"site {text!r}: expected MODULE:in or MODULE:out, for example blocks.3.ffn:in"
            )
        return cls(module=module, port="in" if port == "in" else "out")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """What is constant about a pool: its name, its two sites, its named axes and its widths.

    ``axes`` factor the flat unit index in row-major order: ``(("pool", 64), ("slot", 128))``
    means unit = pool · 128 + slot. A metric reaches a coarser grain by summing over axes.
    """

    name: str
    reads: Site
    writes: Site
    axes: tuple[tuple[str, int], ...]
    d_in: int
    d_out: int

    @property
    def num_units(self) -> int:
        return prod([size for _, size in self.axes])


@dataclass(frozen=True, slots=True)
class Code:
    """The units that speak for each row, with their gates and activations.

    Rows are padded with any valid index at gate 0, so no mask travels along. A unit occurs at
    most once in a row, padding aside.
    """

    unit: Int[Tensor, "*batch k"]
    gate: Float[Tensor, "*batch k"]
    act: Float[Tensor, "*batch k"]

    @property
    def value(self) -> Float[Tensor, "*batch k"]:
        """gate · act: the factor on each unit's write row."""
        return self.gate * self.act

    def where(self, keep: Bool[Tensor, "*batch k"]) -> "Code":
        """The same code with every entry outside ``keep`` silenced (gate 0)."""
        return Code(self.unit, torch.where(keep, self.gate, 0.0), self.act)


@runtime_checkable
class UnitPool(Protocol):
    """The protocol behind which every unit, native, fitted or imported, is read.

    ``x`` is the tensor at ``spec.reads``; ``rest(x) + decode(activate(x))`` is the pool's whole
    output at ``spec.writes``.
    """

    @property
    def spec(self) -> PoolSpec: ...

    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d_in"]:
        """The directions really applied to x, scaling and folding included."""
        ...

    def write(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d_out"]:
        """The directions the units write."""
        ...

    def activate(
        self,
        x: Float[Tensor, "*batch d_in"],
        *,
        unit: Int[Tensor, " k"] | None = None,
        limit: int | None = None,
    ) -> Code:
        """Every unit that is on.

        With ``unit``: exactly those named, on or off, with the gates that the full competition
        gave them. With ``limit``: the largest |value|·‖write‖ of each row. Both: ``ValueError``.
        """
        ...

    def decode(self, code: Code) -> Float[Tensor, "*batch d_out"]:
        """Σ value · write, for any code, edited ones too; linear in value."""
        ...

    def rest(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """What no unit writes: decoder bias, skip connection, shared path."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One stretch of text around a unit's firing: its tokens, their values and where it stood."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    focus: int
    document: str
    domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRecord:
    """What there is to read about one unit, gathered once over held-out documents.

    ``domains`` holds the unit's share of firings per domain at equal tokens per domain;
    ``reads`` and ``writes`` the tokens its two directions prefer, with their scores.
    """

    pool: str
    unit: int
    address: str
    fires: int
    tokens: int
    selectivity: float
    domains: tuple[tuple[str, float], ...]
    reads: tuple[tuple[str, float], ...]
    writes: tuple[tuple[str, float], ...]
    contexts: tuple[Context, ...]
