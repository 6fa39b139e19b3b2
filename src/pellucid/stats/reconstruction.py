"""How much of a target a prediction misses: FVU, recovered cross-entropy, and two summaries.

    FVU          = Σ‖y − ŷ‖² / Σ‖y − ȳ‖²          ȳ per coordinate over all rows ever seen
    CE recovered = (CE_zero − CE_splice) / (CE_zero − CE_clean)
    V            = mean ‖y − ȳ‖²
    median       = argmin_m Σ‖y − m‖

All sums are float64. Means and squared deviations of batches are merged by Chan, Golub and LeVeque
("Updating formulae and a pairwise algorithm for computing sample variances", 1979), which keeps
its digits when the mean is large, so the order of batches matters only to rounding. The median is
Weiszfeld's iteration with the step of Vardi and Zhang ("The multivariate L1-median and associated
data depth", 2000) where an iterate meets a row. Cost: O(rows · d) a pass.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.errors import DataError
from pellucid.stats.information import MIN_NORMALISER

MEDIAN_CHUNK = 4096  # rows of float64 differences that exist at a time


class Moments:
    """Rows seen, their mean per coordinate, and their summed squared distance to it."""

    def __init__(self) -> None:
        self.rows = 0
        self._mean: Tensor | None = None
        self._squares = 0.0

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """The mean per coordinate (float64); a ``DataError`` before the first row."""
        if self._mean is None:
            raise DataError("rows: expected at least one, found none; give a mean something to see")
        return self._mean

    @property
    def squares(self) -> float:
        """Σ‖y − ȳ‖², or a ``DataError`` where it is 0 and nothing can be measured against it."""
        if self._squares == 0.0:
            found = f"{self.rows} equal rows" if self.rows else "none"
            raise DataError(
                f"rows: expected rows that differ, found {found}; "
                "their variance is 0, so choose another site or more rows"
            )
        return self._squares

    def update(self, rows: Float[Tensor, "rows d"]) -> None:
        """Take in a batch."""
        if rows.shape[0] == 0:
            return
        rows = rows.detach().double()
        # Measured from the batch's first row, so that equal rows have no spread at all.
        mean = rows[0] + (rows - rows[0]).mean(0)
        self._join(rows.shape[0], mean.cpu(), (rows - mean).square().sum().item())

    def merge(self, other: "Moments") -> None:
        """Take in all that another accumulator saw."""
        if other.rows:
            self._join(other.rows, other.mean, other._squares)

    def _join(self, rows: int, mean: Tensor, squares: float) -> None:
        if self._mean is None:
            self._mean = torch.zeros_like(mean) + mean
        total = self.rows + rows
        step = mean - self._mean
        self._squares += squares + step.square().sum().item() * (self.rows * rows / total)
        self._mean += step * (rows / total)
        self.rows = total


class FVU:
    """Fraction of variance unexplained, accumulated over batches of targets and predictions."""

    def __init__(self) -> None:
        self.targets = Moments()
        self._missed = 0.0

    def update(self, y: Float[Tensor, "rows d"], prediction: Float[Tensor, "rows d"]) -> None:
        """Take in a batch; sums are float64 whatever the inputs are."""
        self.targets.update(y)
        self._missed += (y.detach().double() - prediction.detach().double()).square().sum().item()

    def merge(self, other: "FVU") -> None:
        """Take in all that another accumulator saw."""
        self.targets.merge(other.targets)
        self._missed += other._missed

    @property
    def rows(self) -> int:
        """The number of rows seen."""
        return self.targets.rows

    @property
    def value(self) -> float:
        """Σ‖y − ŷ‖² / Σ‖y − ȳ‖² over all rows; a ``DataError`` where no two rows differ."""
        return self._missed / self.targets.squares

    @property
    def explained_variance(self) -> float:
        """1 − FVU."""
        return 1.0 - self.value


def total_variance(rows: Float[Tensor, "rows d"]) -> float:
    """Mean ‖y − ȳ‖² over the rows; a ``DataError`` where no two rows differ."""
    moments = Moments()
    moments.update(rows)
    return moments.squares / moments.rows


def ce_recovered(zero: float, splice: float, clean: float) -> float | None:
    """The share of the loss between a zeroed and an untouched site that a splice wins back.

    All three are mean cross-entropies in nats. ``None`` where zeroing costs less than .01 nat:
    there is then nothing to win back, and the quotient is noise.
    """
    if zero - clean < MIN_NORMALISER:
        return None
    return (zero - splice) / (zero - clean)


@torch.no_grad()
def geometric_median(
    rows: Float[Tensor, "rows d"], *, iterations: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d"]:
    """The point with the least summed distance to the rows, of the rows' dtype.

    Stops after a step shorter than ``tolerance`` · √V. The η rows nearer than that count as met:
    the step then follows the pull R of the others, shortened by η / ‖R‖, and the point stays where
    ‖R‖ ≤ η, which is the condition for being the median. A ``DataError`` without rows.
    """
    moments = Moments()
    moments.update(rows)
    point = moments.mean.to(rows.device)
    reach = tolerance * (moments._squares / moments.rows) ** 0.5
    for _ in range(iterations):
        pull, weight, met = _pull(rows, point, reach)
        strength = pull.norm().item()
        if strength <= met:
            break
        step = pull / weight * (1.0 - met / strength)
        point = point + step
        if step.norm().item() <= reach:
            break
    return point.to(rows.dtype)


def _pull(rows: Tensor, point: Tensor, reach: float) -> tuple[Tensor, float, int]:
    """Σ (y − m)/‖y − m‖ and Σ 1/‖y − m‖ over the rows not met, and how many are met."""
    pull = torch.zeros_like(point)
    weight, met = 0.0, 0
    for part in rows.split(MEDIAN_CHUNK):
        difference = part.double() - point
        distance = difference.norm(dim=1)
        inverse = torch.where(distance > reach, 1.0 / distance, 0.0)
        pull += inverse @ difference
        weight += inverse.sum().item()
        met += int((distance <= reach).sum())
    return pull, weight, met
