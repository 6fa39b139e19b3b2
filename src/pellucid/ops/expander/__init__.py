"""Rows with s non-zeros at fixed places: their products, their masks, and how they expand."""

from pellucid.ops.expander.diagnostics import (
    Diagnostics,
    Flatness,
    counting_bound,
    diagnose,
    expansion,
    flatness,
)
from pellucid.ops.expander.fast import (
    expander_decode,
    expander_gather,
    expander_outer,
    expander_read,
)
from pellucid.ops.expander.mask import (
    Mask,
    Repair,
    authors_mask,
    clustered_mask,
    expander_atom,
    expander_mask,
    index_dtype,
    mask_checksum,
    pruned_mask,
    shared_mask,
)
from pellucid.ops.expander.scan import expander_all, expander_combine, expander_topk

__all__ = [
    "Diagnostics",
    "Flatness",
    "Mask",
    "Repair",
    "authors_mask",
    "clustered_mask",
    "counting_bound",
    "diagnose",
    "expander_all",
    "expander_atom",
    "expander_combine",
    "expander_decode",
    "expander_gather",
    "expander_mask",
    "expander_outer",
    "expander_read",
    "expander_topk",
    "expansion",
    "flatness",
    "index_dtype",
    "mask_checksum",
    "pruned_mask",
    "shared_mask",
]
