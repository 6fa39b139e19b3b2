"""Held-out documents in two halves: units are chosen on the first and shown on the second.

The most selective of thousands of units look selective by luck as well. On documents that took no
part in the choice that luck is gone, and what is printed is an honest estimate.
"""

import torch
from jaxtyping import Int
from torch import Tensor

CHOOSE, SHOW = 0, 1


def document_halves(domain: Int[Tensor, " documents"]) -> Int[Tensor, " documents"]:
    """``CHOOSE`` or ``SHOW`` for each document: the documents of a domain in turn."""
    half = torch.empty_like(domain)
    for label in domain.unique():
        where = (domain == label).nonzero().squeeze(1)
        half[where] = torch.arange(len(where)) % 2
    return half
