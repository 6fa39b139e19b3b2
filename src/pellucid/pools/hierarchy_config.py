"""What can be chosen about hierarchical pools, what is refused, and what each choice costs.

Cost per token, c the units that are kept: 2·d·(P + e·n + c) FLOPs forward, 6·P·d + 2·e·n·d + 10·c·d
in training, since only kept units carry gradient. Under topk c = k; a threshold keeps as many as
pass it, for which min(e·n, 8·k) places are worked through. To carry gradient the kept units are
read a second time, 2·c·d more in either pass, which the published formula and these leave out.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from torch import nn

from pellucid.core.config import check_above_zero, check_at_least_zero, check_positive
from pellucid.core.cost import Cost
from pellucid.core.errors import ConfigError
from pellucid.pools.pool import Pool

# Threshold selections keep at most this many times k candidates per token, the strongest ones.
CAPACITY = 8

C = TypeVar("C", bound="HierarchySettings")


@dataclass(frozen=True, kw_only=True)
class HierarchySettings(ABC):
    """The fields of ``HierarchyConfig``, which says what they mean and builds the module."""

    kind: Literal["pools"] = "pools"
    pools: int = 64
    slots: int = 128
    open_pools: int = 8
    k: int = 12
    gate: Literal["renorm", "p", "softmax_of_p", "ones"] = "renorm"
    select: Literal["topk", "batchtopk", "jumprelu"] = "topk"
    balance: Literal["loss", "bias", "none"] = "loss"
    balance_weight: float = 0.01
    bias_rate: float = 0.001
    router_z_weight: float = 0.001
    shared: Literal["none", "sink_unit", "tied_mlp"] = "none"
    pool_scaling: bool = False
    frozen_router: bool = False
    unit_balance: float = 0.0
    unit_balance_steps: int = 1000
    revive: float = 0.0
    revive_after: int = 200
    jump_width: float = 0.05
    jump_threshold: float | None = None
    l0_weight: float = 0.1

    def __post_init__(self) -> None:
        check_positive(
            self, "pools", "slots", "open_pools", "k", "unit_balance_steps", "revive_after"
        )
        check_above_zero(self, "jump_width")
        check_at_least_zero(
            self,
            "balance_weight",
            "bias_rate",
            "router_z_weight",
            "unit_balance",
            "revive",
            "l0_weight",
        )
        if self.open_pools > self.pools:
            raise ConfigError(
                f"open_pools: expected at most pools = {self.pools}, found {self.open_pools}; "
                "open fewer pools"
            )
        readable = self.open_pools * self.slots
        if self.k > readable:
            raise ConfigError(
                f"k: expected at most open_pools · slots = {readable}, found {self.k}; "
                "lower k or open more pools"
            )
        if self.unit_balance and self.select != "topk":
            raise ConfigError(
                f"unit_balance: acts with select topk only, found {self.select}; set it to 0"
            )
        if self.jump_threshold is not None:
            check_above_zero(self, "jump_threshold")
        if self.open_pools == 1 < self.pools and self.gate in ("renorm", "softmax_of_p"):
            raise ConfigError(
                f"gate: {self.gate} is identically 1 with one open pool, so the router would get "
                "no gradient from the task; use gate p, or open more pools"
            )

    @classmethod
    def tiny(cls: type[C]) -> C:
        return cls(pools=5, slots=7, open_pools=3, k=4)

    @property
    def free_size(self) -> int:
        return self.slots

    def with_size(self: C, size: int) -> C:
        return replace(self, slots=size)

    @property
    def candidates(self) -> int:
        """The entries of a token's code: k, or, where a threshold decides, as many as may pass."""
        if self.select == "topk":
            return self.k
        return min(self.open_pools * self.slots, CAPACITY * self.k)

    @abstractmethod
    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> Pool: ...

    def cost(self, width: int) -> Cost:
        opened, units = self.open_pools * self.slots, self.pools * self.slots
        router = self.pools * (width + 1)
        sink = 2 * width + 1 if self.shared == "sink_unit" else 0
        scales = self.pools if self.pool_scaling else 0
        thresholds = units if self.select == "jumprelu" else 0
        beside = 4 * width if sink else 0
        return Cost(
            total=router + units * (2 * width + 1) + width + sink + scales + thresholds,
            active=router
            + opened * (width + 1)
            + self.k * width
            + width
            + sink
            + scales
            + (opened if thresholds else 0),
            forward=2 * width * (self.pools + opened + self.candidates) + beside,
            training=width * (6 * self.pools + 2 * opened + 10 * self.candidates) + 3 * beside,
        )
