"""What a whole decoder costs, by formula.

A          = 2·d·D·(H + H_kv)                                 attention parameters of a layer
parameters = L·(A + 2d + 2D + slot) + V·d + d                 (+ V·d untied)
forward    = L·(2A + 2·context·H·D + slot) + 2·V·d            at the mean causal context
training   = 3 × forward for the trunk, each slot by its own formula
"""

from dataclasses import dataclass

from pellucid.core.cost import Cost
from pellucid.models.config import TransformerConfig
from pellucid.models.parts import wants_tied_mlp

BYTES_PER_WEIGHT = 4  # float32 weights
BYTES_OF_ADAM = 8  # two float32 moments per weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of the weights and of the optimiser's state."""

    weights: int
    optimizer: int


def model_cost(config: TransformerConfig) -> Cost:
    """Parameters and FLOPs per token of a decoder, trunk, slots and head together."""
    total = _trunk_cost(config)
    for layer in range(config.layers):
        total = total + config.slot(layer).cost(config.width)
    return total + _tied_mlp_cost(config)


def model_memory(config: TransformerConfig) -> Memory:
    """Bytes needed to hold a decoder in float32 and to train it with Adam."""
    params = model_cost(config).total
    return Memory(weights=BYTES_PER_WEIGHT * params, optimizer=BYTES_OF_ADAM * params)


def slot_cost(config: TransformerConfig) -> Cost:
    """The feed-forward slots alone, summed over the layers."""
    return sum_costs([config.slot(layer).cost(config.width) for layer in range(config.layers)])


def sum_costs(costs: list[Cost]) -> Cost:
    """The sum of several costs."""
    total = Cost(total=0, active=0, forward=0, training=0)
    for cost in costs:
        total = total + cost
    return total


def _trunk_cost(config: TransformerConfig) -> Cost:
    width, heads = config.width, config.heads * config.head_dim
    attention = 2 * width * config.head_dim * (config.heads + config.kv_heads)
    norms = 2 * width + (2 * config.head_dim if config.qk_norm else 0)
    embedding = config.vocab_size * width
    tables = embedding if config.tied_embeddings else 2 * embedding
    params = config.layers * (attention + norms) + tables + width
    forward = (
        config.layers * (2 * attention + 2 * config.context * heads) + 2 * config.vocab_size * width
    )
    return Cost(total=params, active=params, forward=forward, training=3 * forward)


def _tied_mlp_cost(config: TransformerConfig) -> Cost:
    users = sum(wants_tied_mlp(config.slot(layer)) for layer in range(config.layers))
    params = 2 * config.width * config.tied_mlp_width if users else 0
    forward = 4 * config.width * config.tied_mlp_width * users
    return Cost(total=params, active=params, forward=forward, training=3 * forward)
