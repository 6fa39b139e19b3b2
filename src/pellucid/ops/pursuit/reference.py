"""The same pursuits, one token at a time on the dense table: the oracle.

``omp`` solves each least-squares problem afresh; ``matching_pursuit`` leaves the gradient to
autograd.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.ops.topk_encode import Sign


def gomp(
    z: Float[Tensor, "B d"], table: Float[Tensor, "n d"], k: int, sign: Sign, *, per_iteration: int
) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
    """Units and coefficients of k atoms, ``per_iteration`` at a time."""
    unit = torch.zeros(z.shape[0], k, dtype=torch.long)
    value = z.new_zeros(z.shape[0], k)
    for b in range(z.shape[0]):
        support: list[int] = []
        residual, found = z[b], z.new_zeros(0)
        while len(support) < k:
            score = table @ residual
            score = score.abs() if sign == "abs" else score
            score[support] = -torch.inf
            order = torch.sort(score, descending=True, stable=True).indices
            support += order[: min(per_iteration, k - len(support))].tolist()
            found = lstsq(z[b], table[support])
            residual = z[b] - found @ table[support]
        unit[b], value[b] = torch.tensor(support), found
    return unit, value


def lstsq(z: Float[Tensor, " d"], atoms: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
    """The shortest f that minimises ‖z − Σ f_j D_j‖, by singular values."""
    return torch.linalg.pinv(atoms.t()) @ z


def matching_pursuit(
    z: Float[Tensor, "B d"],
    table: Float[Tensor, "n d"],
    steps: int,
    *,
    threshold: float = 0.0,
    stop_on_duplicate: bool = False,
) -> Float[Tensor, "B n"]:
    """The dense code after at most ``steps`` steps, differentiable in both arguments."""
    codes = []
    for b in range(z.shape[0]):
        residual, code = z[b], z.new_zeros(table.shape[0])
        for _ in range(steps):
            j = int((table @ residual).argmax())
            gain = (table[j] @ residual).relu()
            repeated = bool(code[j] != 0) or bool(gain == 0)
            code = code.index_add(0, torch.tensor([j]), gain.unsqueeze(0))
            residual = residual - gain * table[j]
            if residual.norm() < threshold or (stop_on_duplicate and repeated):
                break
        codes.append(code)
    return torch.stack(codes) if codes else z.new_zeros(0, table.shape[0])
