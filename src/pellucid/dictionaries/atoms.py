"""The parameters behind encoder and decoder rows: a dense table, or the values of a sparse graph.

    dense      D_j, a free row, a unit row, or (``coordinate``) columns of unit norm per expert
    expander   D_j = γ_j · v_j / max(‖v_j‖, 1e-8) at the places N_j, |N_j| = s, which are frozen

A unit norm is kept at every step: the gradient's part along the row is removed, Adam steps, the row
is renormalised. An expander's rows are normalised where they are used, so nothing is projected; its
gradients and optimiser state are [n, s] like its values. Sources: Gao et al., "Scaling and
evaluating sparse autoencoders", arXiv 2406.04093 (unit rows); the Expander autoencoder,
arXiv 2607.01799.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.config import check_positive
from pellucid.ops.expander.mask import (
    Mask,
    authors_mask,
    clustered_mask,
    expander_mask,
    shared_mask,
)
from pellucid.ops.rows import AtomRows, DenseRows, SparseRows

TINY_NORM = 1e-8


@dataclass(frozen=True, kw_only=True)
class DenseAtomsConfig:
    """Dense rows; ``tied`` makes the encoder read along the decoder's rows.

    ``norm`` is the constraint on decoder rows: ``unit``, ``free``, or ``coordinate``, which
    normalises each input coordinate over an expert's latents, as the released Scale trainer does.
    """

    kind: Literal["dense"] = "dense"
    tied: bool = False
    norm: Literal["unit", "free", "coordinate"] = "unit"


@dataclass(frozen=True, kw_only=True)
class ExpanderAtomsConfig:
    """Rows with ``nonzeros`` entries at places that ``mask`` and ``mask_seed`` decide for good.

    ``hash`` and ``authors`` draw every row's places alone; ``clustered`` and ``shared`` (``group``
    rows on each support) are controls. ``stored`` writes the places into checkpoints; without it
    they are drawn again from the seed. A transcoder has two masks unless ``share_support``.
    """

    kind: Literal["expander"] = "expander"
    nonzeros: int = 7
    mask: Literal["hash", "authors", "clustered", "shared"] = "hash"
    mask_seed: int = 0
    group: int = 16
    stored: bool = False
    share_support: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "nonzeros", "group")


AtomsConfig = DenseAtomsConfig | ExpanderAtomsConfig


class Atoms(nn.Module, ABC):
    """n rows of width d with their constraint."""

    @abstractmethod
    def rows(self) -> AtomRows:
        """The rows as they act, constraint included."""

    @abstractmethod
    def before_step(self) -> None:
        """Remove from the gradient what the constraint would undo."""

    @abstractmethod
    def after_step(self) -> None:
        """Restore the constraint."""

    @abstractmethod
    def aim(self, unit: Int[Tensor, " m"], direction: Float[Tensor, "m d"]) -> None:
        """Turn the named rows towards the directions."""

    @abstractmethod
    def table(self) -> nn.Parameter:
        """The parameter with one row per latent."""


class DenseAtoms(Atoms):
    """A table [n, d] in ``groups`` equal blocks (experts), which only ``coordinate`` looks at."""

    def __init__(
        self, weight: Float[Tensor, "n d"], norm: Literal["unit", "free", "coordinate"], groups: int
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self._norm = norm
        self._groups = groups
        self.after_step()

    def rows(self) -> DenseRows:
        return DenseRows(self.weight)

    @torch.no_grad()
    def before_step(self) -> None:
        grad = self.weight.grad
        if self._norm == "free" or grad is None:
            return
        # The released trainer projects along rows, whatever it normalises.
        row = self.weight / self.weight.norm(dim=1, keepdim=True).clamp_min(TINY_NORM)
        grad.sub_((grad * row).sum(1, keepdim=True) * row)

    @torch.no_grad()
    def after_step(self) -> None:
        if self._norm == "unit":
            self.weight.div_(self.weight.norm(dim=1, keepdim=True).clamp_min(TINY_NORM))
        elif self._norm == "coordinate":
            blocks = self.weight.view(self._groups, -1, self.weight.shape[1])
            blocks.div_(blocks.norm(dim=1, keepdim=True).clamp_min(TINY_NORM))

    @torch.no_grad()
    def aim(self, unit: Int[Tensor, " m"], direction: Float[Tensor, "m d"]) -> None:
        norm = direction.norm(dim=1, keepdim=True).clamp_min(TINY_NORM)
        self.weight[unit] = direction / norm

    def table(self) -> nn.Parameter:
        return self.weight


class ExpanderAtoms(Atoms):
    """Values [n, s] on a frozen graph; ``gain`` (γ) lets a transcoder's rows start at 0."""

    index: Tensor

    def __init__(self, mask: Mask, width: int, *, stored: bool, gain: bool = False) -> None:
        super().__init__()
        num, nonzeros = mask.index.shape
        self.mask = mask
        self._width = width
        self.register_buffer("index", mask.index, persistent=stored)
        self.values = nn.Parameter(torch.randn(num, nonzeros) / nonzeros**0.5)
        self.gain = nn.Parameter(torch.zeros(num)) if gain else None

    def rows(self) -> SparseRows:
        norm = self.values.norm(dim=1, keepdim=True).clamp_min(TINY_NORM)
        values = self.values / norm
        if self.gain is not None:
            values = values * self.gain.unsqueeze(1)
        return SparseRows(values, self.index, self._width)

    def before_step(self) -> None:
        """Rows are normalised where they are used: no part of the gradient is lost."""

    def after_step(self) -> None:
        """Rows are normalised where they are used."""

    @torch.no_grad()
    def aim(self, unit: Int[Tensor, " m"], direction: Float[Tensor, "m d"]) -> None:
        values = direction.gather(1, self.index[unit].long())
        norm = values.norm(dim=1, keepdim=True).clamp_min(TINY_NORM)
        self.values[unit] = values / norm / self.values.shape[1] ** 0.5

    def table(self) -> nn.Parameter:
        return self.values


def draw_mask(config: ExpanderAtomsConfig, num: int, width: int, *, salt: int = 0) -> Mask:
    """The graph that a config names, for ``num`` rows of ``width``; ``salt`` makes it another."""
    s, seed = config.nonzeros, config.mask_seed + salt
    match config.mask:
        case "hash":
            return expander_mask(num, s, width, seed)
        case "authors":
            return authors_mask(num, s, width, seed)
        case "clustered":
            return clustered_mask(num, s, width, seed)
        case "shared":
            return shared_mask(num, s, width, seed, config.group)
