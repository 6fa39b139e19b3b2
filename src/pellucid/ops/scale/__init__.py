"""Feature scaling: the rows of an expert less their common direction."""

from pellucid.ops.scale.reference import block_means, scale_rows, unscale_rows

__all__ = ["block_means", "scale_rows", "unscale_rows"]
