"""Documents grouped by the file, book or page that they are pieces of.

Pieces of one parent share its author and subject. Statistics that took them for independent would
find in one half what they chose on the other, and nulls that dealt their labels apart would be
narrower than chance. So halves and permutations move whole parents.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.data.store import Split
from pellucid.data.text import parent_of


@dataclass(frozen=True, slots=True)
class Parents:
    """The parent of every document, and the domain of every parent.

    Parents are numbered as they appear in the split, so where each has one piece a parent's number
    is its document's. Pieces of one parent in two domains count as two parents.
    """

    of: Int[Tensor, " documents"]
    domain: Int[Tensor, " parents"]


def group_by_parent(split: Split) -> Parents:
    """The parents behind a split's documents, by ``data.text.parent_of``."""
    known: dict[tuple[str, int], int] = {}
    named = zip(map(parent_of, split.ids), split.domain.tolist())
    of = [known.setdefault(parent, len(known)) for parent in named]
    return Parents(
        of=torch.tensor(of, dtype=torch.int64),
        domain=torch.tensor([domain for _, domain in known], dtype=torch.int64),
    )
