"""The strongest units of each token's open pools."""

from pellucid.ops.pool_mlp.fast import Score, pool_select

__all__ = ["Score", "pool_select"]
