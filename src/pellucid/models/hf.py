"""Our decoder as a model of transformers, and any model of transformers as a ``Host``.

Importing this module registers ``PellucidForCausalLM``, after which the Auto classes load what
``export_pretrained`` wrote. Blocks stand at ``model.layers.L`` with the pool at
``model.layers.L.mlp``, where other tools look for it. Attention, norms and pools are the same
modules as in ``Transformer``, so the logits are bit-equal; keys and values go into transformers'
caches.

Pools' auxiliary losses are not part of ``loss``, and ``after_step`` is not called: pools are to be
trained by pellucid's own loop.
"""

from abc import ABC
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from pellucid.core.errors import CheckpointError
from pellucid.models.config import TransformerConfig
from pellucid.models.hf_config import PellucidConfig
from pellucid.models.hf_files import WEIGHTS, export_pretrained, load_transformer
from pellucid.models.hf_host import HuggingFaceHost
from pellucid.models.parts import (
    attention_of,
    draw,
    draw_attention,
    slot_of,
    tied_mlp_of,
    weight_std,
)
from pellucid.nn.attention import Attention, Remember
from pellucid.nn.norm import RMSNorm
from pellucid.nn.rope import rope_angles

__all__ = [
    "HuggingFaceHost",
    "PellucidConfig",
    "PellucidForCausalLM",
    "PellucidModel",
    "export_pretrained",
    "load_transformer",
    "register",
]

MARK = "_is_hf_initialized"  # transformers' mark on tensors and modules that need no drawing


