"""The k largest of all n·m sums by one full sort: the oracle, never the path that runs."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def stable_topk(score: Float[Tensor, "*rows n"], k: int) -> Int[Tensor, "*rows k"]:
    """Indices of the k largest scores, highest first; the lower index wins a tie."""
    return torch.sort(score, dim=-1, descending=True, stable=True).indices[..., :k]


def product_topk(
    first: Float[Tensor, "*rows n"], second: Float[Tensor, "*rows m"], k: int
) -> tuple[Float[Tensor, "*rows k"], Int[Tensor, "*rows k"], Int[Tensor, "*rows k"]]:
    """The k largest first_i + second_j with their i and j, highest first.

    Both lists are ranked first, so that a tie between sums goes to the better rank in ``first``,
    then in ``second``.
    """
    rank_i = stable_topk(first, first.shape[-1])
    rank_j = stable_topk(second, second.shape[-1])
    sums = first.gather(-1, rank_i).unsqueeze(-1) + second.gather(-1, rank_j).unsqueeze(-2)
    best = stable_topk(sums.flatten(-2), k)
    i = rank_i.gather(-1, torch.div(best, second.shape[-1], rounding_mode="floor"))
    j = rank_j.gather(-1, best % second.shape[-1])
    return sums.flatten(-2).gather(-1, best), i, j
