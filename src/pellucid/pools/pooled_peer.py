"""Pooled PEER: product keys retrieve pools of m units instead of single experts.

    head h: the b/h best of √P × √P pools and their softmax γ_h;   G_p = Σ_h γ_hp
    s_j = G_pool(j) · gelu(u_j · x) in open pools only;   S = the k largest |s|
    y = Σ_{j ∈ S} s_j v_j

With m = 1 and k = b this is PEER (He, arXiv 2407.04153); with larger m the reads of a pool lie side
by side, so that a block of tokens reads them in one matrix product. Cost per token:
4·h·dk·(d + √P) + 2·b·m·d + 2·k·d FLOPs forward, three times the routing + 2·b·m·d + 10·k·d in
training, since only the selected units carry gradient; a unit that is never selected never learns.

One pool per head is refused: its softmax is identically 1, and the router would learn nothing.
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
from pellucid.pools.merge import first_of_each, merge_repeats
from pellucid.pools.pool import TablePool, calibrate, decode_rows, pool_spec
from pellucid.pools.product_keys import (
    Norm,
    ProductKeyRouter,
    check_choice,
    routing_flops,
    routing_params,
    square_side,
)


@dataclass(frozen=True, kw_only=True)
class PooledPeerConfig:
    """``pools`` (a square) pools of ``slots`` units; ``open_pools`` retrieved over all heads.

    ``k`` units survive per token: 128 compares with PEER, 12 is legible. ``key_width`` is the
    width of a half key.
    """

    kind: Literal["pooled-peer"] = "pooled-peer"
    pools: int = 128**2
    slots: int = 64
    open_pools: int = 8
    heads: int = 4
    k: int = 128
    key_width: int = 128
    share_keys: bool = False
    norm: Norm = "rms"

    def __post_init__(self) -> None:
        check_positive(self, "pools", "slots", "open_pools", "heads", "k", "key_width")
        square_side("pools", self.pools)
        if self.open_pools % self.heads:
            raise ConfigError(
                f"open_pools: expected a multiple of heads = {self.heads}, "
                f"found {self.open_pools}; every head opens the same number"
            )
        per_head = self.open_pools // self.heads
        check_choice("open_pools", per_head, self.pools)
        if per_head > self.pools:
            raise ConfigError(
                f"open_pools: expected at most pools = {self.pools} per head, found {per_head}; "
                "open fewer pools"
            )
        readable = self.open_distinct * self.slots
        if self.k > readable:
            raise ConfigError(
                f"k: expected at most open pools · slots = {readable}, found {self.k}; "
                "lower k or open more pools"
            )

    @classmethod
    def tiny(cls) -> "PooledPeerConfig":
        return cls(pools=9, slots=3, open_pools=4, heads=2, k=5, key_width=3)

    @property
    def open_distinct(self) -> int:
        """The most different pools that one token can open."""
        return min(self.open_pools, self.pools)

    @property
    def free_size(self) -> int:
        return self.slots

    def with_size(self, size: int) -> "PooledPeerConfig":
        return replace(self, slots=size)

    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> "PooledPeer":
        pool = PooledPeer(self, name, width)
        calibrate(pool, output_rms)
        return pool

    def cost(self, width: int) -> Cost:
        side = square_side("pools", self.pools)
        params = routing_params(width, side, self.heads, self.key_width, self.share_keys)
        routing = routing_flops(width, side, self.heads, self.key_width)
        opened = self.open_distinct * self.slots * width
        kept = self.k * width
        return Cost(
            total=params + 2 * self.pools * self.slots * width,
            active=params + opened + kept,
            forward=routing + 2 * opened + 2 * kept,
            training=3 * routing + 2 * opened + 10 * kept,
        )


class PooledPeer(TablePool):
    """Product keys open pools; inside them the k strongest units speak. ``rest`` is 0."""

    def __init__(self, config: PooledPeerConfig, name: str, width: int) -> None:
        side = square_side("pools", config.pools)
        axes = ("row", side), ("col", side), ("slot", config.slots)
        super().__init__(pool_spec(name, width, *axes))
        self.config = config
        self.router = ProductKeyRouter(
            width=width,
            side=side,
            heads=config.heads,
            k=config.open_pools // config.heads,
            key_width=config.key_width,
            share_keys=config.share_keys,
            norm=config.norm,
        )
        shape = (config.pools, config.slots, width)
        self.reads = nn.Parameter(torch.randn(shape) / width**0.5)
        self.writes = nn.Parameter(torch.randn(self.spec.num_units, width))

    def forward_with_parts(
        self, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"], Mapping[str, Float[Tensor, ""]]]:
        code = self._code(x.reshape(-1, x.shape[-1]), track=True)
        return decode_rows(code, self.writes).view(x.shape), {}

    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return self.reads.flatten(0, 1)[unit]

    def _activate_rows(
        self, rows: Float[Tensor, "T d"], unit: Int[Tensor, " k"] | None, limit: int | None
    ) -> Code:
        code = self._code(rows)
        if unit is None:
            return keep_largest(code, self.writes, limit)
        act = F.gelu(F.linear(rows, self.read(unit)))
        gate = named_gates(code, unit, self.spec.num_units)
        return Code(unit.expand(act.shape), gate, act)

    def rest(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return torch.zeros_like(x)

    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        return self.reads, self.writes

    def after_step(self) -> None:
        """Nothing changes between steps."""

    def _code(self, rows: Float[Tensor, "T d"], *, track: bool = False) -> Code:
        address, gate = self.router(rows, track=track)
        pool, pool_gate = merge_repeats(address.flatten(1), gate.flatten(1), self.config.pools)
        unit = self._strongest(rows, pool, pool_gate)
        act = F.gelu(sparse_read(rows, unit, self.reads.flatten(0, 1)))
        # Rows of ``pool`` are sorted and padded at gate 0 behind the merged entry, which the
        # search therefore finds. A unit selected twice can only be such padding.
        place = torch.searchsorted(pool, torch.div(unit, self.config.slots, rounding_mode="floor"))
        gate = pool_gate.gather(1, place).where(first_of_each(unit) & (act != 0), 0.0)
        return Code(unit, gate, act)

    def _strongest(
        self, rows: Float[Tensor, "T d"], pool: Int[Tensor, "T b"], gate: Float[Tensor, "T b"]
    ) -> Int[Tensor, "T k"]:
        """The selected units of each row in ascending order."""
        no_bias = self.reads.new_zeros(self.reads.shape[:2])
        unit = pool_select(rows, pool, gate, self.reads, no_bias, self.config.k, score="gelu_abs")
        return torch.sort(unit, dim=1).values
