"""What a dictionary is worth on rows it was not fitted to.

    FVU     Σ‖y − ŷ‖² / Σ‖y − ȳ‖² over all held-out rows, ȳ per coordinate
    L0      values other than 0 per row: mean, 5th and 95th percentile
    dense   share of latents that fire on more than 1 % and 10 % of the rows
    dead    share that fires on none of them

Redundancy compares write directions of latents that fired, beside random directions. Only
``UnitPool`` members are used, so native pools and imported dictionaries are scored alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.core.unit import UnitPool
from pellucid.data.activations import Rows
from pellucid.stats.reconstruction import FVU
from pellucid.stats.redundancy import random_redundancy, redundancy

DENSE = (0.01, 0.1)
TWINS = 4096  # live latents whose nearest twin is looked for, at most
COMPARED = (
    1 << 16
)  # live latents among which it is looked for, at most: their rows are held at once
CHUNK = 1024  # rows whose codes are held at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutFigures:
    """Figures over ``rows`` held-out rows, and how often each latent fired on them."""

    rows: int
    fvu: float
    l0: float
    l0_low: float
    l0_high: float
    fires: Int[Tensor, " n"]

    @property
    def dead(self) -> float:
        """Share of latents that never fired."""
        return (self.fires == 0).double().mean().item()

    def dense(self, share: float) -> float:
        """Share of latents that fire on more than ``share`` of the rows."""
        return (self.fires > share * self.rows).double().mean().item()

    def figures(self) -> dict[str, float]:
        """By name, for a metrics line."""
        dense = {f"dense_{round(100 * share)}": self.dense(share) for share in DENSE}
        return {
            "fvu": self.fvu,
            "l0": self.l0,
            "l0_p5": self.l0_low,
            "l0_p95": self.l0_high,
            "dead": self.dead,
            **dense,
        }


@torch.no_grad()
def held_out_figures(
    pool: UnitPool, batches: Iterable[Rows], device: torch.device | str = "cpu"
) -> HeldOutFigures:
    """One pass over held-out rows with the inference code."""
    spec, error = pool.spec, FVU()
    fires = torch.zeros(spec.num_units, dtype=torch.long)
    active: list[Tensor] = []
    for batch in batches:
        for x, y in zip(
            batch.x[spec.reads].to(device).split(CHUNK),
            batch.x[spec.writes].to(device).split(CHUNK),
        ):
            code = pool.activate(x)
            error.update(y, pool.rest(x) + pool.decode(code))
            on = code.value != 0
            fires += torch.bincount(code.unit[on], minlength=spec.num_units).cpu()
            active.append(on.sum(-1).cpu())
    count = torch.cat(active).double()
    low, high = torch.quantile(count, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return HeldOutFigures(
        rows=len(count),
        fvu=error.value,
        l0=count.mean().item(),
        l0_low=low,
        l0_high=high,
        fires=fires,
    )


@torch.no_grad()
def redundancy_figures(
    pool: UnitPool, fires: Int[Tensor, " n"], *, signed: bool, seed: int = 0
) -> dict[str, float]:
    """Near twins among the write directions of latents that fired, and among as many random ones.

    With an ``expert`` axis also within and across experts. Of more than ``COMPARED`` latents a
    sample stands for all, in which twins are rarer.
    """
    spec = pool.spec
    live = (fires > 0).nonzero().squeeze(1)
    if len(live) > COMPARED:
        order = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))
        live = live[order[:COMPARED]].sort().values
    name, experts = spec.axes[0]
    group = live // (spec.num_units // experts) if name == "expert" else None
    rows = torch.cat(
        [pool.write(part).float().cpu() for part in live.split(CHUNK)]
        or [torch.zeros(0, spec.d_out)]
    )
    found = redundancy(rows, signed=signed, group=group, limit=TWINS, seed=seed).figures()
    chance = random_redundancy(
        len(live), spec.d_out, signed=signed, group=group, limit=TWINS, seed=seed
    )
    return found | {f"random_{key}": value for key, value in chance.figures().items()}
