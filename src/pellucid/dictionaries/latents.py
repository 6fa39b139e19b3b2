"""What a gate lets through, and one training pass that loss parts are computed from."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.unit import Code
from pellucid.ops.rows import AtomRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Latents:
    """Latents of B rows: those that ``unit`` lists, or for ``None`` every latent in order.

    ``value`` is gate · act and carries the gradient, a straight-through one where the gate has
    it; ``gate`` and ``act`` say the same in the terms of a ``Code``. ``pre`` holds the
    pre-activations of the same latents where a gate's own loss needs them.
    """

    unit: Int[Tensor, "B K"] | None
    gate: Float[Tensor, "B K"]
    act: Float[Tensor, "B K"]
    value: Float[Tensor, "B K"]
    pre: Float[Tensor, "B n"] | None = None

    def decode(self, rows: AtomRows) -> Float[Tensor, "B d"]:
        """Σ value · row over each row's latents."""
        if self.unit is None:
            return rows.combine(self.value)
        return rows.decode(self.unit, self.value)

    def code(self) -> Code:
        """The same as a ``Code``, as wide as the row in which most latents are on."""
        if self.unit is not None:
            return Code(self.unit, self.gate, self.act)
        on = self.gate != 0
        most = int(on.sum(-1).max()) if on.numel() else 0
        unit = on.to(torch.uint8).topk(most, dim=-1).indices
        return Code(unit, self.gate.gather(-1, unit), self.act.gather(-1, unit))

    def fired(self, num: int) -> Int[Tensor, " n"]:
        """How many of the rows each of ``num`` latents fired in (value ≠ 0)."""
        on = self.value != 0
        if self.unit is None:
            return on.sum(0)
        return torch.bincount(self.unit[on], minlength=num)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One training batch on its way through a dictionary, in scaled units.

    z is what the encoder reads, ``target`` what is to be reconstructed, ``base`` what no latent
    writes (decoder bias, skip), ``variance`` the V that squared errors are divided by.
    """

    z: Float[Tensor, "B d_in"]
    target: Float[Tensor, "B d_out"]
    base: Float[Tensor, "B d_out"]
    reads: AtomRows
    writes: AtomRows
    latents: Latents
    variance: Float[Tensor, ""]

    def error(self, written: Float[Tensor, "B d_out"]) -> Float[Tensor, ""]:
        """mean ‖y − base − written‖² / V."""
        residual = self.target - self.base - written
        return residual.square().sum(-1).mean() / self.variance
