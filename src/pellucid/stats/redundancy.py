"""How many directions have a near twin, beside random directions of the same number and width.

    share(τ) = share of live rows with max over other live rows of cos(D_i, D_j) > τ, strictly

For latents of either sign the cosine is taken absolutely, since D and −D are then one latent.
With groups (the experts of a router) the maximum is also taken among rows of the same group
(within) and of other groups (across). Cosines are computed tile by tile, so memory is
O(chunk² + n) and time O(n² · d), or O(limit · n · d) with a sample of rows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

THRESHOLDS = (0.7, 0.8, 0.9)
CHUNK = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Redundancy:
    """Shares of rows with a twin nearer than each threshold; ``rows`` is what they are shares of.

    ``within`` and ``across`` are ``None`` without groups. Without two rows every share is 0.
    """

    rows: int
    thresholds: tuple[float, ...]
    overall: tuple[float, ...]
    within: tuple[float, ...] | None
    across: tuple[float, ...] | None

    def figures(self) -> dict[str, float]:
        """The shares by name: ``redundancy_70``, ``redundancy_within_70``, ..."""
        parts = (("", self.overall), ("within_", self.within), ("across_", self.across))
        return {
            f"redundancy_{part}{round(100 * threshold)}": share
            for part, shares in parts
            if shares is not None
            for threshold, share in zip(self.thresholds, shares)
        }


@torch.no_grad()
def redundancy(
    rows: Float[Tensor, "n d"],
    *,
    signed: bool = False,
    live: Bool[Tensor, " n"] | None = None,
    group: Int[Tensor, " n"] | None = None,
    thresholds: tuple[float, ...] = THRESHOLDS,
    limit: int | None = None,
    seed: int = 0,
    chunk: int = CHUNK,
) -> Redundancy:
    """The shares over the rows in ``live`` (default all), compared with one another only.

    ``signed`` takes |cos|. ``group`` labels each row with its expert. With ``limit`` the shares are
    those of so many rows drawn with ``seed``, each compared with all. A zero row has no direction
    and no twin.
    """
    if live is not None:
        rows = rows[live]
        group = group[live] if group is not None else None
    precise = torch.promote_types(rows.dtype, torch.float32)
    units = F.normalize(rows.detach().to(precise), dim=1)
    asked = _sample(units.shape[0], limit, seed).to(units.device)
    label = None if group is None else group.to(units.device)
    overall, within, across = _nearest(units, asked, label, signed=signed, chunk=chunk)
    return Redundancy(
        rows=asked.shape[0],
        thresholds=thresholds,
        overall=_shares(overall, thresholds),
        within=_shares(within, thresholds) if group is not None else None,
        across=_shares(across, thresholds) if group is not None else None,
    )


def random_redundancy(
    n: int,
    d: int,
    *,
    signed: bool = False,
    group: Int[Tensor, " n"] | None = None,
    thresholds: tuple[float, ...] = THRESHOLDS,
    limit: int | None = None,
    seed: int = 0,
) -> Redundancy:
    """The same shares of ``n`` random directions in ``d`` dimensions: what chance leaves.

    ``n`` is the number of live rows, and ``group`` their labels, of the dictionary compared with.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator)
    return redundancy(
        rows, signed=signed, group=group, thresholds=thresholds, limit=limit, seed=seed
    )


def _sample(n: int, limit: int | None, seed: int) -> Tensor:
    if limit is None or limit >= n:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:limit].sort().values


def _nearest(
    units: Tensor, asked: Tensor, label: Tensor | None, *, signed: bool, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The largest cosine of each asked row to any other, to one of its group, to one of another.

    −inf where there is no such row.
    """
    index = torch.arange(units.shape[0], device=units.device)
    overall = units.new_full((asked.shape[0],), -torch.inf)
    within, across = overall.clone(), overall.clone()
    for start in range(0, asked.shape[0], chunk):
        mine = asked[start : start + chunk]
        here = slice(start, start + mine.shape[0])
        for other in index.split(chunk):
            cosine = units[mine] @ units[other].t()
            cosine = cosine.abs_() if signed else cosine
            cosine.masked_fill_(mine[:, None] == other, -torch.inf)
            overall[here] = torch.maximum(overall[here], cosine.amax(1))
            if label is None:
                continue
            same = label[mine][:, None] == label[other]
            for best, part in ((within, same), (across, ~same)):
                inside = torch.where(part, cosine, -torch.inf).amax(1)
                best[here] = torch.maximum(best[here], inside)
    return overall, within, across


def _shares(nearest: Tensor, thresholds: tuple[float, ...]) -> tuple[float, ...]:
    if nearest.shape[0] == 0:
        return (0.0,) * len(thresholds)
    return tuple((nearest > threshold).double().mean().item() for threshold in thresholds)
