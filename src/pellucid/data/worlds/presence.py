"""Which features are present together: a forest of exclusive groups whose rates are exact.

    a group's draw:  U_g uniform on (0, 1);  its member j is drawn iff low_j ≤ U_g < low_j + q_j
    presence:        present_j = drawn_j · present_parent(j)
    rates:           rate_j = q_j · rate_parent(j),   E L0 = Σ_j rate_j
    correlation:     U_g = Φ(√ρ ⟨l_g, w⟩ + √(1−ρ) ε_g) for roots,  ‖l_g‖ = 1, w, ε Gaussian

The members of a group share its draw on disjoint intervals, so that at most one of them is
present; a group of one excludes nobody. Neither the intervals nor the copula touch a marginal, so
rates hold exactly: roots have rates ∝ rank^−zipf, capped, at the scale where E L0 is the number
asked for. Cost: O(rows · features), in chunks of bounded memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.data.worlds.world import check_field, zipf_weights

CHUNK_ELEMENTS = 1 << 21  # uniform numbers of one chunk: 16 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Features in order of their level: the roots by falling weight, then their children, ...

    ``levels`` holds the first feature of each level and the number of features; a root's parent
    is −1. ``group`` numbers the exclusive groups, those of roots first.
    """

    levels: tuple[int, ...]
    parent: Int[Tensor, " features"]
    group: Int[Tensor, " features"]
    low: Float[Tensor, " features"]
    conditional: Float[Tensor, " features"]
    loading: Float[Tensor, "root_groups rank"]
    correlation: float

    @property
    def rates(self) -> Float[Tensor, " features"]:
        """The exact probability of each feature (float64)."""
        rates = self.conditional.clone()
        for start, stop in pairwise(self.levels[1:]):
            rates[start:stop] *= rates[self.parent[start:stop]]
        return rates

    def draw(
        self, rows: int, rng: np.random.Generator
    ) -> tuple[Int[Tensor, " entries"], Int[Tensor, " entries"]]:
        """Row and feature of every presence in ``rows`` rows, in ascending order."""
        found = [
            (row + start, feature)
            for start, present in self._chunks(rows, rng)
            for row, feature in [present.nonzero(as_tuple=True)]
        ]
        return torch.cat([row for row, _ in found]), torch.cat([feature for _, feature in found])

    def _chunks(self, rows: int, rng: np.random.Generator) -> Iterator[tuple[int, Tensor]]:
        step = max(1, CHUNK_ELEMENTS // self.parent.shape[0])
        for start in range(0, rows, step):
            yield start, self._present(min(step, rows - start), rng)

    def _present(self, rows: int, rng: np.random.Generator) -> Bool[Tensor, "rows features"]:
        place = self._uniform(rows, rng)[:, self.group] - self.low
        present = (place >= 0) & (place < self.conditional)
        for start, stop in pairwise(self.levels[1:]):
            present[:, start:stop] &= present[:, self.parent[start:stop]]
        return present

    def _uniform(self, rows: int, rng: np.random.Generator) -> Float[Tensor, "rows groups"]:
        groups = 1 + int(self.group.max())
        if self.correlation == 0.0:
            return torch.from_numpy(rng.random((rows, groups)))
        roots, rank = self.loading.shape
        shared = torch.from_numpy(rng.standard_normal((rows, rank))) @ self.loading.t()
        own = torch.from_numpy(rng.standard_normal((rows, roots)))
        mixed = self.correlation**0.5 * shared + (1.0 - self.correlation) ** 0.5 * own
        rest = torch.from_numpy(rng.random((rows, groups - roots)))
        return torch.cat((torch.special.ndtr(mixed), rest), dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestShape:
    """What a forest is grown from; ``grow`` solves the roots' rates for ``l0``.

    Roots are as few as ``depth`` levels of ``branching`` children allow; the last level takes what
    is left, one feature at least. Roots are put into exclusive groups of ``exclusive_roots`` at
    random. A present parent has ``child_rate`` children on average, by Zipf's law among siblings,
    at most one if exclusive.
    """

    features: int
    l0: float
    zipf: float
    max_rate: float
    exclusive_roots: int
    depth: int
    branching: int
    child_rate: float
    exclusive_children: bool
    correlation: float
    rank: int

    @property
    def levels(self) -> tuple[int, ...]:
        """0, then the end of the roots, of their children, ..., of the last level."""
        size = -(-self.features // sum(self.branching**level for level in range(self.depth)))
        bounds = [0]
        for deeper in reversed(range(self.depth)):
            bounds.append(bounds[-1] + min(size, self.features - bounds[-1] - deeper))
            size = (bounds[-1] - bounds[-2]) * self.branching
        return tuple(bounds)

    def grow(self, rng: np.random.Generator) -> Forest:
        """The forest; a ``ConfigError`` for an ``l0`` beyond what ``max_rate`` a group allows."""
        levels = self.levels
        parent, sibling = _parents(levels)
        group = np.zeros(self.features, dtype=np.int64)
        group[: levels[1]] = rng.permutation(levels[1]) // self.exclusive_roots
        root_groups = groups = 1 + int(group.max())
        conditional = np.zeros(self.features)
        for start, stop in pairwise(levels[1:]):
            family = parent[start:stop] if self.exclusive_children else np.arange(start, stop)
            group[start:stop] = groups + np.unique(family, return_inverse=True)[1]
            groups = 1 + int(group[start:stop].max())
            weight = (sibling[start:stop] + 1.0) ** -self.zipf
            total = np.bincount(parent[start:stop], weight)
            conditional[start:stop] = self.child_rate * weight / total[parent[start:stop]]
        roots = slice(0, levels[1])
        load = _expected_subtrees(levels, parent, conditional)[roots]
        conditional[roots] = self._root_rates(group[roots], load)
        loading = rng.standard_normal((root_groups, self.rank))
        return Forest(
            levels=levels,
            parent=torch.from_numpy(parent),
            group=torch.from_numpy(group),
            low=torch.from_numpy(_interval_starts(group, conditional)),
            conditional=torch.from_numpy(conditional),
            loading=torch.from_numpy(loading / np.linalg.norm(loading, axis=1, keepdims=True)),
            correlation=self.correlation,
        )

    def _root_rates(self, group: np.ndarray, load: np.ndarray) -> np.ndarray:
        """Rates ∝ Zipf weights, groups capped, with Σ rate · load = l0."""
        weight = zipf_weights(group.shape[0], self.zipf)
        total = np.bincount(group, weight)
        mean_load = np.bincount(group, weight * load) / total
        most = float(self.max_rate * mean_load.sum())
        check_field(
            self.l0 <= most, "l0", f"at most {most:.4g}", self.l0, "lower l0 or raise max_rate"
        )
        scale = _capped_scale(total, mean_load, self.max_rate, self.l0)
        return (np.minimum(self.max_rate, scale * total) / total)[group] * weight


def _parents(levels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Each feature's parent, and its place among its siblings; parents take turns."""
    parent, sibling = np.full(levels[-1], -1), np.zeros(levels[-1], dtype=np.int64)
    for above, start, stop in zip(levels, levels[1:], levels[2:]):
        turn = np.arange(stop - start)
        parent[start:stop] = above + turn % (start - above)
        sibling[start:stop] = turn // (start - above)
    return parent, sibling


def _expected_subtrees(
    levels: tuple[int, ...], parent: np.ndarray, conditional: np.ndarray
) -> np.ndarray:
    """How many features of each one's subtree, itself included, are present when it is."""
    load = np.ones(parent.shape[0])
    for start, stop in reversed(list(pairwise(levels[1:]))):
        np.add.at(load, parent[start:stop], conditional[start:stop] * load[start:stop])
    return load


def _capped_scale(weight: np.ndarray, load: np.ndarray, cap: float, target: float) -> float:
    """The c with Σ load · min(cap, c · weight) = target, for a target within reach."""
    order = np.argsort(-weight, kind="stable")
    weight, load = weight[order], load[order]
    fixed = cap * (np.cumsum(load) - load)
    slope = np.cumsum((load * weight)[::-1])[::-1]
    scale = (target - fixed) / slope
    # The heaviest are capped first, as few as leave none of the rest above the cap; the lightest
    # may miss it by a rounding where the target needs all at the cap.
    fits = scale * weight <= cap
    fits[-1] = True
    return float(scale[np.argmax(fits)])


def _interval_starts(group: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Where each member's interval begins when a group's intervals lie end to end from 0."""
    order = np.argsort(group, kind="stable")
    start = np.cumsum(length[order]) - length[order]
    first = np.searchsorted(group[order], group[order])
    low = np.empty_like(length)
    low[order] = start - start[first]
    return low
