"""The k latents with the largest scores, block by block, in one reused buffer.

    unit_b = arg top-k over j of  W_j · z_b + bias_j      (of its magnitude for ``abs``)

Work O(B·n·d) as matrix products; memory one buffer of ``CHUNK_ELEMENTS`` scores instead of
[B, n]. Selection has no gradient: the caller reads the chosen latents again with
``sparse_read``, so that only k of n scores carry one.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.ops.topk_encode.stream import Sign, stream_topk

CHUNK_ELEMENTS = 1 << 22  # scores held at once: 16 MB at fp32
CHUNK_ROWS = 256  # enough rows for a matrix product at full speed


@torch.no_grad()
def topk_encode(
    z: Float[Tensor, "B d"],
    table: Float[Tensor, "n d"],
    bias: Float[Tensor, " n"] | None,
    k: int,
    sign: Sign,
    exclude: Int[Tensor, "B t"] | None = None,
) -> Int[Tensor, "B k"]:
    """The k ≤ n latents with the largest W z + bias per row, highest first, lower one in a tie.

    ``relu`` and ``signed`` rank scores as they are, ``abs`` by magnitude. ``exclude`` names
    latents per row that are left out; k others must remain. Not differentiable.
    """
    rows, latents = z.shape[0], table.shape[0]
    if rows == 0 or k == 0:
        return torch.zeros(rows, k, dtype=torch.long, device=z.device)
    step = min(rows, max(CHUNK_ROWS, CHUNK_ELEMENTS // latents))
    block = min(latents, max(1, CHUNK_ELEMENTS // step))
    buffer = table.new_empty(step * block)
    found = []
    for i in range(0, rows, step):
        z_T = z[i : i + step].to(table.dtype).t()
        blocks = (
            (first, _score(z_T, table[first : first + block], bias, first, buffer))
            for first in range(0, latents, block)
        )
        left_out = None if exclude is None else exclude[i : i + step]
        found.append(stream_topk(blocks, k, sign, left_out))
    return torch.cat(found)


def _score(z_T: Tensor, part: Tensor, bias: Tensor | None, first: int, buffer: Tensor) -> Tensor:
    """Scores of a block, latents by rows, in the buffer where they may stay in its type."""
    out = buffer[: part.shape[0] * z_T.shape[1]].view(part.shape[0], z_T.shape[1])
    torch.mm(part, z_T, out=out)
    out = out.to(torch.promote_types(out.dtype, torch.float32))
    return out if bias is None else out.add_(bias[first : first + part.shape[0]].unsqueeze(1))
