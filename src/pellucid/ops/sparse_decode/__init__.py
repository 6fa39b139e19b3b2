"""Products between rows of a table and a sparse list of row indices."""

from pellucid.ops.sparse_decode.fast import segment_outer, sparse_decode, sparse_read

__all__ = ["segment_outer", "sparse_decode", "sparse_read"]
