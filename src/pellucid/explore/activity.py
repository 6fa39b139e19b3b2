"""How the pools of a model behave on held-out text: one pass, one summary per pool.

A unit *fires* where its value gate · act is not 0. Pools without selection fire everywhere, and
figures made of firings say nothing about them.

What a unit does in a document must not come from the one before it, which packed rows put into the
same domain: batches have a document a row (``evaluation_batches(separate=True)``). The end of text
that starts a document is no token of it and is not counted. Halves and nulls deal whole parents
(``explore.parents``), so a domain of one parent has nothing that its null has not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.host import Host
from pellucid.core.unit import PoolSpec, UnitPool
from pellucid.data.packing import Batch
from pellucid.data.store import Split
from pellucid.explore.halves import Halves
from pellucid.explore.parents import group_by_parent
from pellucid.explore.tally import Rows, Tally, is_text
from pellucid.stats.activity import dead_fraction
from pellucid.stats.specialisation import (
    MIN_OCCURRENCES,
    PERMUTATIONS,
    AgainstNull,
    domain_information,
    domain_information_given_token,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainMap:
    """Who is used where, at the grain of all axes but the last.

    ``used`` is the probability that a token of a domain has at least one unit of a grain on;
    ``used_permuted`` the same after one permutation of the domain labels over the parents, what
    the map would show by chance. ``nmi`` and ``nmi_given_token`` weigh the grains by mass and by
    the token's strongest grain.
    """

    used: Float[Tensor, "domains grains"]
    used_permuted: Float[Tensor, "domains grains"]
    nmi: AgainstNull
    nmi_given_token: AgainstNull


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolActivity:
    """One pool on held-out text; ``map`` is None for a pool of one axis.

    ``tokens`` and ``fires`` are counts by half of the parents (``explore.halves``) and domain;
    ``parents`` says in how many parents of a half a unit fired.
    """

    spec: PoolSpec
    domains: tuple[str, ...]
    tokens: Int[Tensor, "halves domains"]
    fires: Int[Tensor, "halves units domains"]
    parents: Int[Tensor, "halves units"]
    l0: float
    effective_l0: float
    map: DomainMap | None

    @property
    def dead_fraction(self) -> float:
        """The share of units that never fired in the pass."""
        return dead_fraction(self.fires.sum(dim=(0, 2)))

    @property
    def live_share(self) -> float:
        return 1.0 - self.dead_fraction


@torch.no_grad()
def measure_activity(
    host: Host,
    pools: Sequence[UnitPool],
    batches: Iterable[Batch],
    split: Split,
    domains: Sequence[str],
    *,
    min_occurrences: int = MIN_OCCURRENCES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[PoolActivity, ...]:
    """Run ``host``, in evaluation mode, over ``batches`` of ``split`` and sum up each pool.

    ``batches`` have a document a row, of any context; see the module.
    """
    if not pools:
        return ()
    parents = group_by_parent(split)
    label, halves = parents.domain, Halves(parents.domain)
    tallies = [
        Tally(pool, domains=len(domains), parents=len(label), device=device) for pool in pools
    ]
    tokens: list[Tensor] = [torch.zeros(0, dtype=torch.int32)]
    owners: list[Tensor] = [torch.zeros(0, dtype=torch.int32)]
    for batch in batches:
        kept = host.run(batch.tokens.to(device), keep={p.spec.reads for p in pools}).kept
        text = is_text(batch, split.end_of_text).flatten()
        parent = parents.of[batch.document.flatten().cpu()[text].long()]
        tokens.append(batch.tokens.flatten().cpu()[text].int())
        owners.append(parent.int())
        rows = Rows(parent=parent, domain=label[parent], half=halves.of(parent))
        for tally in tallies:
            x = kept[tally.pool.spec.reads].flatten(0, -2)
            tally.add(x[text.to(x.device)], rows)
    seen = _Seen(torch.cat(tokens).long(), torch.cat(owners).long(), label)
    count = torch.zeros(2, len(domains), dtype=torch.int64)
    place = (halves.of(seen.parent), label[seen.parent])
    count.index_put_(place, torch.ones_like(seen.parent), accumulate=True)
    return tuple(
        PoolActivity(
            spec=tally.pool.spec,
            domains=tuple(domains),
            tokens=count,
            fires=tally.fires,
            parents=tally.parents,
            l0=tally.active / max(tally.rows, 1),
            effective_l0=tally.effective / max(tally.rows, 1),
            map=_domain_map(tally, seen, len(domains), min_occurrences, permutations, seed),
        )
        for tally in tallies
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """The occurrences of the pass, and the domain of every parent."""

    token: Int[Tensor, " n"]
    parent: Int[Tensor, " n"]
    domain: Int[Tensor, " parents"]


def _domain_map(
    tally: Tally, seen: _Seen, domains: int, least: int, permutations: int, seed: int
) -> DomainMap | None:
    if tally.grains == 1:
        return None
    choice = torch.cat([torch.zeros(0, dtype=torch.int32), *tally.choices]).long()
    chose = choice >= 0
    length = torch.bincount(seen.parent, minlength=len(seen.domain))
    present = (length > 0).nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    dealt = seen.domain.clone()
    order = torch.randperm(len(present), generator=generator)
    dealt[present] = seen.domain[present[order]]
    return DomainMap(
        used=_per_token(tally.used, length, seen.domain, domains),
        used_permuted=_per_token(tally.used, length, dealt, domains),
        nmi=domain_information(
            tally.mass,
            length,
            seen.domain,
            domains=domains,
            permutations=permutations,
            seed=seed,
        ),
        nmi_given_token=domain_information_given_token(
            choice[chose],
            seen.token[chose],
            seen.parent[chose],
            seen.domain,
            min_occurrences=least,
            permutations=permutations,
            seed=seed,
        ),
    )


def _per_token(used: Tensor, length: Tensor, label: Tensor, domains: int) -> Tensor:
    """Uses by domain over the domain's tokens."""
    total = torch.zeros(domains, used.shape[1], dtype=torch.float64)
    total.index_add_(0, label, used.double())
    tokens = torch.zeros(domains, dtype=torch.float64).index_add_(0, label, length.double())
    return (total / tokens.clamp_min(1.0).unsqueeze(1)).float()
