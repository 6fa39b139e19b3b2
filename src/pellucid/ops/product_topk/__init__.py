"""The k largest sums of two score lists, found without forming all of them."""

from pellucid.ops.product_topk.fast import product_topk, stable_topk

__all__ = ["product_topk", "stable_topk"]
