"""Every pool that can fill a feed-forward slot.

To add one: a file with its config and its module, one line in ``POOLS`` and in ``PoolConfig``. The
laws in ``tests/test_laws.py`` then run over it.
"""

from pellucid.pools.dense import DenseConfig, SwiGLUConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.pools.monet_hd import MonetHDConfig
from pellucid.pools.monet_vd import MonetVDConfig
from pellucid.pools.peer import PeerConfig
from pellucid.pools.pool import Pool
from pellucid.pools.pooled_peer import PooledPeerConfig
from pellucid.pools.shared import TiedMLP
from pellucid.pools.topk_mlp import TopKMLPConfig

PoolConfig = (
    DenseConfig
    | SwiGLUConfig
    | TopKMLPConfig
    | PeerConfig
    | MonetHDConfig
    | MonetVDConfig
    | HierarchyConfig
    | PooledPeerConfig
)

POOLS: tuple[type[PoolConfig], ...] = (
    DenseConfig,
    SwiGLUConfig,
    TopKMLPConfig,
    PeerConfig,
    MonetHDConfig,
    MonetVDConfig,
    HierarchyConfig,
    PooledPeerConfig,
)

__all__ = ["POOLS", "Pool", "PoolConfig", "TiedMLP"]
