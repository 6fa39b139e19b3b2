"""Whether a sparse dictionary could be identifiable: flatness, expansion, and two ratios.

    β = max_j √s·max|D_j| / ‖D_j‖                       1 if every atom is flat
    ε_q = max over |S| = q of 1 − |N(S)| / (s·q)        0 if no two supports meet
    R_id = 2β²·ε_2k,   R_OMP = β²·ε_{k+1}·(2k + 1)

Below 1 the paper ("Expander", arXiv 2607.01799) claims identifiability and exact recovery by
orthogonal matching pursuit. ε_q is a maximum over all sets of q latents, out of reach, so it is
bounded from below by search, from random sets, greedy collisions and the latents that overlap most
with one. A ratio of 1 or more is therefore no certificate for sure; one below 1 only suggests it.
Cost O(restarts·q·n·s).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.ops.expander.scan import expander_topk

SEEDS = 32  # neighbourhoods looked at per restart


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatness:
    """√s·max|D_j| / ‖D_j‖ over the atoms: 1 is flat, √s is a single place."""

    largest: float
    median: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """Flatness, expansion at k + 1 and 2k, and the ratios that follow.

    The expansions and ratios are ``None`` where n ≤ 2k: every such set is the whole dictionary.
    """

    k: int
    flatness: Flatness
    epsilon_k1: float | None = None
    epsilon_2k: float | None = None
    counting_k1: float | None = None
    counting_2k: float | None = None
    r_id: float | None = None
    r_omp: float | None = None


def diagnose(
    values: Float[Tensor, "n s"],
    index: Int[Tensor, "n s"],
    width: int,
    k: int,
    *,
    seed: int = 0,
    restarts: int = 8,
) -> Diagnostics:
    """All figures of a dictionary used at k active latents; equal seeds give equal figures."""
    flat = flatness(values)
    latents, nonzeros = index.shape
    if latents <= 2 * k:
        return Diagnostics(k=k, flatness=flat)
    at_k1, at_2k = expansion(index, width, (k + 1, 2 * k), seed=seed, restarts=restarts)
    square = flat.largest**2
    return Diagnostics(
        k=k,
        flatness=flat,
        epsilon_k1=at_k1,
        epsilon_2k=at_2k,
        counting_k1=counting_bound(k + 1, nonzeros, width),
        counting_2k=counting_bound(2 * k, nonzeros, width),
        r_id=2 * square * at_2k,
        r_omp=square * at_k1 * (2 * k + 1),
    )


@torch.no_grad()
def flatness(values: Float[Tensor, "n s"]) -> Flatness:
    """How far the largest entry of an atom stands above its root mean square; 0 for no atom."""
    norm = values.float().norm(dim=1).clamp_min(1e-8)
    beta = values.float().abs().amax(1) / norm * values.shape[1] ** 0.5
    quantiles = torch.tensor([0.5, 0.95])
    rank = (quantiles * (beta.numel() - 1)).round().long()
    median, p95 = beta.sort().values[rank].tolist()
    return Flatness(largest=float(beta.max()), median=median, p95=p95)


def counting_bound(size: int, nonzeros: int, width: int) -> float:
    """ε_q ≥ 1 − d/(s·q), since q supports cannot cover more than the width."""
    return max(0.0, 1 - width / (nonzeros * size))


@torch.no_grad()
def expansion(
    index: Int[Tensor, "n s"],
    width: int,
    sizes: Sequence[int],
    *,
    seed: int = 0,
    restarts: int = 8,
) -> tuple[float, ...]:
    """The largest 1 − |N(S)|/(s·q) found for each q in ``sizes``, all at most n.

    Every search orders latents so that each prefix is a candidate set; one run serves all sizes.
    """
    largest = max(sizes)
    assert largest <= index.shape[0]
    generator = torch.Generator().manual_seed(seed)
    random = torch.stack(
        [torch.randperm(index.shape[0], generator=generator)[:largest] for _ in range(restarts)]
    )
    first = torch.randperm(index.shape[0], generator=generator)[: SEEDS * restarts].unsqueeze(1)
    near = _neighbours(index, width, first, largest)
    crowded = _prefix_coverage(near, index, width)[:, -1].argsort(stable=True)[:restarts]
    starts = torch.cat((first[:restarts], first[crowded]))
    greedy = _collisions(index, width, starts, largest)
    covered = _prefix_coverage(torch.cat((random, near, greedy)), index, width)
    return tuple(1 - int(covered[:, q - 1].min()) / (index.shape[1] * q) for q in sizes)


def _collisions(index: Tensor, width: int, first: Tensor, size: int) -> Tensor:
    """From one latent on, always the latent that adds the fewest new rows."""
    order = first
    covered = torch.zeros(first.shape[0], width)
    ones = torch.ones(index.shape)
    while order.shape[1] < size:
        covered.scatter_(1, index[order[:, -1]].long(), 1.0)
        overlap = expander_topk(covered, ones, index, None, 1, "signed", exclude=order)
        order = torch.cat((order, overlap), 1)
    return order


def _neighbours(index: Tensor, width: int, first: Tensor, size: int) -> Tensor:
    """One latent and those that share most rows with it."""
    own = torch.zeros(first.shape[0], width).scatter_(1, index[first[:, 0]].long(), 1.0)
    ones = torch.ones(index.shape)
    near = expander_topk(own, ones, index, None, size - 1, "signed", exclude=first)
    return torch.cat((first, near), 1)


def _prefix_coverage(order: Tensor, index: Tensor, width: int) -> Tensor:
    """|N(the first q of an order)| for every q: a row counts from the first latent that has it."""
    sets, size = order.shape
    rows = index[order].long().view(sets, -1)
    position = torch.arange(size).repeat_interleave(index.shape[1]).expand(sets, -1)
    arrival = torch.full((sets, width), size).scatter_reduce(1, rows, position, "amin")
    new = torch.zeros(sets, size + 1, dtype=torch.long)
    return new.scatter_add_(1, arrival, torch.ones_like(arrival))[:, :size].cumsum(1)
