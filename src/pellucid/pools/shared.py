"""Paths beside a pool for what no single unit should have to carry: a sink unit, a tied MLP.

    sink_unit   relu(u · x + b) v, gate 1, outside the competition
    tied_mlp    gelu(U x + b) V, one small MLP tied across all layers; part of ``rest``

Both answer attention sinks, which pools of small units handle badly. A sink's constant act would
merely be a bias, hence the read.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.unit import Code, PoolSpec
from pellucid.pools.pool import TablePool


class TiedMLP(nn.Module):
    """gelu(U x) V with ``hidden`` neurons, no biases: the model's own, used by every layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(hidden, width) / width**0.5)
        self.down = nn.Parameter(torch.randn(hidden, width) * 0.02)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return F.linear(F.gelu(F.linear(x, self.up)), self.down.t())


class SinkUnit(TablePool):
    """A pool of one unit, always allowed to speak, on the sites of the pool it accompanies."""

    def __init__(self, beside: PoolSpec) -> None:
        spec = PoolSpec(
            name=f"{beside.name}.sink",
            reads=beside.reads,
            writes=beside.writes,
            axes=(("unit", 1),),
            d_in=beside.d_in,
            d_out=beside.d_out,
        )
        super().__init__(spec)
        self.reads = nn.Parameter(torch.randn(1, spec.d_in) / spec.d_in**0.5)
        self.read_bias = nn.Parameter(torch.zeros(1))
        self.writes = nn.Parameter(torch.randn(1, spec.d_out) * 0.02)

    def forward_with_parts(
        self, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"], Mapping[str, Float[Tensor, ""]]]:
        return self.decode(self.activate(x)), {}

    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return self.reads[unit]

    def _activate_rows(
        self, rows: Float[Tensor, "T d"], unit: Int[Tensor, " k"] | None, limit: int | None
    ) -> Code:
        act = F.relu(F.linear(rows, self.reads, self.read_bias))
        index = torch.zeros(1, dtype=torch.long, device=rows.device) if unit is None else unit
        act = act.expand(-1, index.shape[0])
        return Code(index.expand(act.shape), torch.ones_like(act), act)

    def rest(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return torch.zeros_like(x)

    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        return self.reads, self.read_bias, self.writes

    def after_step(self) -> None:
        """Nothing changes between steps."""
