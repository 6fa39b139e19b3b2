"""Named sizes and architectures, and the matching of one slot's cost to another's.

Every preset has the same flagship slot: 64 pools of ``width`` units, 8 open, k = 12, silent units
revived. The dense twin's hidden size follows from it, f = (P + e·n + k) / 2, so that both cost the
same forward FLOPs per token; so does every other slot's free size, found by ``match``.
"""

from dataclasses import replace

from pellucid.core.errors import ConfigError, nearest
from pellucid.models.config import TransformerConfig
from pellucid.pools import PoolConfig
from pellucid.pools.dense import DenseConfig, SwiGLUConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.pools.monet_hd import MonetHDConfig
from pellucid.pools.monet_vd import MonetVDConfig
from pellucid.pools.peer import PeerConfig
from pellucid.pools.pooled_peer import PooledPeerConfig
from pellucid.pools.topk_mlp import TopKMLPConfig

REVIVE, REVIVE_AFTER = 0.01, 100  # per step, after so many silent steps
TOLERANCE = 0.02  # two slots within 2 % of each other's FLOPs count as matched

# width, layers, heads, kv_heads, head_dim, vocab_size, context, tied, rope_theta
_SIZES = {
    "demo": (128, 2, 4, 4, 32, 2_048, 256, True, 1e4),
    "tiny": (128, 4, 4, 4, 32, 4_096, 512, True, 1e4),
    "small": (256, 8, 4, 4, 64, 16_384, 1_024, True, 1e4),
    "base": (512, 12, 8, 8, 64, 16_384, 1_024, True, 1e4),
    "large": (1_024, 24, 16, 16, 64, 32_768, 2_048, True, 1e4),
    "1b": (2_048, 22, 16, 4, 128, 32_768, 4_096, True, 5e5),
    "8b": (4_096, 42, 32, 8, 128, 65_536, 8_192, False, 5e5),
}
PRESETS = tuple(_SIZES)
ARCHITECTURES = (
    "dense",
    "swiglu",
    "topk-mlp",
    "peer",
    "monet-hd",
    "monet-vd",
    "pools",
    "pooled-peer",
)


def preset(architecture: str, size: str) -> TransformerConfig:
    """The decoder of one architecture at one size, its slot matched to the flagship's FLOPs."""
    if size not in _SIZES:
        raise ConfigError(f"preset {size!r}: {nearest(size, _SIZES)}")
    width, layers, heads, kv_heads, head_dim, vocab, context, tied, theta = _SIZES[size]
    return TransformerConfig(
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        context=context,
        tied_embeddings=tied,
        rope_theta=theta,
        ffn=(slot(architecture, width),),
    )


def slot(architecture: str, width: int) -> PoolConfig:
    """One architecture's slot at a width, matched to the flagship's forward FLOPs."""
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"architecture {architecture!r}: {nearest(architecture, ARCHITECTURES)}")
    flagship = HierarchyConfig(
        pools=64, slots=width, open_pools=8, k=12, revive=REVIVE, revive_after=REVIVE_AFTER
    )
    if architecture == "pools":
        return flagship
    return match(_unmatched(architecture, width), width, flagship.cost(width).forward)


def match(config: PoolConfig, width: int, forward: int) -> PoolConfig:
    """The config with its free size set so that its forward FLOPs come closest to ``forward``.

    The free size is f of dense slots and of the top-k MLP, k of PEER, n of MONET, the units per
    pool of pooled PEER and of hierarchical pools. ``config`` holds its smallest allowed value; cost
    grows with it, so it is found by bisection.
    """
    low, high = config.free_size, 2 * config.free_size
    while config.with_size(high).cost(width).forward < forward:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if config.with_size(middle).cost(width).forward < forward:
            low = middle
        else:
            high = middle
    return min(
        (config.with_size(size) for size in (low, high)),
        key=lambda candidate: abs(candidate.cost(width).forward - forward),
    )


def _unmatched(architecture: str, width: int) -> PoolConfig:
    units = 64 * width
    shapes: dict[str, PoolConfig] = {
        "dense": DenseConfig(hidden=1),
        "swiglu": SwiGLUConfig(hidden=1),
        "topk-mlp": TopKMLPConfig(hidden=12, k=12),
        "peer": PeerConfig(experts=round(units**0.5) ** 2, heads=8, k=1, key_width=width // 4),
        "monet-hd": MonetHDConfig(side=8, neurons=8, heads=4, kept=1),
        "monet-vd": MonetVDConfig(side=8, neurons=8, heads=4, kept=1),
        "pooled-peer": PooledPeerConfig(
            pools=64, slots=2, heads=4, key_width=width // 8, open_pools=8, k=12
        ),
    }
    return shapes[architecture]


def with_slots(config: TransformerConfig, *slots: PoolConfig) -> TransformerConfig:
    """The same trunk with other slots: one for all layers, or one per layer."""
    return replace(config, ffn=slots)
