"""The config under which transformers knows our decoder: ``model_type`` "pellucid".

The exact ``TransformerConfig`` travels as the nested value ``transformer``. The fields that other
tools look for stand beside it under transformers' names and win where the two differ, because
transformers itself changes some of them (resizing the embedding changes ``vocab_size``).
"""

import copy
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.models.config import TransformerConfig
from pellucid.pools.dense import DenseConfig

# (transformers' name, ours)
SHARED_FIELDS = (
    ("hidden_size", "width"),
    ("num_hidden_layers", "layers"),
    ("num_attention_heads", "heads"),
    ("num_key_value_heads", "kv_heads"),
    ("head_dim", "head_dim"),
    ("vocab_size", "vocab_size"),
    ("max_position_embeddings", "context"),
    ("tie_word_embeddings", "tied_embeddings"),
    ("rms_norm_eps", "norm_eps"),
)


class PellucidConfig(PreTrainedConfig):
    """``transformer`` is the plain value of a ``TransformerConfig``; without it, a small one.

    ``kwargs`` are transformers' own fields, and any of ``SHARED_FIELDS`` by transformers' name.
    What a file holds is checked by ``transformer_config`` alone, which knows the file's name.
    """

    model_type = "pellucid"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(self, transformer: Any = None, **kwargs: Any) -> None:
        self.transformer = to_dict(_small()) if transformer is None else copy.deepcopy(transformer)
        plain = self.transformer if isinstance(self.transformer, dict) else {}
        self.use_cache = kwargs.pop("use_cache", True)
        for theirs, ours in SHARED_FIELDS:
            setattr(self, theirs, kwargs.pop(theirs, plain.get(ours)))
        super().__init__(**kwargs)

    @classmethod
    def of(cls, config: TransformerConfig, *, tokens_end: int | None = None) -> "PellucidConfig":
        """The config of one of our decoders; ``tokens_end`` starts, ends and pads documents."""
        return cls(
            to_dict(config),
            bos_token_id=tokens_end,
            eos_token_id=tokens_end,
            pad_token_id=tokens_end,
        )

    def transformer_config(self, *, where: str = "config.json") -> TransformerConfig:
        """The ``TransformerConfig``; ``where`` names the file in its ``ConfigError``."""
        if not isinstance(self.transformer, dict):
            raise ConfigError(
                f"{where}: transformer: expected an object, found {self.transformer!r}; export the "
                "model again"
            )
        shared = {ours: getattr(self, theirs) for theirs, ours in SHARED_FIELDS}
        return from_dict(TransformerConfig, {**self.transformer, **shared}, where=where)


def _small() -> TransformerConfig:
    return TransformerConfig(
        width=128,
        layers=2,
        heads=4,
        kv_heads=4,
        head_dim=32,
        vocab_size=2048,
        context=256,
        ffn=(DenseConfig(),),
    )
