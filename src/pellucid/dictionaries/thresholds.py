"""Gates whose thresholds are learned: JumpReLU and Gated.

    JumpReLU   f = π · [π > θ_j],  θ ≥ 0 in float32, straight-through gradients (``ops/select``)
               l0                λ · mean L0
               quadratic_batch   λ · (mean L0 / L0* − 1)²
               quadratic_token   λ · mean (2 / L0*) (L0 − L0*)²
               tanh              λ · Σ tanh(4 f_j ‖D_j‖) + 3e-6 · Σ relu(θ_j − π_j) ‖D_j‖
    Gated      π = W z;  f = [π + b_g > 0] · relu(exp(r) π + b_m)
               λ ‖relu(π + b_g)‖₁ + ‖y − ŷ_g‖² / V,  ŷ_g decodes relu(π + b_g) by a detached decoder

The token form of the quadratic penalty also punishes the variance of L0 across rows. Sources:
Rajamanoharan et al., arXiv 2407.14435 (JumpReLU) and arXiv 2404.16014 (Gated); SAELens for the
token form; Anthropic, "Circuits Updates, January 2025" (tanh).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.config import check_above_zero, check_at_least_zero
from pellucid.core.errors import ConfigError
from pellucid.dictionaries.gates import Gate, all_pre, check_penalty, some_pre, warm
from pellucid.dictionaries.latents import Latents, Pass
from pellucid.ops.rows import AtomRows
from pellucid.ops.select import jump_relu, step

PRE_ACT = 3e-6  # weight of the term that pulls silent latents towards their thresholds
TANH_SCALE = 4.0
LISTED = 8  # a row's latents are listed where they are no more than one in so many


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig:
    """``penalty`` at ``weight`` (λ); ``l0`` is the target L0* of the quadratic forms.

    ``bandwidth`` is ε; ``threshold`` the first θ. ``ste_to_input`` lets the encoder learn of the
    step too.
    """

    kind: Literal["jumprelu"] = "jumprelu"
    penalty: Literal["l0", "quadratic_batch", "quadratic_token", "tanh"] = "quadratic_batch"
    weight: float = 1.0
    l0: float = 32.0
    bandwidth: float = 0.05
    threshold: float = 0.01
    ste_to_input: bool = False
    warmup: float = 0.2

    def __post_init__(self) -> None:
        check_penalty("weight", self.weight, self.warmup)
        check_above_zero(self, "l0", "bandwidth")
        check_at_least_zero(self, "threshold")


@dataclass(frozen=True, kw_only=True)
class GatedConfig:
    """``l1`` is λ."""

    kind: Literal["gated"] = "gated"
    l1: float = 0.05
    warmup: float = 0.05

    def __post_init__(self) -> None:
        check_penalty("l1", self.l1, self.warmup)


class JumpReLUGate(Gate):
    """A threshold per latent."""

    def __init__(self, config: JumpReLUConfig, num: int) -> None:
        super().__init__(num)
        if config.penalty.startswith("quadratic") and config.l0 > num:
            raise ConfigError(
                f"gate.l0: expected at most latents = {num}, found {config.l0}; lower it"
            )
        self.config = config
        self.threshold = nn.Parameter(torch.full((num,), config.threshold))

    def forward(self, rows: AtomRows, z: Float[Tensor, "B d"], *, fit: bool) -> Latents:
        pre, threshold = all_pre(rows, z, self.bias), self.threshold
        unit = self._reached(pre) if fit and self.config.penalty != "tanh" else None
        if unit is not None:
            pre, threshold = some_pre(rows, z, self.bias, unit), self.threshold[unit]
        value = jump_relu(pre, threshold, self.config.bandwidth, to_input=self.config.ste_to_input)
        gate = (pre > threshold).to(pre.dtype)
        return Latents(unit=unit, gate=gate, act=pre, value=value, pre=pre)

    @torch.no_grad()
    def _reached(self, pre: Float[Tensor, "B n"]) -> Int[Tensor, "B K"] | None:
        """The latents within half a bandwidth below their thresholds or above them.

        No other latent has a value or a gradient. ``None`` where they are too many to list.
        """
        reached = pre > self.threshold - self.config.bandwidth / 2
        most = int(reached.sum(-1).max()) if reached.numel() else 0
        if most > pre.shape[-1] // LISTED:
            return None
        return reached.to(torch.uint8).topk(most, dim=-1).indices

    def parts(self, seen: Pass, share: float) -> Mapping[str, Float[Tensor, ""]]:
        config, pre, unit = self.config, seen.latents.pre, seen.latents.unit
        assert pre is not None
        weight = config.weight * warm(share, config.warmup)
        if config.penalty == "tanh":
            norm = seen.writes.norms()
            tanh = torch.tanh(TANH_SCALE * seen.latents.value * norm).sum(-1).mean()
            below = (F.relu(self.threshold - pre) * norm).sum(-1).mean()
            return {"sparsity": weight * tanh, "pre_act": PRE_ACT * below}
        threshold = self.threshold if unit is None else self.threshold[unit]
        on = step(pre, threshold, config.bandwidth, to_input=config.ste_to_input)
        l0 = on.sum(-1)
        if config.penalty == "l0":
            return {"sparsity": weight * l0.mean()}
        if config.penalty == "quadratic_batch":
            return {"sparsity": weight * (l0.mean() / config.l0 - 1).square()}
        excess = (2 / config.l0) * (l0 - config.l0).square()
        return {"sparsity": weight * excess.mean()}

    @torch.no_grad()
    def after_step(self, step: int, share: float) -> None:
        self.threshold.clamp_(min=0)


class GatedGate(Gate):
    """A path that decides and a path that measures, on shared directions.

    ``bias`` is b_m, ``log_scale`` r and ``decision_bias`` b_g.
    """

    def __init__(self, config: GatedConfig, num: int) -> None:
        super().__init__(num)
        self.config = config
        self.log_scale = nn.Parameter(torch.zeros(num))
        self.decision_bias = nn.Parameter(torch.zeros(num))

    def forward(self, rows: AtomRows, z: Float[Tensor, "B d"], *, fit: bool) -> Latents:
        pre = rows.all(z)
        assert self.log_scale is not None
        assert self.bias is not None
        act = self.log_scale.exp() * pre + self.bias
        gate = ((pre + self.decision_bias > 0) & (act > 0)).to(pre.dtype)
        return Latents(unit=None, gate=gate, act=act, value=gate * act, pre=pre)

    def parts(self, seen: Pass, share: float) -> Mapping[str, Float[Tensor, ""]]:
        pre = seen.latents.pre
        assert pre is not None
        decided = F.relu(pre + self.decision_bias)
        weight = self.config.l1 * warm(share, self.config.warmup)
        writes = seen.writes.with_weights(seen.writes.weights.detach())
        residual = seen.target - seen.base.detach() - writes.combine(decided)
        return {
            "l1": weight * decided.sum(-1).mean(),
            "gate_reconstruction": residual.square().sum(-1).mean() / seen.variance,
        }

    def after_step(self, step: int, share: float) -> None:
        """Nothing changes."""
