"""Sampling from our decoder, with or without edits, and the edits that a user can spell.

    next token ~ softmax(logits / temperature) over the top_k largest;  temperature 0: the largest

Without edits a token costs one row through the trunk, keys and values being cached. With edits
every token is a full pass, so that an edit sees each position exactly as ``Host.run`` does. Past
the context length only the last ``context`` tokens are read, from position 0, in full passes.

    MODULE@UNITS            silence these units          blocks.1.ffn@pool=3
    MODULE@UNITS=FACTOR     multiply what they write     blocks.1.ffn@pool=3,slot=17=4
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.address import parse_units, split_address
from pellucid.core.errors import AddressError, ConfigError, DataError, nearest
from pellucid.core.host import Edit, edit_units
from pellucid.core.unit import Code, UnitPool
from pellucid.models.evaluation import evaluating
from pellucid.models.transformer import Transformer, positions


@torch.no_grad()
def generate(
    model: Transformer,
    tokens: Int[Tensor, " prompt"],
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    edits: Sequence[Edit] = (),
    end: int | None,
) -> Int[Tensor, " total"]:
    """The prompt followed by up to ``max_new_tokens`` sampled tokens; ``end`` stops, and is kept.

    The same arguments give the same tokens. Errors: a ``DataError`` for an empty prompt, a
    ``ConfigError`` for a count or temperature out of range.
    """
    if tokens.numel() == 0:
        raise DataError("prompt: it encodes to no token; write at least one character")
    _check_range("max_new_tokens", max_new_tokens, 0)
    _check_range("temperature", temperature, 0)
    _check_range("top_k", 1 if top_k is None else top_k, 1)
    generator = torch.Generator().manual_seed(seed)
    memory = _Memory()
    with evaluating(model):
        for _ in range(max_new_tokens):
            fits = tokens.shape[0] <= model.config.context
            if edits or not fits:
                window = tokens[None, -model.config.context :]
                logits = model.run(window, edits=edits).logits[0, -1]
            else:
                logits = _cached_logits(model, tokens, memory)
            token = _sample(logits, temperature, top_k, generator).to(tokens)
            tokens = torch.cat((tokens, token))
            if end is not None and int(token) == end:
                break
    return tokens


def parse_ablation(text: str, pools: Mapping[str, UnitPool]) -> Edit:
    """The edit that ``MODULE@UNITS`` spells: these units write nothing.

    Errors: an ``AddressError`` for an unknown module (nearest offered), axis or index.
    """
    return _scaled(text, pools, 0.0)


def parse_scale(text: str, pools: Mapping[str, UnitPool]) -> Edit:
    """The edit that ``MODULE@UNITS=FACTOR`` spells; the factor follows the last ``=``.

    Errors: an ``AddressError`` as in ``parse_ablation``, and for a factor that is not a number.
    """
    address, equals, factor = text.rpartition("=")
    if not equals or "@" not in address:
        raise AddressError(
            f"{text!r}: expected NAME@UNITS=FACTOR, for example blocks.1.ffn@pool=3=0.5"
        )
    try:
        number = float(factor)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise AddressError(
            f"{text!r}: the factor after the last '=' must be a finite number, found {factor!r}"
        )
    return _scaled(address, pools, number)


class _Memory:
    """Keys and values of the positions read so far, one pair per layer."""

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def remember(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append one layer's new keys and values [B, H, T, D]; returns all of them."""
        if layer in self._layers:
            old_key, old_value = self._layers[layer]
            key, value = torch.cat((old_key, key), 2), torch.cat((old_value, value), 2)
        self._layers[layer] = key, value
        return key, value


def _cached_logits(
    model: Transformer, tokens: Int[Tensor, " T"], memory: _Memory
) -> Float[Tensor, " vocab"]:
    """The last position's logits; only positions that ``memory`` lacks are computed."""
    new = tokens[None, memory.length :]
    start = memory.length
    # Plain causal attention is right for a whole prompt, and for one new row, which sees all.
    assert start == 0 or new.shape[1] == 1
    stream = model.trunk(model.embed(new), positions(new, start), None, memory.remember)
    memory.length = tokens.shape[0]
    return model.unembed(stream[0, -1])


def _sample(
    logits: Float[Tensor, " vocab"],
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> Int[Tensor, " 1"]:
    """Drawn on the CPU, so that a seed means the same on every device."""
    logits = logits.double().cpu()
    if temperature == 0:
        return logits.argmax(keepdim=True)
    best, token = logits.topk(logits.shape[0] if top_k is None else min(top_k, logits.shape[0]))
    # Differences from the largest, so that no temperature, however small, overflows.
    chance = ((best - best[0]) / temperature).softmax(-1)
    drawn = torch.multinomial(chance, 1, generator=generator)
    return token[drawn]


def _scaled(address: str, pools: Mapping[str, UnitPool], factor: float) -> Edit:
    name, units = split_address(address)
    if name not in pools:
        raise AddressError(f"{address!r}: the model has no pool {name!r}; {nearest(name, pools)}")
    pool = pools[name]
    unit = parse_units(units, pool.spec)
    # Directions live where the weights live, and that is where the competition runs.
    unit = unit.to(pool.write(unit[:1]).device)
    return edit_units(pool, partial(_scale, factor), unit=unit)


def _scale(factor: float, code: Code) -> Code:
    return Code(code.unit, code.gate * factor, code.act)


def _check_range(name: str, found: float | int, least: int) -> None:
    if not found >= least:
        raise ConfigError(f"{name}: expected at least {least}, found {found}")
