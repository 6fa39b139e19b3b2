"""PEER: a very large table of one-neuron experts, retrieved by product keys.

    head h: I_h, γ_h = the k best of √N × √N product keys for the query Q_h x, their softmax
    y = Σ_h Σ_{j ∈ I_h} γ_hj σ(u_j · x) v_j,      σ = gelu

He, "Mixture of A Million Experts", arXiv 2407.04153. In the code an expert that several heads
retrieve is one unit with its gates added. Cost per token: 4·h·dk·(d + √N) + 4·h·k·d FLOPs forward,
three times that in training.

Gradient reaches only experts that were retrieved. One that no token retrieves learns nothing; it
can return only because queries move, and because its half keys, shared with the other experts of
its row and column, do.
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
from pellucid.ops.sparse_decode import sparse_decode, sparse_read
from pellucid.pools.merge import merge_repeats
from pellucid.pools.pool import TablePool, calibrate, pool_spec
from pellucid.pools.product_keys import (
    Norm,
    ProductKeyRouter,
    check_choice,
    routing_flops,
    routing_params,
    square_side,
)


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """``experts`` (a square) experts; each of ``heads`` heads retrieves ``k``.

    ``key_width`` is the width of a half key. Defaults are the paper's, except for ``norm`` and
    for keys of their own for each head.
    """

    kind: Literal["peer"] = "peer"
    experts: int = 1024**2
    heads: int = 8
    k: int = 16
    key_width: int = 128
    share_keys: bool = False
    norm: Norm = "rms"
    activation: Literal["gelu", "relu"] = "gelu"

    def __post_init__(self) -> None:
        check_positive(self, "experts", "heads", "k", "key_width")
        square_side("experts", self.experts)
        if self.k > self.experts:
            raise ConfigError(
                f"k: expected at most experts = {self.experts}, found {self.k}; lower k"
            )

    @classmethod
    def tiny(cls) -> "PeerConfig":
        return cls(experts=9, heads=2, k=4, key_width=3)

    @property
    def free_size(self) -> int:
        return self.k

    def with_size(self, size: int) -> "PeerConfig":
        return replace(self, k=size)

    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> "Peer":
        check_choice("k", self.k, self.experts)
        pool = Peer(self, name, width)
        calibrate(pool, output_rms)
        return pool

    def cost(self, width: int) -> Cost:
        side, retrieved = square_side("experts", self.experts), self.heads * self.k
        routing = routing_params(width, side, self.heads, self.key_width, self.share_keys)
        forward = routing_flops(width, side, self.heads, self.key_width) + 4 * retrieved * width
        return Cost(
            total=routing + 2 * self.experts * width,
            active=routing + 2 * min(retrieved, self.experts) * width,
            forward=forward,
            training=3 * forward,
        )


class Peer(TablePool):
    """Product keys over a table of one-neuron experts; nothing is written outside the units."""

    def __init__(self, config: PeerConfig, name: str, width: int) -> None:
        side = square_side("experts", config.experts)
        super().__init__(pool_spec(name, width, ("row", side), ("col", side)))
        self.config = config
        self.router = ProductKeyRouter(
            width=width,
            side=side,
            heads=config.heads,
            k=config.k,
            key_width=config.key_width,
            share_keys=config.share_keys,
            norm=config.norm,
        )
        self.reads = nn.Parameter(torch.randn(config.experts, width) / width**0.5)
        self.writes = nn.Parameter(torch.randn(config.experts, width))

    def forward_with_parts(
        self, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"], Mapping[str, Float[Tensor, ""]]]:
        rows = x.reshape(-1, x.shape[-1])
        unit, gate = (found.flatten(1) for found in self.router(rows, track=True))
        # Heads are merged in ``activate`` only: the sum does not care about repeats.
        act = self._act(sparse_read(rows, unit, self.reads))
        return sparse_decode(unit, gate * act, self.writes).view(x.shape), {}

    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return self.reads[unit]

    def _activate_rows(
        self, rows: Float[Tensor, "T d"], unit: Int[Tensor, " k"] | None, limit: int | None
    ) -> Code:
        address, gate = self.router(rows)
        index, gate = merge_repeats(address.flatten(1), gate.flatten(1), self.spec.num_units)
        if unit is None:
            act = self._act(sparse_read(rows, index, self.reads))
        else:
            act = self._act(F.linear(rows, self.reads[unit]))
            found = Code(index, gate, torch.zeros_like(gate))
            index, gate = unit.expand(act.shape), named_gates(found, unit, self.spec.num_units)
        return keep_largest(Code(index, gate, act), self.writes, limit)

    def rest(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return torch.zeros_like(x)

    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        return self.reads, self.writes

    def after_step(self) -> None:
        """Nothing changes between steps."""

    def _act(self, pre: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        return F.gelu(pre) if self.config.activation == "gelu" else F.relu(pre)
