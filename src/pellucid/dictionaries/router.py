"""Routing to experts: blocks of latents of which a row evaluates a few.

    p = softmax(W_r (x̃ − b_r) + c_r);   T = top-e(p);   g_i by ``gate``, for i ∈ T
    a_j = ŵ_j · z + b_j in the experts of T only, with ω = 0 for Switch:
    ŵ_j = (1 + ω_i) w_j − ω_i Λ w̄_i
    f = the k largest of g_i · relu(a_j);    balance = λ · E · Σ_i F_i P_i

Closed experts are never read, forward or backward. Per row: 2·d·(E + e·n/E) FLOPs to search, 2·d·k
for the survivors. Sources: Mudide et al., "Efficient Dictionary Learning with Switch Sparse
Autoencoders", arXiv 2410.08201; Scale SAE, arXiv 2511.05745.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.config import check_at_least_zero, check_positive
from pellucid.core.errors import ConfigError
from pellucid.dictionaries.gates import some_pre
from pellucid.dictionaries.latents import Latents
from pellucid.ops.balance import balance_loss
from pellucid.ops.rows import AtomRows
from pellucid.ops.scale import block_means, scale_rows
from pellucid.ops.sparse_decode import sparse_read


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """``experts`` equal blocks of latents, of which each row evaluates ``active``.

    ``lowpass`` turns scaling on: Λ the identity (``mean``) or learned; ``reads`` says how sparse
    rows take the low-pass term, at their own places or dense per expert. ``fraction`` counts the
    load F by the first choice or by all. ``sums`` multiplies the balance by the width and leaves
    it unscaled, for losses in raw sums.
    """

    experts: int = 16
    active: int = 1
    gate: Literal["p", "softmax_of_p", "renorm", "ones"] = "p"
    lowpass: Literal["none", "mean", "learned"] = "none"
    reads: Literal["masked", "dense"] = "masked"
    fraction: Literal["top1", "top_e"] = "top_e"
    balance: float = 0.1
    sums: bool = False
    bias: bool = True
    quirks: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "experts", "active")
        if self.active > self.experts:
            raise ConfigError(
                f"active: expected at most experts = {self.experts}, found {self.active}; lower it"
            )
        constant = self.active == 1 < self.experts and self.gate in ("renorm", "softmax_of_p")
        if constant and not self.quirks:
            raise ConfigError(
                f"gate: {self.gate} is identically 1 with one active expert, so the router "
                "would get no gradient from the reconstruction; use gate p, or activate more"
            )
        check_at_least_zero(self, "balance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Where B rows go: e experts each with their gates, and the router's probabilities."""

    expert: Int[Tensor, "B e"]
    gate: Float[Tensor, "B e"]
    probability: Float[Tensor, "B E"]


