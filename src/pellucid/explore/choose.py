"""Which units a reader is shown: the most selective, and random ones as their control.

Units are ranked by ``stats.selectivity`` on the first half of the documents, among those that
fire there at least ``MIN_FIRES`` times and in at least ``MIN_PARENTS`` parents: what fires in one
file knows that file only, and is silent in the half that is shown. Where this leaves the page
short, one parent is enough. One pool or one easy domain would fill the page, so the ranking is
gone through in rounds: in round r at most r units may share a grain (a pool of the hierarchy) or
the domain in which they fire most, and ⌈n / sites⌉ a site; only when this leaves the page short
may a site give more. The controls are drawn uniformly from the same eligible units, whatever their
selectivity.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from pellucid.explore.activity import PoolActivity
from pellucid.explore.halves import CHOOSE
from pellucid.stats.selectivity import domain_selectivity, domain_shares

MIN_FIRES = 30
MIN_PARENTS = 4
NUM_RANKED = 4096  # candidates a pool; enough that no round runs dry


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenUnit:
    """A unit of the pool at ``position`` in the sequence of pools, and why it was chosen."""

    position: int
    unit: int
    control: bool


@dataclass(frozen=True, slots=True)
class _Candidate:
    position: int
    unit: int
    score: float
    keys: tuple[tuple[str, int, int], ...]


def choose_units(
    activity: Sequence[PoolActivity],
    *,
    selective: int = 12,
    controls: int = 2,
    min_fires: int = MIN_FIRES,
    seed: int = 0,
) -> tuple[ChosenUnit, ...]:
    """``selective`` units, most selective first, then ``controls``; fewer if few are eligible."""
    eligible = [_eligible(a, min_fires, MIN_PARENTS) for a in activity]
    if sum(int(mask.sum()) for mask in eligible) < selective + controls:
        eligible = [_eligible(a, min_fires, 1) for a in activity]
    ranked = sorted(
        (c for i, a in enumerate(activity) for c in _candidates(i, a, eligible[i])),
        key=lambda candidate: -candidate.score,
    )
    best = _spread(ranked, selective, math.ceil(selective / max(len(activity), 1)))
    taken = {(candidate.position, candidate.unit) for candidate in best}
    chosen = [ChosenUnit(position=c.position, unit=c.unit, control=False) for c in best]
    return (*chosen, *_draw(eligible, controls, taken, seed))


def _eligible(activity: PoolActivity, fires: int, parents: int) -> Bool[Tensor, " units"]:
    often = activity.fires[CHOOSE].sum(-1) >= fires
    return often & (activity.parents[CHOOSE] >= parents)


def _candidates(
    position: int, activity: PoolActivity, mask: Bool[Tensor, " units"]
) -> list[_Candidate]:
    fires, tokens = activity.fires[CHOOSE], activity.tokens[CHOOSE]
    eligible = mask.nonzero().squeeze(1)
    score = domain_selectivity(fires[eligible], tokens)
    top = score.topk(min(NUM_RANKED, len(score)))
    units = eligible[top.indices]
    domain = domain_shares(fires[units], tokens).argmax(-1)
    slots = activity.spec.axes[-1][1] if len(activity.spec.axes) > 1 else 1
    return [
        _Candidate(
            position,
            unit,
            value,
            (("grain", position, unit // slots), ("domain", 0, label), ("site", position, 0)),
        )
        for unit, value, label in zip(units.tolist(), top.values.tolist(), domain.tolist())
    ]


def _spread(ranked: list[_Candidate], wanted: int, per_site: int) -> list[_Candidate]:
    """The first ``wanted`` candidates of the rounds, in order of score."""
    found: list[_Candidate] = []
    count: Counter[tuple[str, int, int]] = Counter()
    left = ranked
    for site_limit in (per_site, wanted):
        for limit in range(1, wanted + 1):
            passed: list[_Candidate] = []
            for candidate in left:
                room = all(
                    count[key] < (site_limit if key[0] == "site" else limit)
                    for key in candidate.keys
                )
                if room and len(found) < wanted:
                    found.append(candidate)
                    count.update(candidate.keys)
                else:
                    passed.append(candidate)
            left = passed
    return sorted(found, key=lambda candidate: -candidate.score)


def _draw(
    eligible: Sequence[Bool[Tensor, " units"]],
    wanted: int,
    taken: set[tuple[int, int]],
    seed: int,
) -> list[ChosenUnit]:
    """Units drawn uniformly from all that are eligible and not ``taken``."""
    eligible = [mask.clone() for mask in eligible]
    for position, unit in taken:
        eligible[position][unit] = False
    places = [
        torch.stack([torch.full_like(units, i), units], dim=1)
        for i, units in enumerate(mask.nonzero().squeeze(1) for mask in eligible)
    ]
    pairs = torch.cat([torch.zeros(0, 2, dtype=torch.int64), *places])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pairs), generator=generator)[:wanted]
    return [
        ChosenUnit(position=position, unit=unit, control=True)
        for position, unit in pairs[order].tolist()
    ]
