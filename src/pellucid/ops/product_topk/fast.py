"""The k largest sums of two score lists: exact, from about k·ln k of the n·m pairs.

    r_i + t_j is among the k largest only if (rank of i)·(rank of j) ≤ k, ranks from 1,

because every pair with both ranks no worse has a sum no smaller, also after rounding. At k = 16
that leaves 50 pairs (Lample et al., "Large Memory Layers with Product Keys", 1907.05242, sum all
k² = 256). Work per row: two top-k of the lists and one of the pairs.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def stable_topk(score: Float[Tensor, "*rows n"], k: int) -> Int[Tensor, "*rows k"]:
    """Indices of the k largest scores, highest first; the lower index wins a tie.

    ``torch.topk`` leaves ties open. Here a score of at most 32 bits and its index share one
    64-bit integer, which has no ties; float64 takes a stable sort. Not differentiable.
    """
    score = score.detach()
    if score.dtype == torch.float64:
        return torch.sort(score, dim=-1, descending=True, stable=True).indices[..., :k]
    # Adding zero turns -0.0 into 0.0, which compares equal but has other bits.
    bits = (score.float() + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers, in the order of the floats
    last = score.shape[-1] - 1
    place = torch.arange(last, -1, -1, device=score.device)
    key = ordered.long().mul_(1 << 32).add_(place)
    return last - (key.topk(k, dim=-1).values & 0xFFFFFFFF)


def product_topk(
    first: Float[Tensor, "*rows n"], second: Float[Tensor, "*rows m"], k: int
) -> tuple[Float[Tensor, "*rows k"], Int[Tensor, "*rows k"], Int[Tensor, "*rows k"]]:
    """The k ≤ n·m largest first_i + second_j with their i and j, highest first.

    Within a list the lower index wins a tie; between equal sums the better rank in ``first``,
    then in ``second``. Differentiable in both lists through the returned sums.
    """
    rank_i = stable_topk(first, min(k, first.shape[-1]))
    rank_j = stable_topk(second, min(k, second.shape[-1]))
    a, b = _staircase(k, rank_i.shape[-1], rank_j.shape[-1], first.device)
    with torch.no_grad():
        sums = first.gather(-1, rank_i)[..., a] + second.gather(-1, rank_j)[..., b]
    best = stable_topk(sums, k)
    i, j = rank_i.gather(-1, a[best]), rank_j.gather(-1, b[best])
    return _Pick.apply(first, i) + _Pick.apply(second, j), i, j


def _staircase(
    k: int, n: int, m: int, device: torch.device
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """The ranks (from 0) of all pairs that can be among the k largest, in lexicographic order."""
    pairs = [(a, b) for a in range(min(k, n)) for b in range(min(k // (a + 1), m))]
    a, b = torch.tensor(pairs, device=device).unbind(1)
    return a, b


class _Pick(torch.autograd.Function):
    """``gather`` on the last axis that keeps the indices for its gradient, not the scores."""

    @staticmethod
    def forward(ctx, score: Tensor, index: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(index)
        ctx.width = score.shape[-1]
        return score.gather(-1, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN001  # pyright: ignore[reportIncompatibleMethodOverride]
        (index,) = ctx.saved_tensors
        zeros = grad.new_zeros(*index.shape[:-1], ctx.width)
        return zeros.scatter_add_(-1, index, grad), None
