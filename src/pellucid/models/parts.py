"""What ``Transformer`` and its twin under transformers' names build, and how they start.

Trunk matrices ~ N(0, 0.02²), attention outputs divided by √(2 · layers). Embeddings ~ N(0, 1 /
width): tied, they start logits at unit scale, and a token stays visible in the residual stream
beside what the slots write there, at an RMS of 0.25 / √(2 · layers) each.
"""

from torch import nn

from pellucid.models.config import TransformerConfig
from pellucid.nn.attention import Attention
from pellucid.pools import Pool, PoolConfig, TiedMLP
from pellucid.pools.hierarchy import HierarchyConfig

MATRIX_STD = 0.02
SLOTS_RMS = 0.25


def attention_of(config: TransformerConfig, layer: int) -> Attention:
    """The attention of one layer."""
    return Attention(
        config.width,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        qk_norm=config.qk_norm,
        layer=layer,
        eps=config.norm_eps,
    )


def slot_of(config: TransformerConfig, layer: int, name: str, tied: nn.Module | None) -> Pool:
    """The pool of one layer, whose module path in the model is ``name``."""
    return config.slot(layer).build(
        name=name,
        width=config.width,
        output_rms=SLOTS_RMS / (2 * config.layers) ** 0.5,
        tied=tied,
    )


def wants_tied_mlp(slot: PoolConfig) -> bool:
    """Whether a slot uses the MLP that is tied across layers."""
    return isinstance(slot, HierarchyConfig) and slot.shared == "tied_mlp"


def tied_mlp_of(config: TransformerConfig) -> TiedMLP | None:
    """The tied MLP, where some slot uses it."""
    if not any(map(wants_tied_mlp, config.ffn)):
        return None
    return TiedMLP(config.width, config.tied_mlp_width)


def weight_std(module: nn.Linear | nn.Embedding) -> float:
    """The deviation at which a matrix of the trunk starts."""
    return module.embedding_dim**-0.5 if isinstance(module, nn.Embedding) else MATRIX_STD


def draw(module: nn.Linear | nn.Embedding) -> None:
    """Draw one matrix of the trunk."""
    nn.init.normal_(module.weight, std=weight_std(module))


def draw_attention(attention: Attention, layers: int) -> None:
    """Draw the four matrices of one attention among ``layers``."""
    for linear in (attention.query, attention.key, attention.value):
        draw(linear)
    nn.init.normal_(attention.out.weight, std=weight_std(attention.out) / (2 * layers) ** 0.5)
