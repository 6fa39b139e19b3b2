"""What a language model loses when a site is replaced by a dictionary's reconstruction.

    CE recovered = (CE_zero − CE_splice) / (CE_zero − CE_clean)

Each loss is the mean over the same held-out targets: the model as it is, the site replaced by the
reconstruction, by zeros and by the mean of what was written there, and the reconstruction with its
error added back, which must give the clean loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.core.host import Edit, Host, edit_units
from pellucid.core.unit import UnitPool
from pellucid.data.activations import HeldOut
from pellucid.data.packing import IGNORED
from pellucid.stats.reconstruction import ce_recovered


@dataclass(frozen=True, slots=True, kw_only=True)
class SpliceLosses:
    """Mean cross-entropies in nats over ``tokens`` targets."""

    clean: float
    splice: float
    with_error: float
    zero: float
    mean: float
    tokens: int

    @property
    def recovered(self) -> float | None:
        """CE recovered; ``None`` where zeroing the site costs next to nothing."""
        return ce_recovered(self.zero, self.splice, self.clean)

    def figures(self) -> dict[str, float]:
        """By name, for a metrics line."""
        found = {
            "ce_clean": self.clean,
            "ce_splice": self.splice,
            "ce_with_error": self.with_error,
            "ce_zero": self.zero,
            "ce_mean": self.mean,
        }
        return found if self.recovered is None else {**found, "ce_recovered": self.recovered}


@torch.no_grad()
def splice_losses(
    host: Host,
    pool: UnitPool,
    text: HeldOut,
    *,
    batch: int = 8,
    windows: int | None = None,
    device: torch.device | str = "cpu",
) -> SpliceLosses:
    """Run the held-out windows (the first ``windows`` of them) once for each replacement."""
    spec = pool.spec
    stop = len(text.tokens) if windows is None else windows
    tokens = text.tokens[:stop].split(batch)
    targets = text.targets[:stop].split(batch)
    total = torch.zeros(spec.d_out, dtype=torch.float64)
    positions = 0
    for part in tokens:
        kept = host.run(part.to(device), keep=(spec.writes,)).kept[spec.writes]
        total += kept.flatten(0, 1).double().sum(0).cpu()
        positions += part.numel()
    mean = (total / positions).to(device)

    def replaced(apply: Callable[[Tensor, Tensor], Tensor]) -> float:
        edit = Edit(reads=spec.reads, writes=spec.writes, apply=apply)
        return _loss(host, tokens, targets, edit, device)

    def reconstruct(x: Tensor, y: Tensor) -> Tensor:
        return (pool.rest(x) + pool.decode(pool.activate(x))).to(y.dtype)

    return SpliceLosses(
        clean=replaced(lambda _, y: y),
        splice=replaced(reconstruct),
        with_error=_loss(host, tokens, targets, edit_units(pool, lambda code: code), device),
        zero=replaced(lambda _, y: torch.zeros_like(y)),
        mean=replaced(lambda _, y: mean.to(y.dtype).expand_as(y)),
        tokens=int((text.targets[:stop] != IGNORED).sum()),
    )


def _loss(
    host: Host,
    tokens: tuple[Tensor, ...],
    targets: tuple[Tensor, ...],
    edit: Edit,
    device: torch.device | str,
) -> float:
    nats, scored = 0.0, 0
    for inputs, follow in zip(tokens, targets):
        logits = host.run(inputs.to(device), edits=(edit,)).logits
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(),
            follow.flatten().to(device),
            ignore_index=IGNORED,
            reduction="sum",
        )
        nats += loss.item()
        scored += int((follow != IGNORED).sum())
    return nats / scored
