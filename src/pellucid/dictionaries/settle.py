"""What a dictionary measures before its first step, and how it turns idle rows back.

    c = (d / mean ‖x‖²)^½      V = total variance of c'·y      b_dec = geometric median of a batch

A transcoder starts from the mean: b_dec = mean target, b_enc = −W · mean input, with writes of 0.
Re-aiming gives an idle latent the direction of a badly reconstructed row: one is drawn with
probability ∝ its squared error, and the latent's row becomes that residual. Sources: Gao et al.,
arXiv 2406.04093; the Expander autoencoder, arXiv 2607.01799.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.errors import DataError
from pellucid.dictionaries.coder import Coder
from pellucid.stats.reconstruction import geometric_median, total_variance

IDLE_FIRINGS = 5  # fewer since the last look make a latent idle
MOSTLY_IDLE = 0.8  # beyond this share something else is wrong, and re-aiming would hide it


@torch.no_grad()
def settle(coder: Coder, x: Float[Tensor, "B d_in"], y: Float[Tensor, "B d_out"]) -> None:
    """Measure scales, variance and centres on B rows of inputs and targets.

    Errors: a ``DataError`` where the rows do not vary, or are not finite.
    """
    for site, rows in ((coder.spec.reads, x), (coder.spec.writes, y)):
        _check(str(site), rows)
    config = coder.config
    if config.normalise:
        coder.in_scale.fill_(_scale(x))
        coder.out_scale.fill_(_scale(y))
    scaled, target = coder.in_scale * x, coder.out_scale * y
    if config.reduction == "variance":
        coder.variance.fill_(total_variance(target))
    if coder.is_sae:
        if config.center == "median":
            coder.bias.copy_(geometric_median(scaled[: config.batch]))
    else:
        coder.bias.copy_(target.mean(0))
        mean = scaled.mean(0, keepdim=True)
        if coder.gate.bias is not None and coder.gate.log_scale is None:
            assert coder.encoder is not None
            coder.gate.bias.copy_(-coder.encoder.rows().all(mean).squeeze(0))
    if coder.router is not None:
        coder.router.center.copy_(geometric_median(scaled[: config.batch]))


@torch.no_grad()
def reaim(
    coder: Coder, x: Float[Tensor, "B d_in"], y: Float[Tensor, "B d_out"], *, seed: int
) -> Int[Tensor, " m"]:
    """Turn idle latents towards badly reconstructed rows; returns them, for the optimiser.

    Their bias goes to 0 and all counts of firings start again.
    """
    idle = (coder.fires < IDLE_FIRINGS).nonzero().squeeze(1)
    coder.fires.zero_()
    if idle.numel() == 0 or idle.numel() > MOSTLY_IDLE * coder.config.latents:
        return idle[:0]
    residual = coder.out_scale * (y - coder(x))
    error = residual.double().square().sum(1)
    if not bool(error.any()):
        return idle[:0]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + int(coder.steps))
    drawn = torch.multinomial(error.cpu(), idle.numel(), replacement=True, generator=generator)
    drawn = drawn.to(x.device)
    coder.decoder.aim(idle, residual[drawn])
    if coder.encoder is not None:
        source = residual if coder.is_sae else coder.in_scale * x
        coder.encoder.aim(idle, source[drawn])
    if coder.gate.bias is not None:
        coder.gate.bias[idle] = 0.0
    coder.silent[idle] = 0
    return idle


def _scale(rows: Float[Tensor, "B d"]) -> float:
    return (rows.shape[1] / rows.double().square().sum(1).mean().item()) ** 0.5


def _check(site: str, rows: Float[Tensor, "B d"]) -> None:
    bad = int((~rows.isfinite()).any(1).sum())
    if bad:
        raise DataError(
            f"{site}: {bad} of {len(rows)} rows are not finite; drop them at the harvest, or look "
            "at the model"
        )
    if bool((rows == rows[:1]).all()):
        raise DataError(
            f"{site}: all {len(rows)} rows are equal, so there is nothing to fit; name a site that "
            "varies"
        )
