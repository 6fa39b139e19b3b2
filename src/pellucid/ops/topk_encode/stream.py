"""The k largest scores per row, from blocks of latents that are seen once and dropped.

A block's k best are merged with the k best so far, so that one block of scores exists at a time.
Within a block, scores are first reduced to the peaks of small groups:

    the k groups with the highest peaks contain the k highest scores,

since k scores (those peaks) are at least as high as anything outside. Peaks are found for many
rows at once, on vector lanes, because scores stand latents by rows; the costly selection then
sees a fraction of them. Ties go to the lower latent, of groups and of members alike, so the result
is that of a stable sort.
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.ops.product_topk import stable_topk

Sign = Literal["relu", "signed", "abs"]

GROUP = 4  # scores per peak
DIRECT = 8  # up to this many scores per kept one, select without peaks; at least GROUP


def stream_topk(
    blocks: Iterable[tuple[int, Float[Tensor, "_ B"]]],
    k: int,
    sign: Sign,
    exclude: Int[Tensor, "B t"] | None = None,
) -> Int[Tensor, "B k"]:
    """The k largest scores over blocks ``(first latent, scores [m, B])`` in ascending order.

    ``relu`` and ``signed`` rank scores as they are, ``abs`` by magnitude. Latents in ``exclude``
    are never returned; there must be k others. The blocks' scores are overwritten.
    """
    best: tuple[Tensor, Tensor] | None = None
    for start, score in blocks:
        if sign == "abs":
            score.abs_()
        if exclude is not None:
            inside = (exclude >= start) & (exclude < start + score.shape[0])
            row, column = inside.nonzero().unbind(1)
            score[exclude[row, column] - start, row] = -torch.inf
        value, latent = _largest(score, min(k, score.shape[0]))
        latent = latent + start
        if best is not None:
            value, latent = torch.cat((best[0], value), 1), torch.cat((best[1], latent), 1)
            value, latent = _sorted_best(value, latent, min(k, value.shape[1]))
        best = value, latent
    assert best is not None
    assert best[1].shape[1] == k
    return best[1]


def _largest(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each column of [m, B] with their places, both [B, k], highest first."""
    size, rows = score.shape
    if size <= DIRECT * k:
        place = torch.arange(size, device=score.device).expand(rows, size)
        return _sorted_best(score.t().contiguous(), place, k)
    if size % GROUP:
        score = F.pad(score, (0, 0, 0, GROUP - size % GROUP), value=-torch.inf)
    group = _largest(score.view(-1, GROUP, rows).amax(1), k)[1].t()
    within = torch.arange(GROUP, device=score.device).view(-1, 1)
    member = (GROUP * group.unsqueeze(1) + within).reshape(-1, rows)
    return _sorted_best(score.gather(0, member).t().contiguous(), member.t(), k)


def _sorted_best(value: Tensor, place: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of [B, m] values and their places, highest first, lower place in a tie.

    ``torch.topk`` leaves ties open. They are rare, so the slower stable selection runs for tied
    rows only.
    """
    top = value.topk(min(k + 1, value.shape[1]), dim=1)
    best_value, best_place = top.values[:, :k], place.gather(1, top.indices[:, :k])
    tied = (top.values[:, 1:] == top.values[:, :-1]).any(1).nonzero().squeeze(1)
    if tied.numel():
        ascending, order = place[tied].sort(dim=1)
        again = value[tied].gather(1, order)
        chosen = stable_topk(again, k)
        best_value[tied] = again.gather(1, chosen)
        best_place[tied] = ascending.gather(1, chosen)
    return best_value, best_place
