"""Held-out text as windows with targets: what cross-entropy is measured on.

Windows follow one another through whole documents, so every token of them is a target exactly
once, and nats summed over the targets go with the documents' UTF-8 bytes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int32
from torch import Tensor

from pellucid.data.activations.windows import Windows
from pellucid.data.packing import IGNORED


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """Inputs [windows, context], what follows each, and the validation document of each input.

    As in evaluation batches, a target that starts a document or lies behind the last token is
    ``IGNORED``; padding, only at the end of the last window, holds the end of text and the
    document ``PADDING``. ``num_bytes`` counts the UTF-8 bytes of the scored text.
    """

    tokens: Int[Tensor, "S T"]
    targets: Int[Tensor, "S T"]
    document: Int[Tensor, "S T"]
    num_bytes: int

    @classmethod
    def of(cls, table: Int32[np.ndarray, "S 2 T"], num_bytes: int) -> "HeldOut":
        """From a table of tokens and documents: targets are the tokens one further on."""
        tokens, document = torch.from_numpy(table).long().unbind(1)
        targets = torch.full_like(tokens, IGNORED).flatten()
        flat, owner = tokens.flatten(), document.flatten()
        targets[:-1] = torch.where(owner[1:] == owner[:-1], flat[1:], IGNORED)
        targets[owner < 0] = IGNORED
        return cls(
            tokens=tokens,
            targets=targets.view_as(tokens),
            document=document,
            num_bytes=num_bytes,
        )


def held_out_table(windows: Windows) -> Int32[np.ndarray, "S 2 T"]:
    """The tokens and documents of all windows."""
    batch = windows.read(0, len(windows))
    return np.stack((batch.tokens.numpy(), batch.document.numpy()), 1).astype(np.int32)


def held_out_bytes(windows: Windows) -> int:
    """The UTF-8 bytes of the windows' documents."""
    return int(windows.split.num_bytes[windows.order].sum())
