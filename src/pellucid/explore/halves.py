"""Held-out documents in two halves: units are chosen on the first and shown on the second.

The most selective of thousands of units look selective by luck as well. On documents that took no
part in the choice that luck is gone, and what is printed is an honest estimate. Pieces of one
parent are alike, so whole parents (``explore.parents``) are dealt.
"""

import torch
from jaxtyping import Int
from torch import Tensor

CHOOSE, SHOW = 0, 1
UNSEEN = -1


class Halves:
    """Deals the parents of each domain to ``CHOOSE`` and ``SHOW`` in turn, as they appear.

    The same text in the same order gives the same halves, however it is cut into batches. A domain
    of one parent is only chosen on, never shown.
    """

    def __init__(self, domain: Int[Tensor, " parents"]) -> None:
        self._domain = domain
        self._half = torch.full_like(domain, UNSEEN)
        self._next: dict[int, int] = {}

    def of(self, parent: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The half of each of n parents, dealt on first sight."""
        for name in dict.fromkeys(parent[self._half[parent] == UNSEEN].tolist()):
            label = int(self._domain[name])
            self._half[name] = self._next.get(label, CHOOSE)
            self._next[label] = SHOW if self._half[name] == CHOOSE else CHOOSE
        return self._half[parent]
