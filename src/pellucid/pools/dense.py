"""Dense feed-forward slots, every neuron a unit that is always on.

    gelu      a = U x + b;  y = c + Σ_j gelu(a_j) v_j
    swiglu    y = Σ_j silu(w_j · x) (u_j · x) v_j

GELU: Hendrycks and Gimpel, arXiv 1606.08415. SwiGLU: Shazeer, "GLU Variants Improve
Transformer", arXiv 2002.05202. Cost per token: 4·d·f and 6·d·f FLOPs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.code import keep_largest
from pellucid.core.config import check_positive
from pellucid.core.cost import Cost
from pellucid.core.unit import Code
from pellucid.pools.pool import TablePool, calibrate, pool_spec


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """A GELU layer of ``hidden`` neurons: the twin that every other slot is compared with."""

    kind: Literal["dense"] = "dense"
    hidden: int = 512

    def __post_init__(self) -> None:
        check_positive(self, "hidden")

    @classmethod
    def tiny(cls) -> "DenseConfig":
        return cls(hidden=7)

    @property
    def free_size(self) -> int:
        return self.hidden

    def with_size(self, size: int) -> "DenseConfig":
        return replace(self, hidden=size)

    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> "Dense":
        pool = Dense(self, name, width)
        calibrate(pool, output_rms)
        return pool

    def cost(self, width: int) -> Cost:
        params = 2 * width * self.hidden + self.hidden + width
        forward = 4 * width * self.hidden
        return Cost(total=params, active=params, forward=forward, training=3 * forward)


@dataclass(frozen=True, kw_only=True)
class SwiGLUConfig:
    """A SwiGLU layer of ``hidden`` neurons without biases."""

    kind: Literal["swiglu"] = "swiglu"
    hidden: int = 384

    def __post_init__(self) -> None:
        check_positive(self, "hidden")

    @classmethod
    def tiny(cls) -> "SwiGLUConfig":
        return cls(hidden=7)

    @property
    def free_size(self) -> int:
        return self.hidden

    def with_size(self, size: int) -> "SwiGLUConfig":
        return replace(self, hidden=size)

    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> "SwiGLU":
        pool = SwiGLU(self, name, width)
        calibrate(pool, output_rms)
        return pool

    def cost(self, width: int) -> Cost:
        params = 3 * width * self.hidden
        forward = 6 * width * self.hidden
        return Cost(total=params, active=params, forward=forward, training=3 * forward)


class _Neurons(TablePool):
    """What both dense slots share: a read table, a write table, and all units always on."""

    def __init__(self, hidden: int, name: str, width: int) -> None:
        super().__init__(pool_spec(name, width, ("neuron", hidden)))
        self.reads = nn.Parameter(torch.randn(hidden, width) / width**0.5)
        self.writes = nn.Parameter(torch.randn(hidden, width) / hidden**0.5)

    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return self.reads[unit]

    def after_step(self) -> None:
        """Nothing changes between steps."""

    def _all_or_named(
        self,
        gate: Float[Tensor, "T f"],
        act: Float[Tensor, "T f"],
        unit: Int[Tensor, " k"] | None,
        limit: int | None,
    ) -> Code:
        index = torch.arange(act.shape[-1], device=act.device)
        if unit is not None:
            index, gate, act = unit, gate[:, unit], act[:, unit]
        code = Code(index.expand(act.shape), gate, act)
        return keep_largest(code, self.writes, limit)


class Dense(_Neurons):
    """gelu(U x + b) V + c. ``rest`` is c."""

    def __init__(self, config: DenseConfig, name: str, width: int) -> None:
        super().__init__(config.hidden, name, width)
        self.read_bias = nn.Parameter(torch.zeros(config.hidden))
        self.bias = nn.Parameter(torch.zeros(width))

    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        return self.reads, self.writes, self.read_bias

    def forward_with_parts(
        self, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"], Mapping[str, Float[Tensor, ""]]]:
        return F.linear(self._act(x), self.writes.t(), self.bias), {}

    def _activate_rows(
        self, rows: Float[Tensor, "T d"], unit: Int[Tensor, " k"] | None, limit: int | None
    ) -> Code:
        act = self._act(rows)
        return self._all_or_named(torch.ones_like(act), act, unit, limit)

    def rest(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.bias.expand_as(x)

    def _act(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch f"]:
        return F.gelu(F.linear(x, self.reads, self.read_bias))


class SwiGLU(_Neurons):
    """(silu(W x) · U x) V. The gate row decides when a neuron speaks, the read row what it says."""

    def __init__(self, config: SwiGLUConfig, name: str, width: int) -> None:
        super().__init__(config.hidden, name, width)
        self.gates = nn.Parameter(torch.randn(config.hidden, width) / width**0.5)

    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        return self.gates, self.reads, self.writes

    def forward_with_parts(
        self, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"], Mapping[str, Float[Tensor, ""]]]:
        value = F.silu(F.linear(x, self.gates)) * F.linear(x, self.reads)
        return F.linear(value, self.writes.t()), {}

    def _activate_rows(
        self, rows: Float[Tensor, "T d"], unit: Int[Tensor, " k"] | None, limit: int | None
    ) -> Code:
        gate, act = F.silu(F.linear(rows, self.gates)), F.linear(rows, self.reads)
        return self._all_or_named(gate, act, unit, limit)

    def rest(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return torch.zeros_like(x)