@dataclass(frozen=True, slots=True)
class ExpertReads:
    """Rows in equal blocks, and what is added to a block's rows: a dense vector, or nothing."""

    rows: AtomRows
    shift: Float[Tensor, "E d"] | None
    experts: int

    @property
    def size(self) -> int:
        return self.rows.num // self.experts

    def of(self, unit: Int[Tensor, "*u"]) -> Int[Tensor, "*u"]:
        """The expert of each latent."""
        return torch.div(unit, self.size, rounding_mode="floor")

    def gather(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        found = self.rows.gather(unit)
        return found if self.shift is None else found + self.shift[self.of(unit)]

    def some(
        self, z: Float[Tensor, "B d"], unit: Int[Tensor, "B K"], bias: Tensor | None
    ) -> Float[Tensor, "B K"]:
        pre = some_pre(self.rows, z, bias, unit)
        return pre if self.shift is None else pre + sparse_read(z, self.of(unit), self.shift)

    def one(self, z: Float[Tensor, "b d"], i: int, bias: Tensor | None) -> Float[Tensor, "b m"]:
        """Pre-activations of expert i."""
        first, last = i * self.size, (i + 1) * self.size
        pre = self.rows.block(first, last).all(z)
        if self.shift is not None:
            pre = pre + (z @ self.shift[i]).unsqueeze(1)
        return pre if bias is None else pre + bias[first:last]


class Router(nn.Module):
    """W_r, b_r, c_r, and with scaling ω and Λ."""

    def __init__(self, config: RouterConfig, num: int, width: int) -> None:
        super().__init__()
        if num % config.experts:
            raise ConfigError(
                f"router.experts: expected a divisor of latents = {num}, found {config.experts}; "
                "change one of them"
            )
        self.config = config
        self.weight = nn.Parameter(torch.randn(config.experts, width) / width**0.5)
        self.center = nn.Parameter(torch.zeros(width))
        self.offset = nn.Parameter(torch.zeros(config.experts)) if config.bias else None
        scales = config.lowpass != "none"
        self.omega = nn.Parameter(torch.zeros(config.experts)) if scales else None
        learned = config.lowpass == "learned"
        self.low_pass = nn.Parameter(torch.eye(width)) if learned else None

    def forward(self, x: Float[Tensor, "B d"]) -> Routed:
        logits = F.linear(x - self.center, self.weight, self.offset)
        probability = logits.softmax(-1)
        chosen, expert = probability.topk(self.config.active, dim=-1)
        match self.config.gate:
            case "p":
                gate = chosen
            case "renorm":
                gate = chosen / chosen.sum(-1, keepdim=True)
            case "softmax_of_p":
                gate = chosen.softmax(-1)
            case "ones":
                gate = torch.ones_like(chosen)
        return Routed(expert=expert, gate=gate, probability=probability)

    def reads(self, rows: AtomRows) -> ExpertReads:
        """The rows that experts read along, scaling included."""
        experts = self.config.experts
        if self.omega is None:
            return ExpertReads(rows, None, experts)
        matrix = self.low_pass
        if matrix is None:
            matrix = torch.eye(rows.width, dtype=self.omega.dtype, device=self.omega.device)
        if self.config.reads == "masked":
            return ExpertReads(scale_rows(rows, self.omega, matrix), None, experts)
        shift = -self.omega.unsqueeze(1) * (block_means(rows, experts) @ matrix.T)
        factor = (1 + self.omega).repeat_interleave(rows.num // experts)
        return ExpertReads(rows.scaled(factor), shift, experts)

    def keep(
        self,
        reads: ExpertReads,
        bias: Tensor | None,
        z: Float[Tensor, "B d"],
        routed: Routed,
        k: int,
    ) -> Latents:
        """The k largest g · relu(a) over the active experts of each row."""
        unit = _search(reads, bias, z, routed, k)
        act = F.relu(reads.some(z, unit, bias))
        # Scattered over all experts, so that each survivor finds its own expert's gate.
        spread = z.new_zeros(z.shape[0], reads.experts).scatter(1, routed.expert, routed.gate)
        gate = spread.gather(1, reads.of(unit)) * (act > 0)
        return Latents(unit=unit, gate=gate, act=act, value=gate * act)

    def parts(self, routed: Routed) -> Mapping[str, Float[Tensor, ""]]:
        """The weighted balance loss, λ at perfect balance."""
        config = self.config
        counted = routed.expert[:, :1] if config.fraction == "top1" else routed.expert
        load = torch.bincount(counted.reshape(-1), minlength=config.experts)
        weight = config.balance * (self.center.shape[0] if config.sums else 1)
        load = load.to(routed.probability.dtype)
        return {"balance": weight * balance_loss(routed.probability, load)}


@torch.no_grad()
def _search(
    reads: ExpertReads, bias: Tensor | None, z: Float[Tensor, "B d"], routed: Routed, k: int
) -> Int[Tensor, "B k"]:
    active = routed.expert.shape[1]
    strength = z.new_zeros(z.shape[0], active, reads.size)
    for i in range(reads.experts):
        row, slot = (routed.expert == i).nonzero(as_tuple=True)
        if row.numel():
            found = F.relu(reads.one(z[row], i, bias))
            strength[row, slot] = found * routed.gate[row, slot].unsqueeze(1)
    top = strength.flatten(1).topk(min(k, active * reads.size), dim=-1).indices
    expert = routed.expert.gather(1, torch.div(top, reads.size, rounding_mode="floor"))
    return expert * reads.size + top % reads.size
