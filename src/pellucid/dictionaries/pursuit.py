"""Pursuits: coefficients found by a solver instead of an encoder.

    mp        r = z;  repeat:  j = argmax relu⟨D_j, r⟩,  f_j += ⟨D_j, r⟩,  r −= ⟨D_j, r⟩ D_j
    refit     least squares on the encoder's support
    oneshot   top-k of D z, then least squares
    gomp(L)   L atoms per iteration, least squares after each
    omp       gomp with L = 1

A coefficient depends on the whole support; that dependence stands in the gate, and act is 1.
Matching pursuit trains as it infers: the picks carry no gradient, the values do. The others replace
a trained encoder in evaluation. Source: MP-SAE, arXiv 2506.03093; OMP for sparse dictionaries,
arXiv 2607.01799.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.config import check_at_least_zero, check_positive
from pellucid.core.unit import Code
from pellucid.dictionaries.gates import Gate, check_count
from pellucid.dictionaries.latents import Latents, Pass
from pellucid.ops.pursuit import gomp, matching_pursuit, omp, oneshot, refit
from pellucid.ops.rows import AtomRows

Inference = Literal["encoder", "refit", "oneshot", "gomp", "omp"]


@dataclass(frozen=True, kw_only=True)
class PursuitConfig:
    """Matching pursuit of at most k steps.

    It stops for a row whose residual's norm is under ``residual``, or, if ``stop_repeats``, at a
    step that leaves the support as it was.
    """

    kind: Literal["pursuit"] = "pursuit"
    k: int = 32
    residual: float = 0.0
    stop_repeats: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "k")
        check_at_least_zero(self, "residual")


class PursuitGate(Gate):
    """Matching pursuit on the decoder's own unit rows."""

    solves = True

    def __init__(self, config: PursuitConfig, num: int) -> None:
        super().__init__(num, biased=False)
        check_count("k", config.k, num)
        self.config = config

    def forward(self, rows: AtomRows, z: Float[Tensor, "B d"], *, fit: bool) -> Latents:
        config = self.config
        unit, value = matching_pursuit(
            z,
            rows,
            steps=config.k,
            threshold=config.residual,
            stop_on_duplicate=config.stop_repeats,
        )
        return _solved(unit, value)

    def parts(self, seen: Pass, share: float) -> Mapping[str, Float[Tensor, ""]]:
        return {}

    def after_step(self, step: int, share: float) -> None:
        """Nothing changes."""


@torch.no_grad()
def on_support(code: Code, rows: AtomRows, z: Float[Tensor, "B d"]) -> Latents:
    """Least squares over the decoder rows of the latents that are on in ``code``."""
    return _solved(code.unit, refit(z, rows, code.unit, code.gate != 0))


@torch.no_grad()
def solve(
    rows: AtomRows,
    z: Float[Tensor, "B d"],
    mode: Literal["oneshot", "gomp", "omp"],
    *,
    k: int,
    sign: Literal["signed", "abs"],
    per_iteration: int,
) -> Latents:
    """The latents of B rows by a solver over decoder rows, without the encoder."""
    match mode:
        case "oneshot":
            found = oneshot(z, rows, k, sign)
        case "gomp":
            found = gomp(z, rows, k, sign, per_iteration=per_iteration)
        case "omp":
            found = omp(z, rows, k, sign)
    return _solved(*found)


def _solved(unit: Int[Tensor, "B K"], value: Float[Tensor, "B K"]) -> Latents:
    return Latents(unit=unit, gate=value, act=torch.ones_like(value), value=value)
