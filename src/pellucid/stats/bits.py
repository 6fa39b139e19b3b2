"""Bits per byte: what a model pays for text, whatever its tokenizer.

    bits per byte = Σ nats / (ln 2 · Σ bytes)

Bytes are those of the UTF-8 text that the scored tokens spell; special tokens spell none.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.errors import DataError


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Total loss in nats over ``num_bytes`` bytes of text, in bits per byte."""
    if num_bytes < 1:
        raise DataError("bits per byte: expected at least one byte of text, found none; add text")
    return nats / (math.log(2.0) * num_bytes)


def bits_per_byte_by_domain(
    nats: Float[Tensor, " n"],
    num_bytes: Int[Tensor, " n"],
    domain: Int[Tensor, " n"],
    *,
    domains: int,
) -> Float[Tensor, " domains"]:
    """The same per domain, for n tokens or documents; NaN for a domain without bytes."""
    loss = torch.zeros(domains, dtype=torch.float64).index_add_(0, domain, nats.double())
    text = torch.zeros(domains, dtype=torch.float64).index_add_(0, domain, num_bytes.double())
    # Where tokens spell nothing, their loss over no bytes would be infinite.
    return loss / (math.log(2.0) * text).masked_fill(text == 0, math.nan)