class PellucidLayer(nn.Module):
    """One pre-norm block under transformers' names; ``name`` is its module path in the model."""

    def __init__(
        self, config: TransformerConfig, layer: int, name: str, tied: nn.Module | None
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = attention_of(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = slot_of(config, layer, f"{name}.mlp", tied)

    def forward(
        self,
        x: Float[Tensor, "B T d"],
        rope: tuple[Float[Tensor, "B T half"], Float[Tensor, "B T half"]],
        mask: Bool[Tensor, "B T S"] | None,
        remember: Remember | None,
    ) -> Float[Tensor, "B T d"]:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, remember)
        return x + self.mlp(self.post_attention_layernorm(x))


class PellucidPreTrainedModel(PreTrainedModel, ABC):
    """What both models tell transformers about saving, loading and initialising."""

    config: PellucidConfig
    config_class = PellucidConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["PellucidLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw what no file held; transformers' ``initialization`` leaves loaded tensors alone.

        A new trunk has drawn itself and is marked, so a pool comes here only after loading. Its
        buffers that no file holds are then unwritten memory; they are counters that stand at zero
        between steps. Any other tensor of a pool must have been loaded.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(module.weight, std=weight_std(module))
        elif isinstance(module, RMSNorm):
            initialization.ones_(module.gain)
        else:
            self._finish_loading(module)

    def _finish_loading(self, module: nn.Module) -> None:
        counters = module._non_persistent_buffers_set
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, tensor in own:
            if name in counters:
                tensor.zero_()
            elif not getattr(tensor, MARK, False):
                path = next(path for path, found in self.named_modules() if found is module)
                raise CheckpointError(
                    f"{WEIGHTS}: {path}.{name} is missing; export the model again"
                )


class PellucidModel(PellucidPreTrainedModel):
    """The trunk: token embedding, blocks, final norm. ``prefix`` is its own module path, dotted."""

    def __init__(self, config: PellucidConfig, prefix: str = "") -> None:
        super().__init__(config)
        decoder = config.transformer_config()
        self.theta = decoder.rope_theta
        self.embed_tokens = nn.Embedding(decoder.vocab_size, decoder.width)
        self.tied_mlp = tied_mlp_of(decoder)
        self.layers = nn.ModuleList(
            PellucidLayer(decoder, layer, f"{prefix}layers.{layer}", self.tied_mlp)
            for layer in range(decoder.layers)
        )
        self.norm = RMSNorm(decoder.width, decoder.norm_eps)
        if not self.embed_tokens.weight.is_meta:
            self._draw()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T d"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """The normed residual stream of every position.

        ``attention_mask`` is 0 on padding, 1 elsewhere, over cached and new positions: [B, S]; or
        a ready mask [B, 1, T, S], true where a new position may see another, or, of floats, 0
        there. Keys and values are kept where ``use_cache`` is true or a cache is given.
        Positions count the tokens that are not padding, unless ``position_ids`` gives them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("forward takes input_ids or inputs_embeds: exactly one of them")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if position_ids is None:
            position_ids = _positions(x, attention_mask, past)
        rope = rope_angles(position_ids.expand(x.shape[:2]), self.config.head_dim, self.theta)
        mask = _mask(x, attention_mask, past)
        remember = None if past_key_values is None else _written(past_key_values, past + x.shape[1])
        stream = [x]
        for layer in self.layers:
            stream.append(layer(stream[-1], rope, mask, remember))
        last = self.norm(stream[-1])
        return BaseModelOutputWithPast(
            last_hidden_state=last,
            past_key_values=past_key_values,
            hidden_states=(*stream[:-1], last) if output_hidden_states else None,
        )

    def _draw(self) -> None:
        """Draw the trunk as ``Transformer`` does; pools have drawn and calibrated themselves."""
        draw(self.embed_tokens)
        for module in self.modules():
            if isinstance(module, Attention):
                draw_attention(module, len(self.layers))
            setattr(module, MARK, True)
        for tensor in (*self.parameters(), *self.buffers()):
            setattr(tensor, MARK, True)


class PellucidForCausalLM(PellucidPreTrainedModel, GenerationMixin):
    """The trunk and the unembedding, with transformers' loss, generation and saving."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: PellucidConfig) -> None:
        super().__init__(config)
        self.model = PellucidModel(config, "model.")
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T d"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits of the last ``logits_to_keep`` positions (0: all), and the mean loss.

        ``labels`` are the tokens themselves, shifted in here; -100 leaves a position out.
        ``kwargs`` reach transformers' loss function.
        """
        trunk = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(trunk.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            vocab = self.config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=trunk.past_key_values,
            hidden_states=trunk.hidden_states,
        )


def register() -> None:
    """Make transformers' Auto classes know ``model_type`` "pellucid"; again is harmless."""
    AutoConfig.register(PellucidConfig.model_type, PellucidConfig, exist_ok=True)
    AutoModel.register(PellucidConfig, PellucidModel, exist_ok=True)
    AutoModelForCausalLM.register(PellucidConfig, PellucidForCausalLM, exist_ok=True)


def _positions(
    x: Float[Tensor, "B T d"], attention_mask: Tensor | None, past: int
) -> Int[Tensor, "_ T"]:
    seq = x.shape[1]
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.arange(past, past + seq, device=x.device)[None]
    counted = attention_mask.long().cumsum(-1) - 1
    return counted.clamp_min(0)[:, past : past + seq]


def _written(cache: Cache, length: int) -> Remember:
    """``cache.update`` without the room of static caches in which nothing has been written yet."""

    def remember(key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        keys, values = cache.update(key, value, layer)
        return keys[:, :, :length], values[:, :, :length]

    return remember


def _mask(
    x: Float[Tensor, "B T d"], attention_mask: Tensor | None, past: int
) -> Bool[Tensor, "B T S"] | None:
    """Which positions each new one may see; ``None`` where plain causal attention is meant."""
    batch, seq, _ = x.shape
    if attention_mask is not None and attention_mask.ndim == 4:  # as static caches have it made
        ready = attention_mask[:, 0, :, : past + seq]
        # Floats are added to scores: 0 where one may see, very negative elsewhere.
        mask = ready == 0 if ready.is_floating_point() else ready.bool()
        # Padding sees everything: a softmax over nothing would be NaN, and spread.
        return mask | ~mask.any(-1, keepdim=True)
    padded = attention_mask is not None and not bool(attention_mask.all())
    if not padded and (past == 0 or seq == 1):
        return None
    key = torch.arange(past + seq, device=x.device)
    query = key[past:, None]
    mask = (key <= query).expand(batch, -1, -1)
    if attention_mask is None:
        return mask
    # Padding sees itself: a softmax over nothing would be NaN, and spread.
    return (mask & attention_mask[:, None].bool()) | (key == query)


register()
