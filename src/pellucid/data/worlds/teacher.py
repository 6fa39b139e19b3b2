"""A layer of known rank-one experts: y = Σ_j g_j(x) · relu(u_j·x + b) · v_j.

    g_j(x) = 1 where ⟨c_g, x⟩ of expert j's group is among the ``open_groups`` largest, else 0
    x      = κ Σ_{g drawn} c_g + Σ_{j driven} amplitude_j · u_j + ε

Experts co-occur by a hierarchy. A row has a topic; it draws ``open_groups`` groups by Zipf's law,
those of its topic more readily by a factor exp(coherence) (Gumbel top-k, Kool et al., arXiv
1903.06059); and it drives every expert of a drawn group with probability ``drive``. The truth is a
function of x alone: what interference opens or fires counts as truth, as it does in y. Reads u,
writes v and centres c are independent uniform unit rows. b is one number, solved on rows of a
stream of its own so that ``l0`` experts fire on average. Cost: O(rows · groups · d) a sample.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.config import check_positive
from pellucid.core.unit import Code
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
    structure_generator,
    zipf_weights,
)
from pellucid.ops.sparse_decode import sparse_decode, sparse_read

CALIBRATION_ROWS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """``features`` experts in ``groups`` equal groups, of which a row opens ``open_groups``.

    ``l0`` experts fire per row on average. ``topics`` share the groups evenly; ``coherence`` is
    the log-odds by which a row prefers the groups of its topic. ``strength`` is κ, how strongly a
    drawn group shows in x. ``seed`` fixes all directions.
    """

    kind: Literal["teacher"] = "teacher"
    d: int = 64
    features: int = 256
    l0: float = 8.0
    groups: int = 32
    open_groups: int = 2
    topics: int = 8
    coherence: float = 2.0
    zipf: float = 0.5
    drive: float = 0.5
    strength: float = 2.0
    amplitude: Amplitude = "uniform"
    spread: float = 0.5
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self, "d", "features", "groups", "open_groups", "topics")
        for name in ("coherence", "zipf", "strength", "noise", "seed"):
            size = getattr(self, name)
            check_field(size >= 0, name, "0 or more", size, f"raise {name}")
        for name in ("open_groups", "topics"):
            size = getattr(self, name)
            most = f"at most groups = {self.groups}"
            check_field(size <= self.groups, name, most, size, f"lower {name}")
        whole = self.features % self.groups == 0
        expected = f"a multiple of groups = {self.groups}"
        check_field(whole, "features", expected, self.features, "change features or groups")
        inside = 0 < self.drive <= 1
        check_field(inside, "drive", "a rate in (0, 1]", self.drive, "change drive")
        inside = 0 < self.l0 < self.candidates
        expected = f"between 0 and open_groups · features / groups = {self.candidates}"
        check_field(inside, "l0", expected, self.l0, "change l0 or open_groups")
        check_amplitude(self.amplitude, self.spread)

    @property
    def candidates(self) -> int:
        """The experts of the open groups of one row."""
        return self.open_groups * (self.features // self.groups)

    @classmethod
    def tiny(cls) -> "TeacherConfig":
        return cls(d=5, features=15, l0=2.5, groups=5, open_groups=2, topics=2, noise=0.1)

    def build(self) -> "Teacher":
        return Teacher(self)


class Teacher(World):
    """Experts with unit ``reads`` and ``directions`` (writes), group ``centres``, one ``bias``."""

    def __init__(self, config: TeacherConfig) -> None:
        rng = structure_generator(config.seed)
        super().__init__(gaussian_directions(rng, config.features, config.d))
        self.config = config
        self.centres = gaussian_directions(rng, config.groups, config.d)
        self._reads = gaussian_directions(rng, config.features, config.d)
        x = self._inputs(CALIBRATION_ROWS, rng)
        score = sparse_read(x, self._experts(self._open(x)), self._reads).flatten()
        fires = min(round(config.l0 * CALIBRATION_ROWS), score.shape[0] - 1)
        self.bias = -score.topk(fires + 1).values[-2:].mean().item()

    @property
    def reads(self) -> Float[Tensor, "features d"]:
        return self._reads

    def sample(self, rows: int, *, seed: int, step: int) -> WorldRows:
        x = self._inputs(rows, row_generator(seed, step))
        truth = self.truth(x)
        y = sparse_decode(truth.unit, truth.value, self.directions)
        return WorldRows(x=x, y=y, truth=truth)

    def truth(self, x: Float[Tensor, "rows d"]) -> Code:
        """The experts of each row's open groups: gate 1, act relu(u·x + b)."""
        unit = self._experts(self._open(x))
        act = F.relu(sparse_read(x, unit, self._reads) + self.bias)
        return Code(unit, torch.ones_like(act), act)

    def _open(self, x: Tensor) -> Int[Tensor, "rows open"]:
        return (x @ self.centres.t()).topk(self.config.open_groups).indices

    def _experts(self, group: Int[Tensor, "rows open"]) -> Int[Tensor, "rows candidates"]:
        size = self.config.features // self.config.groups
        return (group.unsqueeze(-1) * size + torch.arange(size)).flatten(1)

    def _inputs(self, rows: int, rng: np.random.Generator) -> Float[Tensor, "rows d"]:
        config = self.config
        drawn = torch.from_numpy(self._preferences(rows, rng)).topk(config.open_groups).indices
        unit = self._experts(drawn)
        driven = torch.from_numpy(rng.random(tuple(unit.shape)) < config.drive)
        value = amplitudes(rng, unit.numel(), config.amplitude, config.spread).view(unit.shape)
        x = sparse_decode(unit, value * driven, self._reads)
        shown = torch.full(tuple(drawn.shape), config.strength)
        return add_noise(rng, x + sparse_decode(drawn, shown, self.centres), config.noise)

    def _preferences(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Gumbel scores whose largest are groups drawn without replacement by their weights."""
        config = self.config
        groups = np.arange(config.groups)
        topic = rng.integers(config.topics, size=(rows, 1))
        own = config.coherence * (groups % config.topics == topic)
        return np.log(zipf_weights(config.groups, config.zipf)) + own + rng.gumbel(size=own.shape)
