"""More features than dimensions, added up: x = Σ_j f_j D_j + ε, and y = x.

    f_j = present_j · amplitude_j [· ±1],   D_j unit rows, dense and random or ±1/√s on s places
    ε Gaussian of root mean square norm ``noise``

Which features are present together is the forest of ``presence``: Zipf rates, correlated roots,
exclusive groups, children only with their parent. After "Toy Models of Superposition" (Elhage et
al., arXiv 2209.10652); hierarchy as in "A is for Absorption" (Chanin et al., arXiv 2409.14507) and
sparse atoms as in the Expander dictionary (arXiv 2607.01799). Cost: O(rows · features) a sample.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.config import check_positive
from pellucid.core.unit import Code
from pellucid.data.worlds.presence import ForestShape
from pellucid.data.worlds.world import (
    Amplitude,
    World,
    WorldRows,
    add_noise,
    amplitudes,
    check_amplitude,
    check_field,
    gaussian_directions,
    row_generator,
    sparse_directions,
    structure_generator,
)
from pellucid.ops.sparse_decode import sparse_decode


@dataclass(frozen=True, kw_only=True)
class SuperpositionConfig:
    """``features`` directions in ``d`` dimensions, ``l0`` of them present on average.

    Root rates follow rank^-``zipf``, at most ``max_rate`` for an exclusive group. Roots stand in
    exclusive groups of ``exclusive_roots`` (1: none), and ``correlation`` in [0, 1) is the share of
    a root's draw that ``correlation_rank`` common factors make. ``depth`` levels of ``branching``
    children: a present parent has ``child_rate`` of them on average, never two if
    ``exclusive_children``. ``signed`` gives half the coefficients a minus. ``support`` > 0 makes
    directions of so many entries ±1/√support. Amplitudes have mean 1 and the given ``spread``.
    ``seed`` fixes directions and groups.
    """

    kind: Literal["superposition"] = "superposition"
    d: int = 64
    features: int = 256
    l0: float = 8.0
    zipf: float = 0.5
    max_rate: float = 0.5
    exclusive_roots: int = 1
    correlation: float = 0.0
    correlation_rank: int = 16
    depth: int = 1
    branching: int = 4
    child_rate: float = 0.8
    exclusive_children: bool = True
    signed: bool = False
    support: int = 0
    amplitude: Amplitude = "uniform"
    spread: float = 0.5
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(
            self, "d", "features", "exclusive_roots", "correlation_rank", "depth", "branching"
        )
        check_field(self.l0 > 0, "l0", "more than 0", self.l0, "raise l0")
        for name in ("max_rate", "child_rate"):
            rate = getattr(self, name)
            check_field(0 < rate <= 1, name, "a rate in (0, 1]", rate, f"change {name}")
        for name in ("zipf", "noise", "seed"):
            size = getattr(self, name)
            check_field(size >= 0, name, "0 or more", size, f"raise {name}")
        inside = 0 <= self.correlation < 1
        check_field(inside, "correlation", "in [0, 1)", self.correlation, "change correlation")
        inside = 0 <= self.support <= self.d
        check_field(inside, "support", f"0 to d = {self.d}", self.support, "lower support")
        check_amplitude(self.amplitude, self.spread)
        most = f"at most features = {self.features}"
        check_field(self.depth <= self.features, "depth", most, self.depth, "lower depth")

    @classmethod
    def tiny(cls) -> "SuperpositionConfig":
        return cls(
            d=5,
            features=13,
            l0=2.5,
            max_rate=0.9,
            exclusive_roots=2,
            correlation=0.5,
            correlation_rank=2,
            depth=2,
            branching=2,
            signed=True,
            support=3,
            noise=0.1,
        )

    def build(self) -> "Superposition":
        """The world; a ``ConfigError`` if its groups cannot reach ``l0``."""
        return Superposition(self)

    @property
    def shape(self) -> ForestShape:
        """What says which features are present together."""
        return ForestShape(
            features=self.features,
            l0=self.l0,
            zipf=self.zipf,
            max_rate=self.max_rate,
            exclusive_roots=self.exclusive_roots,
            depth=self.depth,
            branching=self.branching,
            child_rate=self.child_rate,
            exclusive_children=self.exclusive_children,
            correlation=self.correlation,
            rank=self.correlation_rank,
        )


FORMS = {
    "flat": SuperpositionConfig(),
    "tree": SuperpositionConfig(depth=3),
    "signed": SuperpositionConfig(signed=True),
    "expander": SuperpositionConfig(support=7),
}


class Superposition(World):
    """``forest`` draws who is present; ``forest.rates`` are the exact probabilities."""

    def __init__(self, config: SuperpositionConfig) -> None:
        rng = structure_generator(config.seed)
        if config.support:
            directions = sparse_directions(rng, config.features, config.d, config.support)
        else:
            directions = gaussian_directions(rng, config.features, config.d)
        super().__init__(directions)
        self.config = config
        self.forest = config.shape.grow(rng)

    @property
    def reads(self) -> None:
        return None

    def sample(self, rows: int, *, seed: int, step: int) -> WorldRows:
        rng = row_generator(seed, step)
        row, feature = self.forest.draw(rows, rng)
        value = amplitudes(rng, row.shape[0], self.config.amplitude, self.config.spread)
        if self.config.signed:
            value *= torch.from_numpy(rng.choice((-1.0, 1.0), size=row.shape[0])).float()
        truth = _padded(row, feature, value, rows)
        clean = sparse_decode(truth.unit, truth.value, self.directions)
        x = add_noise(rng, clean, self.config.noise)
        return WorldRows(x=x, y=x, truth=truth)


def _padded(row: Tensor, feature: Tensor, value: Float[Tensor, " entries"], rows: int) -> Code:
    """Entries in ascending order of their rows as a code as wide as the fullest row."""
    count = torch.bincount(row, minlength=rows)
    slot = torch.arange(row.shape[0]) - (count.cumsum(0) - count)[row]
    shape = (rows, int(count.max()))
    unit = torch.zeros(shape, dtype=torch.long)
    gate, act = torch.zeros(shape), torch.zeros(shape)
    unit[row, slot], gate[row, slot], act[row, slot] = feature, 1.0, value
    return Code(unit, gate, act)
