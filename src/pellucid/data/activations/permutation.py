"""A seeded permutation of [0, N) with O(1) state, and generators that share nothing by accident.

A Feistel network permutes the numbers of b bits, b the least with 2ᵇ ≥ N: each round takes the
halves (L, R) to (R, L ⊕ F(R)), which can be undone whatever F is. F is a keyed 64-bit mixer
(splitmix64, Steele, Lea and Flood 2014). Numbers ≥ N are sent through again until they fall below
N, which keeps it a permutation and takes less than two passes on average. Luby and Rackoff (1988)
prove that four rounds of random functions cannot be told from a random permutation by few queries;
sixteen are used because halves of a few bits have few values: at N = 5 eight leave the places of
two numbers visibly uneven. Cost: about 200 integer operations a number, no table.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

ROUNDS = 16  # even, so that halves of unequal size stand in their order again at the end
STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def generator(purpose: str, *numbers: int) -> np.random.Generator:
    """numpy's generator for one purpose; another purpose or number gives an unrelated one."""
    name = " ".join([purpose, *map(str, numbers)])
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


@dataclass(frozen=True, slots=True)
class Permutation:
    """i → p(i), a permutation of [0, size) decided by ``seed``."""

    size: int
    seed: int

    def __call__(self, index: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """p of every index, each in [0, size)."""
        keys = generator("places", self.seed, self.size).integers(
            0, 2**64, size=ROUNDS, dtype=np.uint64
        )
        bits = (self.size - 1).bit_length()
        place = _network(index.astype(np.uint64), bits, keys)
        while (outside := place >= self.size).any():
            place[outside] = _network(place[outside], bits, keys)
        return place.astype(np.int64)


def _network(number: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    low = bits // 2
    left, left_bits = number >> np.uint64(low), bits - low
    right, right_bits = number & _mask(low), low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & _mask(left_bits))
        left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(right_bits)) | right


def _mix(number: np.ndarray) -> np.ndarray:
    for shift, factor in STEPS:
        number = (number ^ (number >> np.uint64(shift))) * np.uint64(factor)
    return number ^ (number >> np.uint64(31))


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)
