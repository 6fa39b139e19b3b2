"""The k largest of all scores by one product and one full sort: the oracle."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.ops.topk_encode.stream import Sign


def topk_encode(
    z: Float[Tensor, "B d"],
    table: Float[Tensor, "n d"],
    bias: Float[Tensor, " n"] | None,
    k: int,
    sign: Sign,
    exclude: Int[Tensor, "B t"] | None = None,
) -> Int[Tensor, "B k"]:
    """The k latents with the largest W z + bias per row, highest first, lower latent in a tie."""
    score = z @ table.t() if bias is None else z @ table.t() + bias
    score = score.abs() if sign == "abs" else score
    if exclude is not None:
        score = score.scatter(1, exclude, -torch.inf)
    return torch.sort(score, dim=1, descending=True, stable=True).indices[:, :k]
