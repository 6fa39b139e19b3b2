"""Hierarchical pools of tiny self-gated units: the flagship.

    p = softmax(W_r x + b_r) over P pools;  T = the e pools with the largest logits (+ β)
    g_i, i ∈ T:  renorm p_i / Σ_T p | p: p_i | softmax_of_p: exp(p_i) / Σ_T exp(p) | ones: 1
    a_j = û_j · x + b_j in open pools only;   s_j = g_pool(j) · relu(a_j)
    S = topk: the k largest positive s | batchtopk: the k · rows largest of the batch
      | jumprelu: s_j > θ_j
    y = c + shared(x) + Σ_{j∈S} s_j v_j;      û = u, or u + ω_pool (u − pool mean)

A unit fires where its own read direction says so: there is no router proxy for the unit itself.
Closed pools are never read, forward or backward. Cost per token under topk: 2·d·(P + e·n + k) FLOPs
forward, 6·P·d + 2·e·n·d + 10·k·d in training, since only the selected units carry gradient; they
are read a second time for it, which these formulas leave out (see ``hierarchy_config``).

**Units that stop being selected** get no gradient. They come back in three ways: the balance of
pools keeps opening every pool; ``revive`` raises the read bias of a unit at every step from the
``revive_after``-th on which its pool was open and it was silent, until it speaks again and learns;
and ``unit_balance`` adds a selection-only bias that rises while a unit is selected less than the
mean and is annealed to 0 at ``unit_balance_steps``, so that the final rule is the read direction
alone. The last ranks only units whose own act is positive, so it cannot reach a unit that what it
reads has drifted away from.

**Batch-top-k** lets later tokens change earlier codes while training, and only then; θ, a running
mean (0.999) of each step's smallest selected strength, replaces it in evaluation. The batches of
one step count as their mean.

Pools of product-key experts: PEER, arXiv 2407.04153. Bias balancing: arXiv 2408.15664. JumpReLU:
arXiv 2407.14435.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.code import keep_largest, named_gates
from pellucid.core.unit import Code
from pellucid.ops.balance import balance_loss, bias_step, z_loss
from pellucid.ops.pool_mlp import pool_select
from pellucid.ops.select import batch_threshold, step
from pellucid.ops.sparse_decode import sparse_read
from pellucid.pools.hierarchy_config import HierarchySettings
from pellucid.pools.pool import TablePool, calibrate, decode_rows, pool_spec
from pellucid.pools.shared import SinkUnit

THRESHOLD_DECAY = 0.999
SMALL_THRESHOLD = 1e-3  # where jumprelu's θ stands until it is settled on Gaussian rows


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig(HierarchySettings):
    """``pools`` pools of ``slots`` units; a token opens ``open_pools`` and keeps about ``k`` units.

    ``balance`` acts by a loss (``balance_weight``), by a selection bias (``bias_rate``), or not at
    all; ``router_z_weight`` weighs the z-loss. ``shared`` adds a sink unit or the model's tied MLP.
    ``jump_threshold`` is the first θ of jumprelu, by default the one that k units pass.
    ``revive`` and ``unit_balance`` bring silent units back (see the module); 0 turns them off.
    """

    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> "Hierarchy":
        pool = Hierarchy(self, name, width, tied)
        pool.eval()
        pool.settle_threshold()
        pool.train()
        calibrate(pool, output_rms)
        return pool


class Hierarchy(TablePool):
    """A router over pools, and inside the open pools a competition of self-gated units."""

    router_bias: Tensor
    unit_bias: Tensor
    threshold: Tensor
    steps: Tensor
    batches: Tensor
    step_threshold: Tensor
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
        # What a step has seen so far is forgotten after it, so a checkpoint needs none of it.
        self.register_buffer("batches", torch.zeros(()), persistent=False)
        self.register_buffer("step_threshold", torch.zeros(()), persistent=False)
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
            if self.config.select == "batchtopk":
                self._follow_threshold(strength.detach()[code.gate > 0])
            return self.rest(x) + y, self._losses(logits, pool, code, strength)
        return self.rest(x) + y, {}

    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return self._reads().flatten(0, 1)[unit]

    def key(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        """The router direction of each unit's pool."""
        return self.router[torch.div(unit, self.config.slots, rounding_mode="floor")]

    def _activate_rows(
        self, rows: Float[Tensor, "T d"], unit: Int[Tensor, " k"] | None, limit: int | None
    ) -> Code:
        logits, pool = self._route(rows)
        code, _ = self._compete(rows, pool, self._pool_gate(logits, pool))
        if unit is None:
            return keep_largest(code, self.writes, limit)
        act = F.relu(F.linear(rows, self.read(unit), self.read_bias.flatten()[unit]))
        gate = named_gates(code, unit, self.spec.num_units)
        return Code(unit.expand(act.shape), gate, act)

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
        """Move the biases by what the step has seen, then forget it."""
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
            # In a closed pool nothing speaks: that is the router's doing, not the unit's.
            opened = (self.pool_load > 0).repeat_interleave(config.slots)
            self.silent.copy_(torch.where(self.unit_load > 0, 0, self.silent + opened))
            gone = opened & (self.silent >= config.revive_after)
            self.read_bias.add_(config.revive * gone.view_as(self.read_bias))
        for seen in (self.batches, self.pool_load, self.unit_load):
            seen.zero_()

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
        """Router logits and the pools each row opens; β moves the choice, never the gates.

        Logits have at least float32's precision, whatever autocast says: in bf16 they tie.
        """
        with torch.autocast(rows.device.type, enabled=False):
            precise = torch.promote_types(self.router.dtype, torch.float32)
            router, offset = self.router.to(precise), self.router_offset.to(precise)
            logits = F.linear(rows.to(precise), router, offset)
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
        handicap = None
        if self.log_threshold is not None:
            handicap = self.log_threshold.exp()
        elif self.training and config.unit_balance:
            handicap = -self.unit_bias
        unit = pool_select(
            rows, pool, gate, reads, self.read_bias, config.candidates, threshold=handicap
        )
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
        if self.training:
            threshold = batch_threshold(strength.detach(), self.config.k)
            return (strength >= threshold.clamp_min(1e-30)).to(strength.dtype)
        return (strength > self.threshold).to(strength.dtype)

    @torch.no_grad()
    def _count(self, pool: Int[Tensor, "T e"], code: Code) -> None:
        self.pool_load += torch.bincount(pool.reshape(-1), minlength=self.config.pools)
        if self.config.unit_balance or self.config.revive:
            on = code.unit[code.gate > 0]
            self.unit_load += torch.bincount(on, minlength=self.spec.num_units)

    @torch.no_grad()
    def _follow_threshold(self, selected: Float[Tensor, " s"]) -> None:
        """Move θ towards the mean of the step's smallest selected strengths so far."""
        smallest = selected.min() if selected.numel() else selected.new_zeros(())
        # A plain mean over steps at first, so that where θ was settled is soon forgotten.
        share = max(1 - THRESHOLD_DECAY, 1 / (int(self.steps) + 1))
        before = torch.where(self.batches > 0, self.step_threshold, self.threshold)
        self.batches += 1
        moved = (smallest - before) / self.batches
        self.step_threshold.copy_(before + moved)
        self.threshold += share * moved

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
