"""A wide ReLU layer of which each token keeps its k strongest units.

    a = U x + b;  S = top-k(relu(a));  y = c + Σ_{j∈S} relu(a_j) v_j

Source: Makhzani and Frey, "k-Sparse Autoencoders", arXiv 1312.5663, in a transformer's slot. Cost
per token: 2·d·f + 2·k·d FLOPs forward, 2·d·f + 10·k·d in training, since only the selected units
carry gradient. A unit that is never selected therefore never learns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.code import keep_largest, named_gates
from pellucid.core.config import check_positive
from pellucid.core.cost import Cost
from pellucid.core.errors import ConfigError
from pellucid.core.unit import Code
from pellucid.ops.pool_mlp import pool_select
from pellucid.ops.sparse_decode import sparse_read
from pellucid.pools.pool import TablePool, calibrate, pool_spec


@dataclass(frozen=True, kw_only=True)
class TopKMLPConfig:
    """``hidden`` units, ``k`` kept per token."""

    kind: Literal["topk-mlp"] = "topk-mlp"
    hidden: int = 4096
    k: int = 12

    def __post_init__(self) -> None:
        check_positive(self, "hidden", "k")
        if self.k > self.hidden:
            raise ConfigError(
                f"k: expected at most hidden = {self.hidden}, found {self.k}; lower k"
            )

    @classmethod
    def tiny(cls) -> "TopKMLPConfig":
        return cls(hidden=13, k=3)

    @property
    def free_size(self) -> int:
        return self.hidden

    def with_size(self, size: int) -> "TopKMLPConfig":
        return replace(self, hidden=size)

    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> "TopKMLP":
        pool = TopKMLP(self, name, width)
        calibrate(pool, output_rms)
        return pool

    def cost(self, width: int) -> Cost:
        read, kept = 2 * width * self.hidden, width * self.k
        return Cost(
            total=2 * width * self.hidden + self.hidden + width,
            active=width * self.hidden + self.hidden + kept + width,
            forward=read + 2 * kept,
            training=read + 10 * kept,
        )


class TopKMLP(TablePool):
    """The k largest positive pre-activations of one wide layer. ``rest`` is c."""

    def __init__(self, config: TopKMLPConfig, name: str, width: int) -> None:
        super().__init__(pool_spec(name, width, ("neuron", config.hidden)))
        self.config = config
        self.reads = nn.Parameter(torch.randn(config.hidden, width) / width**0.5)
        self.read_bias = nn.Parameter(torch.zeros(config.hidden))
        self.writes = nn.Parameter(torch.randn(config.hidden, width) / config.k**0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward_with_parts(
        self, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"], Mapping[str, Float[Tensor, ""]]]:
        code = self._code(x.reshape(-1, x.shape[-1]))
        return self.rest(x) + self.decode(code).view(x.shape), {}

    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return self.reads[unit]

    def _activate_rows(
        self, rows: Float[Tensor, "T d"], unit: Int[Tensor, " k"] | None, limit: int | None
    ) -> Code:
        code = self._code(rows)
        if unit is None:
            return keep_largest(code, self.writes, limit)
        gate = named_gates(code, unit, self.spec.num_units)
        act = F.relu(F.linear(rows, self.reads[unit], self.read_bias[unit]))
        return Code(unit.expand(act.shape), gate.to(act.dtype), act)

    def rest(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.bias.expand_as(x)

    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        return self.reads, self.read_bias, self.writes

    def after_step(self) -> None:
        """Nothing changes between steps."""

    def _code(self, rows: Float[Tensor, "T d"]) -> Code:
        # One pool that every token has opened: the same grouped read and top-k.
        pool = torch.zeros(rows.shape[0], 1, dtype=torch.long, device=rows.device)
        unit = pool_select(
            rows,
            pool,
            torch.ones_like(pool, dtype=rows.dtype),
            self.reads[None],
            self.read_bias[None],
            self.config.k,
        )
        act = F.relu(sparse_read(rows, unit, self.reads) + self.read_bias[unit])
        return Code(unit, (act > 0).to(act.dtype), act)
