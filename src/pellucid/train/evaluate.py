"""Bits per byte on held-out documents, pooled and per domain."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.data.packing import IGNORED, Batch, Split
from pellucid.stats.bits import bits_per_byte, bits_per_byte_by_domain


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Bits per byte overall and by domain, with the tokens and bytes that were scored."""

    bits_per_byte: float
    by_domain: dict[str, float]
    tokens: int
    bytes: int


@torch.no_grad()
def evaluate(
    forward: Callable[[Tensor, Tensor | None], Tensor],
    batches: Iterable[Batch],
    split: Split,
    domains: Sequence[str],
    *,
    mask_documents: bool = False,
    device: str = "cpu",
) -> Evaluation:
    """Score every target of ``batches`` (whole documents) with a model in evaluation mode."""
    nats = torch.zeros(split.num_documents, dtype=torch.float64)
    seen = torch.zeros(split.num_documents, dtype=torch.bool)
    tokens = 0
    for batch in batches:
        documents = batch.document if mask_documents else None
        logits = forward(
            batch.tokens.to(device), None if documents is None else documents.to(device)
        )
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(),
            batch.targets.flatten().to(device),
            ignore_index=IGNORED,
            reduction="none",
        ).cpu()
        scored = batch.targets.flatten() != IGNORED
        document = batch.document.flatten()[scored]
        nats.index_add_(0, document, loss[scored].double())
        seen[document] = True
        tokens += int(scored.sum())
    count = torch.as_tensor(split.num_bytes).long() * seen
    by_domain = bits_per_byte_by_domain(
        nats[seen], count[seen], torch.as_tensor(split.domain).long()[seen], domains=len(domains)
    )
    return Evaluation(
        bits_per_byte=bits_per_byte(float(nats.sum()), int(count.sum())),
        by_domain={
            name: float(value) for name, value in zip(domains, by_domain) if not value.isnan()
        },
        tokens=tokens,
        bytes=int(count.sum()),
    )
