"""One pre-norm decoder whose feed-forward slot takes any pool; itself a ``Host``.

    x ← x + attention(norm(x));   x ← x + pool(norm(x));   logits = W_U · norm(x)

``blocks.3.ffn:in`` is therefore the pool's normed input and ``blocks.3:out`` the residual stream.
A token attends to its own document only where documents are given.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid.core.host import Edit, Trace
from pellucid.core.unit import Site
from pellucid.models.config import TransformerConfig
from pellucid.models.evaluation import evaluating
from pellucid.models.hooks import run_hooked, site_width
from pellucid.models.parts import attention_of, draw, draw_attention, slot_of, tied_mlp_of
from pellucid.nn.attention import Remember
from pellucid.nn.norm import RMSNorm
from pellucid.nn.rope import rope_angles
from pellucid.pools import Pool

Parts = Mapping[str, Float[Tensor, ""]]


class Block(nn.Module):
    """Attention and a pool, each on the normed residual stream."""

    def __init__(self, config: TransformerConfig, layer: int, tied: nn.Module | None) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.width, config.norm_eps)
        self.attn = attention_of(config, layer)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn = slot_of(config, layer, f"blocks.{layer}.ffn", tied)

    def forward(
        self,
        x: Float[Tensor, "B T d"],
        rope: tuple[Float[Tensor, "B T half"], Float[Tensor, "B T half"]],
        mask: Bool[Tensor, "B T S"] | None = None,
        remember: Remember | None = None,
    ) -> Float[Tensor, "B T d"]:
        x = x + self.attn(self.attn_norm(x), rope, mask, remember)
        return x + self.ffn(self.ffn_norm(x))

    def forward_with_parts(
        self,
        x: Float[Tensor, "B T d"],
        rope: tuple[Float[Tensor, "B T half"], Float[Tensor, "B T half"]],
        mask: Bool[Tensor, "B T S"] | None = None,
    ) -> tuple[Float[Tensor, "B T d"], Parts]:
        """The same layer with its pool's auxiliary losses; the pool's hooks do not fire."""
        x = x + self.attn(self.attn_norm(x), rope, mask)
        y, parts = self.ffn.forward_with_parts(self.ffn_norm(x))
        return x + y, parts


class Transformer(nn.Module):
    """The decoder. Build it from a config; every weight is drawn from torch's generator."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.tied_mlp = tied_mlp_of(config)
        self.blocks = nn.ModuleList(
            Block(config, layer, self.tied_mlp) for layer in range(config.layers)
        )
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.unembed = nn.Linear(config.width, config.vocab_size, bias=False)
        self._draw()
        if config.tied_embeddings:
            self.unembed.weight = self.embed.weight

    def _draw(self) -> None:
        """Draw the trunk; pools have drawn and calibrated themselves."""
        draw(self.embed)
        draw(self.unembed)
        for block in self.layers():
            draw_attention(block.attn, len(self.blocks))

    def layers(self) -> list[Block]:
        """The blocks in order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def pools(self) -> dict[str, Pool]:
        """Every pool by name, sink units included."""
        return {pool.spec.name: pool for pool in self.modules() if isinstance(pool, Pool)}

    def trunk(
        self,
        x_BTd: Float[Tensor, "B T d"],
        position_BT: Int[Tensor, "B T"],
        mask_BTS: Bool[Tensor, "B T S"] | None = None,
        remember: Remember | None = None,
    ) -> Float[Tensor, "B T d"]:
        """All blocks and the final norm on embedded tokens."""
        rope = rope_angles(position_BT, self.config.head_dim, self.config.rope_theta)
        for block in self.layers():
            x_BTd = block(x_BTd, rope, mask_BTS, remember)
        return self.norm(x_BTd)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T vocab"]:
        """Next-token logits; with ``documents`` a token sees only its own document."""
        mask = None if documents is None else document_mask(documents)
        return self.unembed(self.trunk(self.embed(tokens), positions(tokens), mask))

    def forward_with_parts(
        self,
        tokens: Int[Tensor, "B T"],
        documents: Int[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T vocab"], Parts]:
        """Logits and the pools' weighted auxiliary losses, averaged over the layers."""
        mask = None if documents is None else document_mask(documents)
        rope = rope_angles(positions(tokens), self.config.head_dim, self.config.rope_theta)
        x = self.embed(tokens)
        total: dict[str, Tensor] = {}
        for block in self.layers():
            x, parts = block.forward_with_parts(x, rope, mask)
            for name, part in parts.items():
                total[name] = total[name] + part if name in total else part
        logits = self.unembed(self.norm(x))
        return logits, {name: part / self.config.layers for name, part in total.items()}

    def unit_tables(self) -> list[nn.Parameter]:
        """The parameters with one row per unit, over all pools."""
        return [table for pool in self.pools().values() for table in pool.unit_tables()]

    def after_step(self) -> None:
        """Let every pool update what changes without a gradient."""
        for pool in self.pools().values():
            pool.after_step()

    def unembedding(self) -> Float[Tensor, "vocab d"]:
        """W_U with the final norm's gain folded in: a write row's direct effect on the logits."""
        return (self.unembed.weight * self.norm.gain).detach()

    def width(self, site: Site) -> int:
        return site_width(self, site)

    def run(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        edits: Sequence[Edit] = (),
        keep: Collection[Site] = (),
    ) -> Trace:
        with evaluating(self):
            return run_hooked(self, lambda: self(tokens), edits=edits, keep=keep)


def positions(tokens: Int[Tensor, "B T"], start: int = 0) -> Int[Tensor, "B T"]:
    """start, start + 1, … along every row."""
    return torch.arange(start, start + tokens.shape[1], device=tokens.device).expand_as(tokens)


def document_mask(documents: Int[Tensor, "B T"]) -> Bool[Tensor, "B T T"]:
    """Causal attention inside each document."""
    seq = documents.shape[1]
    causal = torch.ones(seq, seq, dtype=torch.bool, device=documents.device).tril()
    return causal & (documents[:, :, None] == documents[:, None, :])
