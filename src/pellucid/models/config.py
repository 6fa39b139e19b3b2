"""The shape of a decoder: its trunk, and the pool in each feed-forward slot."""

from dataclasses import dataclass

from pellucid.core.config import check_above_zero, check_positive
from pellucid.core.errors import ConfigError
from pellucid.pools import PoolConfig


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A pre-norm decoder. ``ffn`` holds one pool for all layers, or one per layer.

    Defaults follow Llama: RMSNorm, rotary positions, no linear biases; embeddings are tied.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    ffn: tuple[PoolConfig, ...]
    qk_norm: bool = True
    tied_embeddings: bool = True
    tied_mlp_width: int = 128
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_positive(
            self,
            "width",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "vocab_size",
            "context",
            "tied_mlp_width",
        )
        check_above_zero(self, "rope_theta", "norm_eps")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"kv_heads: expected a divisor of heads = {self.heads}, found {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim: rotary positions need an even number, found {self.head_dim}"
            )
        if len(self.ffn) not in (1, self.layers):
            raise ConfigError(
                f"ffn: expected one pool for all layers or one per layer ({self.layers}), "
                f"found {len(self.ffn)}"
            )

    def slot(self, layer: int) -> PoolConfig:
        """The pool config of one layer."""
        return self.ffn[layer if len(self.ffn) > 1 else 0]
