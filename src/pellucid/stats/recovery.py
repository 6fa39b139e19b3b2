"""How well latents recover features that are known: MCC, uniqueness, F1 as detectors.

    score(i, j) = |cos(v*_i, v_j)|                    or |cos(u*_i, u_j) · cos(v*_i, v_j)|
    MCC         = max over one-to-one matches of Σ_i score(i, match(i)) / features
    uniqueness  = distinct best latents of the features / features
    F1_i        = 2·both_i / (present_i + fires_match(i)),   fires: value ≠ 0

The mean correlation coefficient is that of the literature on identifiability (Hyvärinen and
Morioka, arXiv 1605.06336), with cosines for correlations. A feature that is left without a latent
scores 0 throughout. Cost: O(features² · latents) for the match, O(entries · log entries) a batch
for the counts.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.errors import DataError, MissingExtra
from pellucid.core.unit import Code

CHANCE_STREAM = 1_618_033_988  # far from the small seeds that true directions are drawn with


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Each feature's latent under the best one-to-one match, its score, and its best latent.

    ``latent`` is −1 and ``score`` 0 for a feature that found none, because there are fewer latents
    than features. ``best`` ignores the other features' claims.
    """

    latent: Int[Tensor, " features"]
    score: Float[Tensor, " features"]
    best: Int[Tensor, " features"]

    @property
    def mcc(self) -> float:
        """The mean score over all features."""
        return self.score.mean().item()

    @property
    def uniqueness(self) -> float:
        """The share of features that would remain if each best latent stood for one only."""
        return self.best.unique().shape[0] / self.best.shape[0]


@torch.no_grad()
def match_directions(
    true: Float[Tensor, "features d"],
    learned: Float[Tensor, "latents d"],
    *,
    true_read: Float[Tensor, "features d_in"] | None = None,
    learned_read: Float[Tensor, "latents d_in"] | None = None,
    absolute: bool = True,
) -> Matching:
    """Match features to latents by cosine, one to one.

    With both ``_read``, where a unit reads one direction and writes another, the score is the
    product of the two cosines. ``absolute=False`` keeps the sign, so that opposite directions
    count against a match. A zero row has cosine 0 to everything.
    """
    if (true_read is None) != (learned_read is None):
        raise ValueError("match_directions takes true_read= and learned_read= together, found one")
    score = _cosines(true, learned)
    if true_read is not None and learned_read is not None:
        score = score * _cosines(true_read, learned_read)
    return match_scores(score.abs() if absolute else score)


def match_scores(score: Float[Tensor, "features latents"]) -> Matching:
    """The one-to-one match with the largest sum of scores.

    Raises ``MissingExtra`` without scipy, ``DataError`` without features or latents.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise MissingExtra("scipy", "bench", "matching latents to features") from None
    features, latents = score.shape
    if features == 0 or latents == 0:
        raise DataError(
            f"score: expected features and latents to match, found {features} and {latents}"
        )
    score = score.detach().double().cpu()
    row, column = map(torch.as_tensor, linear_sum_assignment(score.numpy(), maximize=True))
    latent = torch.full((features,), -1)
    latent[row] = column
    matched = score.new_zeros(features)
    matched[row] = score[row, column]
    return Matching(latent=latent, score=matched, best=score.argmax(1))


def chance_mcc(
    true: Float[Tensor, "features d"],
    latents: int,
    *,
    true_read: Float[Tensor, "features d_in"] | None = None,
    absolute: bool = True,
    draws: int = 4,
    seed: int = 0,
) -> float:
    """The MCC that so many random Gaussian latents reach on these features, a mean over draws."""
    generator = torch.Generator().manual_seed(CHANCE_STREAM + seed)

    def random(rows: Tensor) -> Tensor:
        return torch.randn(latents, rows.shape[1], generator=generator, dtype=rows.dtype)

    drawn = [
        match_directions(
            true,
            random(true),
            true_read=true_read,
            learned_read=None if true_read is None else random(true_read),
            absolute=absolute,
        ).mcc
        for _ in range(draws)
    ]
    return sum(drawn) / draws


class DetectorCounts:
    """How often each feature is present, its latent fires, and both, summed over batches.

    ``latent`` names each feature's latent, −1 for none; several features may share one.
    """

    def __init__(self, latent: Int[Tensor, " features"]) -> None:
        self.latent = latent.cpu()
        self.rows = 0
        self.present = torch.zeros_like(self.latent)
        self.fires = torch.zeros_like(self.latent)
        self.both = torch.zeros_like(self.latent)

    def update(self, truth: Code, code: Code) -> None:
        """Take in the true and the learned code of the same rows, each [rows, k] of any k.

        An entry counts where its value is not 0.
        """
        rows = truth.unit.shape[0]
        assert code.unit.shape[0] == rows, (code.unit.shape, truth.unit.shape)
        true_row, feature = _entries(truth)
        row, unit = _entries(code)
        has = self.latent >= 0
        size = 1 + int(max(unit.max().item() if unit.numel() else 0, self.latent.max().item()))
        fired = (row * size + unit).unique()
        fires = torch.bincount(fired % size, minlength=size)[self.latent.clamp_min(0)]
        wanted = true_row * size + self.latent[feature]
        hit = torch.isin(wanted, fired) & has[feature]
        count = self.latent.shape[0]
        self.rows += rows
        self.present += torch.bincount(feature, minlength=count)
        self.fires += torch.where(has, fires, 0)
        self.both += torch.bincount(feature[hit], minlength=count)

    @property
    def f1(self) -> Float[Tensor, " features"]:
        """F1 of each feature's latent; NaN for a feature that was never present."""
        value = 2 * self.both.double() / (self.present + self.fires)
        return torch.where(self.present > 0, value, torch.nan)

    @property
    def mean_f1(self) -> float:
        """The mean over features that were present at all; a ``DataError`` if none was."""
        if not bool((self.present > 0).any()):
            raise DataError(
                f"rows: expected features to be present, found none in {self.rows} rows; use more"
            )
        return self.f1.nanmean().item()


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    one, other = one.double(), other.to(one.device).double()
    return F.normalize(one, dim=1) @ F.normalize(other, dim=1).t()


def _entries(code: Code) -> tuple[Tensor, Tensor]:
    """Row and unit of every entry whose value is not 0."""
    row, slot = code.value.cpu().nonzero(as_tuple=True)
    return row, code.unit.cpu()[row, slot]
