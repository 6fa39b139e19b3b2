"""The mean input of a site per token: what a token looks like there, averaged over contexts."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class TokenMeans:
    """Running sums of a site's rows by token. Memory: vocabulary · width."""

    def __init__(self, vocab: int, width: int) -> None:
        self.total = torch.zeros(vocab, width)
        self.count = torch.zeros(vocab, dtype=torch.int64)

    def add(self, x: Float[Tensor, "rows d"], token: Int[Tensor, " rows"]) -> None:
        self.total.index_add_(0, token, x)
        self.count += torch.bincount(token, minlength=len(self.count))

    def nearest(
        self, direction: Float[Tensor, " d"], *, listed: int, min_count: int
    ) -> list[tuple[int, float]]:
        """The ``listed`` tokens, seen often enough, whose mean has the largest cosine."""
        known = (self.count >= min_count).nonzero().squeeze(1)
        # A mean and a sum point the same way.
        cosine = F.normalize(self.total[known], dim=-1) @ F.normalize(direction, dim=0)
        top = cosine.topk(min(listed, len(known)))
        return list(zip(known[top.indices].tolist(), top.values.tolist()))
