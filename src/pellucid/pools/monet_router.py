"""MONET's router: per head, one gate list over the n rows and one over the n columns.

    z = W x [2, H, n];   g = softmax of z over the kept entries of each list

    topk    keep the κ largest z (the default: exact, causal, a row depends on itself alone)
    row     keep ẑ ≥ min(Φ⁻¹(1 − κ/n), max ẑ),  ẑ = z standardised over its own n entries
    batch   the same with ẑ = BatchNorm(z) over tokens × n, as published: running statistics in
            evaluation, while in training each token sees the others, later ones included

Park et al., "Monet: Mixture of Monosemantic Experts for Transformers", arXiv 2412.04139. Losses:

    uniformity   −mean over lists and entries of log p̄,  p̄ = batch mean of softmax(z)
    ambiguity    mean over lists of 1 − max g

p̄ is taken over all n entries: over the kept ones, as printed, it is infinite as soon as no token
keeps some entry, and it would leave that entry without the gradient that brings it back. Cost per
token: 4·d·H·n FLOPs.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.ops.product_topk import stable_topk
from pellucid.pools.batch_norm import batch_norm

Rule = Literal["topk", "row", "batch"]

PUBLISHED_STD = 0.02
NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Routing:
    """Gates over rows and over columns, each summing to 1 per head, and the raw logits."""

    row: Float[Tensor, "T H n"]
    col: Float[Tensor, "T H n"]
    logits: Float[Tensor, "T 2 H n"]


class MonetRouter(nn.Module):
    """Two gate lists per head, about ``kept`` of ``side`` entries in each."""

    def __init__(self, *, width: int, side: int, kept: int, heads: int, rule: Rule) -> None:
        super().__init__()
        self.kept = kept
        self.rule = rule
        self.cut = NormalDist().inv_cdf(1 - kept / side) if kept < side else -math.inf
        std = PUBLISHED_STD if rule == "batch" else width**-0.5
        self.weight = nn.Parameter(torch.randn(2, heads, side, width) * std)
        self.norm = None
        if rule == "batch":
            self.norm = nn.BatchNorm1d(2 * heads, affine=False, eps=NORM_EPS)
            assert self.norm.running_var is not None
            # Exact for Gaussian rows of unit variance, so that evaluation is sound from step 0.
            variance = self.weight.detach().square().sum(-1).mean(-1)
            self.norm.running_var.copy_(variance.flatten())

    def forward(self, x: Float[Tensor, "T d"], *, track: bool = False) -> Routing:
        """Gates are computed in at least float32, whatever autocast says: in bf16 logits tie.

        In training ``track`` moves the running statistics that "batch" keeps.
        """
        with torch.autocast(x.device.type, enabled=False):
            precise = torch.promote_types(self.weight.dtype, torch.float32)
            logits = F.linear(x.to(precise), self.weight.flatten(0, 2).to(precise))
            logits = logits.unflatten(-1, self.weight.shape[:3])
            row, col = self._gates(logits, track).unbind(1)
        return Routing(row, col, logits)

    def _gates(self, logits: Float[Tensor, "T 2 H n"], track: bool) -> Float[Tensor, "T 2 H n"]:
        if self.rule == "topk":
            index = stable_topk(logits, self.kept)
            kept = logits.gather(-1, index).softmax(-1)
            return torch.zeros_like(logits).scatter(-1, index, kept)
        with torch.no_grad():
            score = self._standardise(logits, track)
            cut = score.amax(-1, keepdim=True).clamp_max(self.cut)
        return logits.masked_fill(score < cut, -math.inf).softmax(-1)

    def _standardise(
        self, logits: Float[Tensor, "T 2 H n"], track: bool
    ) -> Float[Tensor, "T 2 H n"]:
        if self.norm is not None:
            return batch_norm(self.norm, logits.flatten(1, 2), track=track).view_as(logits)
        return F.layer_norm(logits, logits.shape[-1:], eps=NORM_EPS)


def uniformity(routing: Routing) -> Float[Tensor, ""]:
    """−mean log of the batch's mean router probability: ln n at best, when all are used alike."""
    mean = routing.logits.softmax(-1).mean(0)
    return -mean.clamp_min(torch.finfo(mean.dtype).tiny).log().mean()


def ambiguity(routing: Routing) -> Float[Tensor, ""]:
    """Mean of 1 − the largest gate of a list: 0 when every head decides for one entry."""
    largest = torch.stack([routing.row.amax(-1), routing.col.amax(-1)])
    return 1 - largest.mean()
