"""Which s of the d places each latent has: hashed, the authors' way, and for the controls.

    N_j = the s rows with the smallest hash(seed, j, row)

The 64-bit hash is SplitMix64's finaliser (Steele et al., "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014) over a key per latent, in wrapping integer arithmetic: supports are
uniform, equal on every machine, and any latent's can be made alone. Cost O(n·d) hashes, a chunk of
latents at a time. Masks are those of "Expander" dictionaries, arXiv 2607.01799.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.ops.product_topk import stable_topk

CHUNK_ELEMENTS = 1 << 18  # hashes held at once: 2 MB
AUTHORS_OFFSET = 10_000  # added to the seed by the released code

Repair = tuple[int, int, int]  # (latent, row it gives up, empty row it takes)

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
_REPAIR, _ORDER = 1, 2  # streams apart from the supports' own, which is 0


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Ascending rows per latent [n, s], the repairs made, and the SHA-256 of the rows as int32."""

    index: Int[Tensor, "n s"]
    repairs: tuple[Repair, ...]
    checksum: str


def expander_mask(num_latents: int, nonzeros: int, width: int, seed: int) -> Mask:
    """The hashed mask, with every row of the width in at least one support.

    Each empty row, ascending, takes the place of an entry of a hash-chosen latent whose row has
    another latent left. About d(1 − s/d)^n repairs are expected, normally none. Error: too few or
    too many non-zeros for the width.
    """
    _check(num_latents, nonzeros, width)
    index = torch.empty(num_latents, nonzeros, dtype=index_dtype(width))
    step = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, num_latents, step):
        latent = torch.arange(start, min(start + step, num_latents))
        index[start : start + step] = _supports(latent, nonzeros, width, seed)
    repairs = _repair(index, width, seed)
    return Mask(index, repairs, mask_checksum(index))


def expander_atom(
    latent: int, nonzeros: int, width: int, seed: int, repairs: tuple[Repair, ...] = ()
) -> Int[Tensor, " s"]:
    """The support of one latent of ``expander_mask`` alone, given the mask's repairs."""
    rows = _supports(torch.tensor([latent]), nonzeros, width, seed)[0]
    for repaired, gives, takes in repairs:
        if repaired == latent:
            rows[rows == gives] = takes
    return rows.sort().values.to(index_dtype(width))


def authors_mask(num_latents: int, nonzeros: int, width: int, seed: int) -> Mask:
    """Supports drawn one after another from numpy's generator, seeded with seed + 10,000."""
    _check(num_latents, nonzeros, width)
    generator = np.random.default_rng(seed + AUTHORS_OFFSET)
    rows = [generator.choice(width, nonzeros, replace=False) for _ in range(num_latents)]
    return _mask(torch.from_numpy(np.sort(np.stack(rows), axis=1)), width)


def clustered_mask(num_latents: int, nonzeros: int, width: int, seed: int) -> Mask:
    """⌊d/s⌋ disjoint blocks of hash-ordered rows; latent j has block j mod ⌊d/s⌋.

    The d mod s rows that fill no block are in no support.
    """
    _check(num_latents, nonzeros, width)
    count = width // nonzeros
    order = _hash(_key(seed, torch.zeros(1, dtype=torch.long), _ORDER), width)[0].argsort()
    blocks = order[: count * nonzeros].view(count, nonzeros).sort(dim=1).values
    return _mask(blocks[torch.arange(num_latents) % count], width)


def shared_mask(num_latents: int, nonzeros: int, width: int, seed: int, group: int) -> Mask:
    """Hashed supports of ⌈n/g⌉ latents, each shared by ``group`` latents in a row."""
    few = expander_mask(-(-num_latents // group), nonzeros, width, seed)
    return _mask(few.index.repeat_interleave(group, 0)[:num_latents], width)


def pruned_mask(table: Float[Tensor, "n d"], nonzeros: int) -> Mask:
    """The places of each row's largest magnitudes, the lower place in a tie."""
    width = table.shape[1]
    _check(table.shape[0], nonzeros, width)
    step = max(1, CHUNK_ELEMENTS // width)
    parts = [stable_topk(part.detach().abs(), nonzeros).cpu() for part in table.split(step)]
    return _mask(torch.cat(parts).sort(dim=1).values, width)


def mask_checksum(index: Int[Tensor, "n s"]) -> str:
    """SHA-256 of the rows as little-endian int32, however they are stored."""
    return hashlib.sha256(index.cpu().numpy().astype("<i4").tobytes()).hexdigest()


def index_dtype(width: int) -> torch.dtype:
    """The smallest type that holds a place in ``width``: int16 or int32."""
    return torch.int16 if width <= 1 << 15 else torch.int32


def _mask(index: Tensor, width: int) -> Mask:
    index = index.to(index_dtype(width)).contiguous()
    return Mask(index, (), mask_checksum(index))


def _check(num_latents: int, nonzeros: int, width: int) -> None:
    if not 1 <= nonzeros <= width:
        raise ConfigError(
            f"nonzeros: expected 1 to the width {width}, found {nonzeros}; choose one in between"
        )
    if num_latents < 1:
        raise ConfigError(f"latents: expected at least 1, found {num_latents}")


def _supports(latent: Tensor, nonzeros: int, width: int, seed: int) -> Tensor:
    """Ascending rows with the smallest hashes, which differ within a latent: no ties."""
    hashes = _hash(_key(seed, latent, 0), width)
    return hashes.topk(nonzeros, dim=1, largest=False, sorted=False).indices.sort(dim=1).values


def _key(seed: int, latent: Tensor, stream: int) -> Tensor:
    """One 64-bit key per latent of a stream of the seed."""
    base = torch.tensor([(seed + (1 << 63)) % (1 << 64) - (1 << 63)])
    # Products of tensors wrap at 64 bits; those of Python integers would not fit.
    return _mix(_mix(_mix(base) + torch.tensor(stream) * _GAMMA) + latent * _GAMMA)


def _hash(key: Tensor, width: int) -> Tensor:
    """hash(seed, j, row) for every row, as signed integers: [keys, width]."""
    return _mix(key.unsqueeze(1) + torch.arange(1, width + 1) * _GAMMA)


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finaliser in place: a bijection of the 64-bit integers."""
    moved = torch.empty_like(state)
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        torch.bitwise_right_shift(state, shift, out=moved)
        # Integers are signed here; the hash shifts zeros in.
        state.bitwise_xor_(moved.bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return state


def _repair(index: Tensor, width: int, seed: int) -> tuple[Repair, ...]:
    latents, nonzeros = index.shape
    degree = torch.bincount(index.reshape(-1).long(), minlength=width)
    empty = (degree == 0).nonzero().squeeze(1).tolist()
    if latents * nonzeros < width:
        raise ConfigError(
            f"latents x nonzeros: expected at least the width {width}, so that every row is used, "
            f"found {latents} x {nonzeros}; raise one of them"
        )
    repairs: list[Repair] = []
    for row in empty:
        key, attempt = _key(seed, torch.tensor([row]), _REPAIR), 0
        while True:
            attempt += 1
            drawn = int(_mix(key + torch.tensor(attempt) * _GAMMA)) % (1 << 64)
            latent, slot = drawn % latents, drawn // latents % nonzeros
            gives = int(index[latent, slot])
            if degree[gives] >= 2:
                break
        index[latent, slot] = row
        index[latent] = index[latent].sort().values
        degree[gives] -= 1
        degree[row] = 1
        repairs.append((latent, gives, row))
    return tuple(repairs)
