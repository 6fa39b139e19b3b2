"""Feature scaling: each expert's rows are pushed away from their common direction.

    ŵ_j = (1 + ω_i) w_j − ω_i Λ w̄_i,     w̄_i = mean of the rows of expert i,  j ∈ i

Rows of E experts lie in E equal blocks. Ŵ is linear in W and can be undone where 1 + ω_i ≠ 0 and
(1 + ω_i) I − ω_i Λ is regular: w̄_i follows from the mean of the scaled rows, which is
((1 + ω_i) I − ω_i Λ) w̄_i, and each row from w̄_i. So scaling changes how W is reached by training,
not which Ŵ exist. Cost O(n·d + E·d²). Source: the Scale SAE, arXiv 2511.05745.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.ops.rows import AtomRows, DenseRows, SparseRows


def block_means(rows: AtomRows, blocks: int) -> Float[Tensor, "E d"]:
    """The mean row of each of ``blocks`` equal blocks, dense."""
    size = rows.num // blocks
    if isinstance(rows, SparseRows):
        block = torch.arange(rows.num, device=rows.values.device) // size
        place = block.unsqueeze(1) * rows.width + rows.index.long()
        total = rows.values.new_zeros(blocks * rows.width)
        total = total.index_add(0, place.reshape(-1), rows.values.reshape(-1))
        return total.view(blocks, rows.width) / size
    return rows.weights.view(blocks, size, -1).mean(1)


def scale_rows(
    rows: AtomRows, omega: Float[Tensor, " E"], low_pass: Float[Tensor, "d d"]
) -> AtomRows:
    """Ŵ as rows of the same kind.

    Sparse rows read the low-pass term Λ w̄_i at their own places only, which keeps them sparse.
    """
    size = rows.num // omega.shape[0]
    taken = omega.unsqueeze(1) * (block_means(rows, omega.shape[0]) @ low_pass.T)
    kept = (1 + omega).repeat_interleave(size).unsqueeze(1)
    taken = taken.repeat_interleave(size, dim=0) if isinstance(rows, DenseRows) else taken
    if isinstance(rows, SparseRows):
        block = torch.arange(rows.num, device=rows.values.device) // size
        taken = taken[block.unsqueeze(1), rows.index.long()]
    return rows.with_weights(kept * rows.weights - taken)


def unscale_rows(
    scaled: Float[Tensor, "n d"], omega: Float[Tensor, " E"], low_pass: Float[Tensor, "d d"]
) -> Float[Tensor, "n d"]:
    """W from Ŵ, for dense rows. Error: an expert whose scaling lost something."""
    blocks = scaled.view(omega.shape[0], -1, scaled.shape[1])
    eye = torch.eye(scaled.shape[1], dtype=scaled.dtype, device=scaled.device)
    factor = omega[:, None, None]
    means, failed = torch.linalg.solve_ex((1 + factor) * eye - factor * low_pass, blocks.mean(1))
    lost = ((failed != 0) | (omega == -1)).nonzero().flatten().tolist()
    if lost:
        raise ConfigError(
            "omega: expected 1 + omega and (1 + omega) I - omega low_pass to be invertible, found "
            f"otherwise in experts {lost}; keep the scaled rows"
        )
    taken = omega.unsqueeze(1) * (means @ low_pass.T)
    return ((blocks + taken.unsqueeze(1)) / (1 + factor)).reshape(scaled.shape)
