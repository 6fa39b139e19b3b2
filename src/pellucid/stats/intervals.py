"""How far to trust a figure: Student intervals over seeds, bootstrap over documents.

    SE² = s² / S + SE_doc²,   interval = mean ± t(.975, S − 1) · SE

s is the spread over S training seeds, SE_doc the standard error over resampled documents. The
quantile of t inverts its distribution function, a finite sum for whole degrees of freedom
(Abramowitz and Stegun, 26.7.3 and 26.7.4).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """mean ± half_width."""

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def seed_interval(
    values: Sequence[float], *, document_error: float = 0.0, level: float = 0.95
) -> Interval:
    """The interval of a mean over seeds; one seed shows no spread, so its interval is infinite."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Interval(mean=mean, half_width=math.inf)
    spread = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    error = math.sqrt(spread / len(values) + document_error**2)
    quantile = student_quantile(0.5 + level / 2, len(values) - 1)
    return Interval(mean=mean, half_width=quantile * error)


def student_quantile(probability: float, freedom: int) -> float:
    """The t with P(T ≤ t) = ``probability`` ≥ .5 for ``freedom`` whole degrees of freedom."""
    low, high = 0.0, 1.0
    while _central_mass(high, freedom) < 2 * probability - 1:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        if _central_mass(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return high


def document_bootstrap(
    statistics: Float[Tensor, "documents stats"],
    figure: Callable[[Float[Tensor, "resamples stats"]], Float[Tensor, " resamples"]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[Tensor, " resamples"]:
    """``figure`` of the summed statistics of documents drawn with replacement.

    The same seed and number of documents draw the same documents, so that two subjects resampled
    here are paired. The standard deviation of the result is SE_doc.
    """
    documents = statistics.shape[0]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(documents, (resamples, documents), generator=generator)
    times = torch.zeros(resamples, documents, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    return figure(times @ statistics.double())


def _central_mass(t: float, freedom: int) -> float:
    """P(|T| ≤ t)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine if freedom > 1 else 0.0) if odd else (1.0, 1.0)
    for i in range(2 + odd, freedom, 2):
        term *= cosine**2 * (i - 1) / i
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
