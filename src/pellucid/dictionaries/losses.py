"""Loss parts of a dictionary that no gate owns: reconstruction, prefixes, dead latents.

    reconstruction   mean ‖y − ŷ‖² / V
    prefixes         (1/G) Σ_g mean ‖y − base − Σ_{j ≤ m_g} f_j D_j‖² / V, in its place
    auxk             α · ‖e − ê‖² / ‖e − ē‖²,  e the detached error, ê what the strongest dead
                     latents of each row write, without any bias

Sources: Gao et al., arXiv 2406.04093 (auxk); Bussmann et al., "Learning Multi-Level Features with
Matryoshka Sparse Autoencoders", arXiv 2503.17547 (prefixes).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.dictionaries.config import CoderConfig
from pellucid.dictionaries.gates import TopKConfig
from pellucid.dictionaries.latents import Latents, Pass
from pellucid.dictionaries.router import ExpertReads, Routed


def reconstruction(
    seen: Pass, written: Float[Tensor, "B d_out"], prefixes: tuple[float, ...]
) -> dict[str, Float[Tensor, ""]]:
    """The squared error, or its mean over prefixes of the latents."""
    if not prefixes:
        return {"reconstruction": seen.error(written)}
    num = seen.writes.num
    errors = [
        seen.error(_prefix(seen.latents, max(1, round(num * p))).decode(seen.writes))
        for p in prefixes
    ]
    return {"reconstruction": torch.stack(errors).mean()}


def auxiliary(
    seen: Pass,
    written: Float[Tensor, "B d_out"],
    config: CoderConfig,
    dead: Int[Tensor, " m"],
    *,
    z: Float[Tensor, "B d_in"],
    bias: Tensor | None,
    experts: ExpertReads | None,
    routed: Routed | None,
) -> dict[str, Float[Tensor, ""]]:
    """Dead latents reconstruct the error; with a router only those in a row's active experts.

    ``z`` must not carry the decoder bias's gradient.
    """
    error = (seen.target - seen.base - written).detach()
    spread = (error - error.mean(0)).square().sum()
    if dead.numel() == 0 or spread == 0:
        return {"auxk": z.new_zeros(())}
    half = max(1, seen.target.shape[1] // 2)
    read = seen.reads.gather(dead) if experts is None else experts.gather(dead)
    pre = F.linear(z, read, None if bias is None else bias[dead])
    if experts is not None and routed is not None:
        active = (experts.of(dead) == routed.expert.unsqueeze(-1)).any(1)
        pre = torch.where(active, pre, 0.0)
    sign = config.gate.sign if isinstance(config.gate, TopKConfig) else "relu"
    strength = F.relu(pre) if sign == "relu" else pre
    rank = strength.abs() if sign == "abs" else strength
    top = rank.topk(min(half, dead.numel()), dim=-1).indices
    value, unit = strength.gather(1, top), dead[top]
    if routed is not None and seen.latents.unit is not None:
        # Padding must not point into a closed expert, which is never read.
        unit = torch.where(value == 0, seen.latents.unit[:, :1], unit)
    guess = seen.writes.decode(unit, value)
    weight = config.auxk * (min(1.0, dead.numel() / half) if config.auxk_ramp else 1.0)
    return {"auxk": weight * (error - guess).square().sum() / spread}


def _prefix(latents: Latents, stop: int) -> Latents:
    """The same latents with those from ``stop`` on silenced."""
    if latents.unit is None:
        inside = torch.arange(latents.value.shape[1], device=latents.value.device) < stop
    else:
        inside = latents.unit < stop
    value = latents.value * inside
    return Latents(unit=latents.unit, gate=latents.gate * inside, act=latents.act, value=value)
