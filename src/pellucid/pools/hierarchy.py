"""Hierarchical pools of tiny self-gated units: the flagship.

    p = softmax(W_r x + b_r) over P pools;  T = the e pools with the largest logits (+ β)
    g_i, i ∈ T:  renorm p_i / Σ_T p | p: p_i | softmax_of_p: exp(p_i) / Σ_T exp(p) | ones: 1
    a_j = û_j · x + b_j in open pools only;   s_j = g_pool(j) · relu(a_j)
    S = topk: the k largest positive s | batchtopk: the k · rows largest of the batch
      | jumprelu: s_j > θ_j
    y = c + shared(x) + Σ_{j∈S} s_j v_j;      û = u, or u + ω_pool (u − pool mean)

A unit fires where its own read direction says so: there is no router proxy for the unit itself.
Closed pools are never read, forward or backward. Cost per token: 2·d·(P + e·n + k) FLOPs forward,
6·P·d + 2·e·n·d + 10·k·d in training, since only the selected units carry gradient.

**Units that stop being selected** get no gradient. They come back in three ways: the balance of
pools keeps opening every pool; ``revive`` raises the read bias of a unit at every step from the
``revive_after``-th on which it was silent, until it speaks again and learns; and ``unit_balance``
adds a selection-only bias that rises while a unit is selected less than the mean and is annealed to
0 at ``unit_balance_steps``, so that the final rule is the read direction alone. The last ranks only
units whose own act is positive, so it cannot reach a unit that what it reads has drifted away from.

**Batch-top-k** lets later tokens change earlier codes while training, and only then; θ, a running
mean (0.999) of the smallest selected strength, replaces it in evaluation.

Pools of product-key experts: PEER, arXiv 2407.04153. Bias balancing: arXiv 2408.15664. JumpReLU:
arXiv 2407.14435.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.code import check_exclusive, keep_largest, named_gates
from pellucid.core.config import check_positive
from pellucid.core.cost import Cost
from pellucid.core.errors import ConfigError
from pellucid.core.unit import Code
from pellucid.ops.balance import balance_loss, bias_step, z_loss
from pellucid.ops.pool_mlp import pool_select
from pellucid.ops.select import batch_threshold, step
from pellucid.ops.sparse_decode import sparse_read
from pellucid.pools.pool import TablePool, calibrate, decode_rows, pool_spec
from pellucid.pools.shared import SinkUnit

# Threshold selections keep at most this many times k candidates per token, the strongest ones.
CAPACITY = 8
THRESHOLD_DECAY = 0.999
SMALL_THRESHOLD = 1e-3  # where jumprelu's θ stands until it is settled on Gaussian rows


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig:
    """``pools`` pools of ``slots`` units; a token opens ``open_pools`` and keeps about ``k`` units.

    ``balance`` acts by a loss (``balance_weight``), by a selection bias (``bias_rate``), or not at
    all; ``router_z_weight`` weighs the z-loss. ``shared`` adds a sink unit or the model's tied MLP.
    ``jump_threshold`` is the first θ of jumprelu, by default the one that k units pass.
    ``revive`` and ``unit_balance`` bring silent units back (see the module); 0 turns them off.
    """

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
        if self.jump_threshold is not None and self.jump_threshold <= 0:
            raise ConfigError(
                f"jump_threshold: expected a positive number, found {self.jump_threshold}"
            )
        if self.open_pools == 1 < self.pools and self.gate in ("renorm", "softmax_of_p"):
            raise ConfigError(
                f"gate: {self.gate} is identically 1 with one open pool, so the router would get "
                "no gradient from the task; use gate p, or open more pools"
            )

    @classmethod
    def tiny(cls) -> "HierarchyConfig":
        return cls(pools=5, slots=7, open_pools=3, k=4)

    @property
    def free_size(self) -> int:
        return self.slots

    def with_size(self, size: int) -> "HierarchyConfig":
        return replace(self, slots=size)

    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> "Hierarchy":
        pool = Hierarchy(self, name, width, tied)
        pool.eval()
        pool.settle_threshold()
        pool.train()
        calibrate(pool, output_rms)
        return pool

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
            forward=2 * width * (self.pools + opened + self.k) + beside,
            training=width * (6 * self.pools + 2 * opened + 10 * self.k) + 3 * beside,
        )


class Hierarchy(TablePool):
    """A router over pools, and inside the open pools a competition of self-gated units."""

    router_bias: Tensor
    unit_bias: Tensor
    threshold: Tensor
    steps: Tensor
    pool_load: Tensor
    unit_load: Tensor
    silent: Tensor

    def __init__(
        self, config: HierarchyConfig, name: str, width: int, tied: nn.Module | None
    ) -> None:
        super().__init__(pool_spec(name, width, ("pool", config.pools), ("slot", config.slots)))
        self.config = config
        shape = (config.pools, config.slots)
        self.router = nn.Parameter(torch.randn(config.pools, width) / width**0.5)
        self.router_offset = nn.Parameter(torch.zeros(config.pools))
        if config.frozen_router:
            self.router.requires_grad_(False)
            self.router_offset.requires_grad_(False)
        self.reads = nn.Parameter(torch.randn(*shape, width) / width**0.5)
        self.read_bias = nn.Parameter(torch.zeros(shape))
        self.writes = nn.Parameter(torch.randn(self.spec.num_units, width) / config.k**0.5)
        self.bias = nn.Parameter(torch.zeros(width))
        self.scaling = nn.Parameter(torch.zeros(config.pools)) if config.pool_scaling else None
        jumps = config.select == "jumprelu"
        start = torch.full(shape, config.jump_threshold or SMALL_THRESHOLD).log()
        self.log_threshold = nn.Parameter(start) if jumps else None
        self.sink = SinkUnit(self.spec) if config.shared == "sink_unit" else None
        # The tied MLP belongs to the model, which registers it once; a list hides it from here.
        self._tied = [tied] if config.shared == "tied_mlp" else []
        assert config.shared != "tied_mlp" or tied is not None
        self.register_buffer("router_bias", torch.zeros(config.pools))
        self.register_buffer("unit_bias", torch.zeros(shape))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("silent", torch.zeros(self.spec.num_units, dtype=torch.long))
        # Loads are zero again after every step, so a checkpoint needs none of them.
        self.register_buffer("pool_load", torch.zeros(config.pools), persistent=False)
        self.register_buffer("unit_load", torch.zeros(self.spec.num_units), persistent=False)

    def forward_with_parts(
        self, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"], Mapping[str, Float[Tensor, ""]]]:
        rows = x.reshape(-1, x.shape[-1])
        logits, pool = self._route(rows)
        gate = self._pool_gate(logits, pool)
        code, strength = self._compete(rows, pool, gate)
        y = decode_rows(code, self.writes).view(x.shape)
        if self.training:
            self._count(pool, code)
            return self.rest(x) + y, self._losses(logits, pool, code, strength)
        return self.rest(x) + y, {}

    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return self._reads().flatten(0, 1)[unit]

    def key(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        """The router direction of each unit's pool."""
        return self.router[torch.div(unit, self.config.slots, rounding_mode="floor")]

    def activate(
        self,
        x: Float[Tensor, "*batch d"],
        *,
        unit: Int[Tensor, " k"] | None = None,
        limit: int | None = None,
    ) -> Code:
        check_exclusive(unit, limit)
        rows = x.reshape(-1, x.shape[-1])
        logits, pool = self._route(rows)
        code, _ = self._compete(rows, pool, self._pool_gate(logits, pool))
        if unit is not None:
            gate = named_gates(code, unit, self.spec.num_units)
            act = F.relu(F.linear(rows, self.read(unit), self.read_bias.flatten()[unit]))
            code = Code(unit.expand(act.shape), gate.to(act.dtype), act)
        code = keep_largest(code, self.writes, limit)
        shape = (*x.shape[:-1], code.unit.shape[-1])
        return Code(code.unit.view(shape), code.gate.view(shape), code.act.view(shape))

    def rest(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        rest = self.bias.expand_as(x)
        for tied in self._tied:
            assert tied is not None
            rest = rest + tied(x)
        return rest if self.sink is None else rest + self.sink(x)

    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        thresholds = () if self.log_threshold is None else (self.log_threshold,)
        return self.reads, self.read_bias, self.writes, *thresholds

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the selection biases against the loads of the step, then forget the loads."""
        config = self.config
        self.steps += 1
        if config.balance == "bias":
            self.router_bias.copy_(bias_step(self.router_bias, self.pool_load, config.bias_rate))
        if config.unit_balance:
            left = max(0.0, 1 - int(self.steps) / config.unit_balance_steps)
            moved = bias_step(self.unit_bias.flatten(), self.unit_load, config.unit_balance)
            # A cap that falls to zero anneals whatever the updates have built up.
            cap = left * config.unit_balance * config.unit_balance_steps
            self.unit_bias.copy_(moved.clamp(-cap, cap).view_as(self.unit_bias))
        if config.revive:
            self.silent.copy_(torch.where(self.unit_load > 0, 0, self.silent + 1))
            gone = (self.silent >= config.revive_after).view_as(self.read_bias)
            self.read_bias.add_(config.revive * gone)
        self.pool_load.zero_()
        self.unit_load.zero_()

    @torch.no_grad()
    def settle_threshold(self, *, rows: int = 4096) -> None:
        """Start θ where k units of a Gaussian row pass it; weights on the meta device are left."""
        config = self.config
        given = config.select == "jumprelu" and config.jump_threshold is not None
        if config.select == "topk" or given or self.router.is_meta:
            return
        x = torch.randn(rows, self.spec.d_in, dtype=self.reads.dtype, device=self.reads.device)
        logits, pool = self._route(x)
        _, strength = self._compete(x, pool, self._pool_gate(logits, pool))
        start = batch_threshold(strength, config.k)
        if self.log_threshold is None:
            self.threshold.copy_(start)
        else:
            self.log_threshold.fill_(start.log())

    def _reads(self) -> Float[Tensor, "P n d"]:
        if self.scaling is None:
            return self.reads
        centred = self.reads - self.reads.mean(1, keepdim=True)
        return self.reads + self.scaling[:, None, None] * centred

    def _route(self, rows: Float[Tensor, "T d"]) -> tuple[Float[Tensor, "T P"], Int[Tensor, "T e"]]:
        """Router logits and the pools each row opens; β moves the choice, never the gates."""
        with torch.autocast(rows.device.type, enabled=False):
            logits = F.linear(rows.to(self.router.dtype), self.router, self.router_offset)
        chosen = (logits + self.router_bias).topk(self.config.open_pools, dim=-1, sorted=False)
        return logits, chosen.indices

    def _pool_gate(
        self, logits: Float[Tensor, "T P"], pool: Int[Tensor, "T e"]
    ) -> Float[Tensor, "T e"]:
        if self.config.gate == "renorm":
            return logits.gather(1, pool).softmax(-1)
        probability = logits.softmax(-1).gather(1, pool)
        if self.config.gate == "p":
            return probability
        if self.config.gate == "softmax_of_p":
            return probability.softmax(-1)
        return torch.ones_like(probability)

    def _compete(
        self, rows: Float[Tensor, "T d"], pool: Int[Tensor, "T e"], gate: Float[Tensor, "T e"]
    ) -> tuple[Code, Float[Tensor, "T c"]]:
        """The code of the units that win, and every candidate's strength (jumprelu's L0)."""
        config, reads = self.config, self._reads()
        table, bias = reads.flatten(0, 1), self.read_bias.flatten()
        capacity = config.k
        if config.select != "topk":
            capacity = min(config.open_pools * config.slots, CAPACITY * config.k)
        handicap = None
        if self.log_threshold is not None:
            handicap = self.log_threshold.exp()
        elif self.training and config.unit_balance:
            handicap = -self.unit_bias
        unit = pool_select(rows, pool, gate, reads, self.read_bias, capacity, threshold=handicap)
        act = F.relu(sparse_read(rows, unit, table) + bias[unit])
        # Scattered over all pools, so that each selected unit finds its own pool's gate.
        spread = gate.new_zeros(rows.shape[0], config.pools).scatter(1, pool, gate)
        pool_gate = spread.gather(1, torch.div(unit, config.slots, rounding_mode="floor"))
        strength = pool_gate * act
        kept = self._keep(strength, unit)
        return Code(unit, pool_gate * kept, act), strength

    def _keep(
        self, strength: Float[Tensor, "T c"], unit: Int[Tensor, "T c"]
    ) -> Float[Tensor, "T c"]:
        """1 for the candidates that are selected, 0 for the others."""
        if self.config.select == "topk":
            return (strength > 0).to(strength.dtype)
        if self.log_threshold is not None:
            threshold = self.log_threshold.flatten()[unit].exp()
            return step(strength, threshold, self.config.jump_width)
        threshold = self.threshold
        if self.training:
            threshold = batch_threshold(strength.detach(), self.config.k)
            # A plain mean at first, so that where θ was settled is soon forgotten.
            decay = min(THRESHOLD_DECAY, 1 - 1 / (int(self.steps) + 1))
            self.threshold.copy_(decay * self.threshold + (1 - decay) * threshold)
            return (strength >= threshold.clamp_min(1e-30)).to(strength.dtype)
        return (strength > threshold).to(strength.dtype)

    @torch.no_grad()
    def _count(self, pool: Int[Tensor, "T e"], code: Code) -> None:
        self.pool_load += torch.bincount(pool.reshape(-1), minlength=self.config.pools)
        if self.config.unit_balance or self.config.revive:
            on = code.unit[code.gate > 0]
            self.unit_load += torch.bincount(on, minlength=self.spec.num_units)

    def _losses(
        self,
        logits: Float[Tensor, "T P"],
        pool: Int[Tensor, "T e"],
        code: Code,
        strength: Float[Tensor, "T c"],
    ) -> dict[str, Float[Tensor, ""]]:
        config = self.config
        parts: dict[str, Tensor] = {}
        if not config.frozen_router:
            if config.balance == "loss":
                load = torch.bincount(pool.reshape(-1), minlength=config.pools)
                loss = balance_loss(logits.softmax(-1), load.to(logits.dtype))
                parts["balance"] = config.balance_weight * loss
            if config.router_z_weight:
                parts["router_z"] = config.router_z_weight * z_loss(logits)
        if self.log_threshold is not None:
            threshold = self.log_threshold.flatten()[code.unit].exp()
            l0 = step(strength, threshold, config.jump_width).sum(-1).mean()
            parts["l0"] = config.l0_weight * (l0 / config.k - 1).square()
        return parts
