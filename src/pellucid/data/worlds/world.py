"""A world: rows drawn from features that are known, so that recovery can be scored.

Rows are a pure function of (seed, step). Whoever fits on steps 0, 1, 2, ... can stop and go on
anywhere, and two subjects on the same seed see the same rows.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.core.unit import Code

Amplitude = Literal["constant", "uniform", "lognormal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldRows:
    """What a subject reads, ``x``, what it is to write, ``y``, and the features behind them.

    y is x where the world is one of superposition. A feature is present where its entry in
    ``truth`` has a value other than 0.
    """

    x: Float[Tensor, "rows d"]
    y: Float[Tensor, "rows d"]
    truth: Code


class World(ABC):
    """Known ``directions``, the unit rows that features write, and the rows they make."""

    def __init__(self, directions: Float[Tensor, "features d"]) -> None:
        self.directions = directions

    @property
    @abstractmethod
    def reads(self) -> Float[Tensor, "features d"] | None:
        """The unit rows by which features are read from x; ``None`` where y = x."""

    @property
    def d(self) -> int:
        """The width of x and y."""
        return self.directions.shape[1]

    @property
    def num_features(self) -> int:
        """The number of features."""
        return self.directions.shape[0]

    @abstractmethod
    def sample(self, rows: int, *, seed: int, step: int) -> WorldRows:
        """``rows`` rows of float32, a pure function of ``seed`` and ``step``, both at least 0."""


def row_generator(seed: int, step: int) -> np.random.Generator:
    """The generator of the rows of one step."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))


def structure_generator(seed: int) -> np.random.Generator:
    """The generator of what a world keeps: directions, groups. No step's rows share its stream."""
    return np.random.default_rng(np.random.SeedSequence(seed))


def gaussian_directions(
    rng: np.random.Generator, features: int, d: int
) -> Float[Tensor, "features d"]:
    """Uniform random unit rows."""
    rows = rng.standard_normal((features, d))
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()


def sparse_directions(
    rng: np.random.Generator, features: int, d: int, support: int
) -> Float[Tensor, "features d"]:
    """Rows with ``support`` entries of ±1/√support at places drawn uniformly, and zeros."""
    places = np.argsort(rng.random((features, d)), axis=1)[:, :support]
    rows = np.zeros((features, d))
    signs = rng.choice((-1.0, 1.0), size=(features, support))
    np.put_along_axis(rows, places, signs / support**0.5, axis=1)
    return torch.from_numpy(rows).float()


def amplitudes(
    rng: np.random.Generator, count: int, kind: Amplitude, spread: float
) -> Float[Tensor, " count"]:
    """Positive factors of mean 1: all 1, uniform on 1 ± spread, or exp(spread·N − spread²/2)."""
    if kind == "constant":
        return torch.ones(count)
    if kind == "uniform":
        return torch.from_numpy(1.0 + spread * (2.0 * rng.random(count) - 1.0)).float()
    return torch.from_numpy(np.exp(spread * rng.standard_normal(count) - spread**2 / 2)).float()


def add_noise(
    rng: np.random.Generator, x: Float[Tensor, "rows d"], noise: float
) -> Float[Tensor, "rows d"]:
    """x plus Gaussian noise of root mean square norm ``noise``."""
    if noise == 0.0:
        return x
    return x + torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32)) * (
        noise / x.shape[1] ** 0.5
    )


def zipf_weights(count: int, exponent: float) -> np.ndarray:
    """rank^−exponent for ranks 1, 2, ..., count."""
    return np.arange(1, count + 1, dtype=np.float64) ** -exponent


def check_field(holds: bool, field: str, expected: str, found: object, mend: str) -> None:
    """A ``ConfigError`` that names the field, unless ``holds``."""
    if not holds:
        raise ConfigError(f"{field}: expected {expected}, found {found}; {mend}")


def check_amplitude(kind: Amplitude, spread: float) -> None:
    """``spread`` keeps every factor positive."""
    most = 1.0 if kind == "uniform" else float("inf")
    check_field(
        0.0 <= spread < most,
        "spread",
        "0 or more and, for uniform amplitudes, below 1",
        spread,
        "lower spread",
    )
