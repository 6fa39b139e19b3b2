"""Orthogonal matching pursuit and its kin: least squares on a support that grows greedily.

    S ← S ∪ arg top-L over j ∉ S of ⟨D_j, r⟩;   f = argmin ‖z − Σ_S f_j D_j‖;   r = z − Σ_S f_j D_j

L = 1 is OMP (Pati et al. 1993), L atoms at a time generalised OMP (Wang et al., arXiv 1111.6664),
L = k the one-shot refit of a top-k support. The Gram matrix of the support and its Cholesky factor
grow by rows. An atom in the span of those before it (sin² of the angle below ``COLLINEAR``) is
given coefficient 0. Work per token: k/L correlations with all atoms, O(k²·d) for the Gram matrix
and O(k³) for the factor. The small algebra runs in float64, since a Gram matrix squares the
condition of the atoms; atoms are gathered for ``CHUNK_ELEMENTS`` / (k·d) tokens at a time. Atoms
should have unit norm; nothing here is differentiable.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.ops.rows import AtomRows
from pellucid.ops.topk_encode import Sign

CHUNK_ELEMENTS = 1 << 22  # entries of gathered atoms held at once: 32 MB at fp64
COLLINEAR = 1e-10


def omp(
    z: Float[Tensor, "B d"], rows: AtomRows, k: int, sign: Sign
) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    """Units and coefficients of k ≤ n atoms picked one by one, refitted after each.

    ``abs`` picks the largest correlation in magnitude, the other signs the largest.
    """
    return gomp(z, rows, k, sign, per_iteration=1)


def oneshot(
    z: Float[Tensor, "B d"], rows: AtomRows, k: int, sign: Sign
) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    """Units and least-squares coefficients of the k ≤ n atoms that correlate most with z."""
    return gomp(z, rows, k, sign, per_iteration=max(1, k))


@torch.no_grad()
def gomp(
    z: Float[Tensor, "B d"], rows: AtomRows, k: int, sign: Sign, *, per_iteration: int
) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    """Units and coefficients of k ≤ n atoms, ``per_iteration`` picked at a time.

    A row's units differ; one that adds nothing to those before it has coefficient 0.
    """
    unit = torch.zeros(z.shape[0], k, dtype=torch.long, device=z.device)
    value = torch.zeros(z.shape[0], k, dtype=_value_type(z, rows), device=z.device)
    for part in _parts(z.shape[0], k * rows.width):
        problem = _Problem.start(z[part], k)
        residual = problem.target
        for first in range(0, k, per_iteration):
            stop = min(first + per_iteration, k)
            taken = unit[part, :first] if first else None
            picked = rows.top(residual.to(value.dtype), None, stop - first, sign, taken)
            unit[part, first:stop] = picked
            problem.append(rows.gather(picked), first, None)
            residual = problem.residual(problem.solve(stop))
        value[part] = problem.refined(k).to(value.dtype)
    return unit, value


@torch.no_grad()
def refit(
    z: Float[Tensor, "B d"],
    rows: AtomRows,
    unit: Int[Tensor, "B K"],
    keep: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B K"]:
    """The least-squares coefficients of given units, with 0 where ``keep`` is False.

    Of repeated or collinear units the first carries the coefficient, the others have 0.
    """
    size = unit.shape[1]
    value = torch.zeros(unit.shape, dtype=_value_type(z, rows), device=z.device)
    for part in _parts(z.shape[0], size * rows.width):
        problem = _Problem.start(z[part], size)
        problem.append(rows.gather(unit[part]), 0, None if keep is None else keep[part])
        value[part] = problem.refined(size).to(value.dtype)
    return value


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """A batch of least-squares problems whose atoms arrive in blocks; all tensors float64."""

    target: Tensor  # z [B, d]
    atom: Tensor  # A [B, k, d]
    factor: Tensor  # L [B, k, k], A Aᵀ = L Lᵀ; a dropped atom's row and column are the identity's
    moment: Tensor  # A z [B, k], 0 where dropped
    kept: Tensor  # bool [B, k]

    @classmethod
    def start(cls, z: Tensor, k: int) -> "_Problem":
        target = z.double()
        batch, width = z.shape
        return cls(
            target,
            target.new_zeros(batch, k, width),
            torch.eye(k, dtype=target.dtype, device=z.device).repeat(batch, 1, 1),
            target.new_zeros(batch, k),
            torch.zeros(batch, k, dtype=torch.bool, device=z.device),
        )

    def append(self, atom: Tensor, first: int, keep: Tensor | None) -> None:
        """Take atoms [B, m, d] as numbers ``first`` and following."""
        stop = first + atom.shape[1]
        self.atom[:, first:stop] = atom
        new, old = self.atom[:, first:stop], self.atom[:, :stop]
        gram = new @ old.mT
        self.moment[:, first:stop] = (new @ self.target.unsqueeze(-1)).squeeze(-1)
        for i in range(first, stop):
            wanted = None if keep is None else keep[:, i - first]
            self._border(gram[:, i - first, : i + 1], i, wanted)

    def _border(self, gram: Tensor, i: int, wanted: Tensor | None) -> None:
        """Extend the factor by row i, or drop atom i where nothing of it is new."""
        square = gram[:, i]
        known = gram[:, :i] * self.kept[:, :i]
        part = torch.linalg.solve_triangular(
            self.factor[:, :i, :i], known.unsqueeze(-1), upper=False
        ).squeeze(-1)
        rest = square - part.square().sum(-1)
        kept = rest > COLLINEAR * square
        kept = kept if wanted is None else kept & wanted
        self.kept[:, i] = kept
        self.factor[:, i, :i] = part * kept.unsqueeze(-1)
        self.factor[:, i, i] = torch.where(kept, rest, 1.0).sqrt()
        self.moment[:, i] *= kept

    def solve(self, size: int) -> Tensor:
        """Coefficients of the first ``size`` atoms, [B, size]."""
        return self._solve(self.moment[:, :size])

    def refined(self, size: int) -> Tensor:
        """The same after one step of refinement, which regains what the Gram matrix lost."""
        found = self.solve(size)
        left = (self.atom[:, :size] @ self.residual(found).unsqueeze(-1)).squeeze(-1)
        return found + self._solve(left * self.kept[:, :size])

    def residual(self, value: Tensor) -> Tensor:
        """z − Σ f_j D_j over the first atoms, [B, d]."""
        size = value.shape[1]
        return self.target - (value.unsqueeze(1) @ self.atom[:, :size]).squeeze(1)

    def _solve(self, moment: Tensor) -> Tensor:
        size = moment.shape[1]
        lower = self.factor[:, :size, :size]
        return torch.cholesky_solve(moment.unsqueeze(-1), lower).squeeze(-1)


def _value_type(z: Tensor, rows: AtomRows) -> torch.dtype:
    low = torch.promote_types(z.dtype, rows.weights.dtype)
    return torch.promote_types(low, torch.float32)


def _parts(batch: int, per_row: int) -> list[slice]:
    """Slices of rows whose gathered atoms stay within ``CHUNK_ELEMENTS``."""
    step = max(1, CHUNK_ELEMENTS // max(1, per_row))
    return [slice(i, i + step) for i in range(0, batch, step)]
