"""From a ``Coder`` to plain tensors on raw activations and back.

``weights_of`` folds a dictionary's scales away, ``coder_of`` builds one whose scales are 1. Between
the two, latents and outputs are the same; only a pursuit's latents are divided by c, because its
atoms keep their norms. Cost: one pass over the weights.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.dictionaries import Coder, CoderConfig, build_coder
from pellucid.dictionaries.atoms import Atoms, DenseAtomsConfig
from pellucid.dictionaries.config import GateConfig
from pellucid.dictionaries.gates import BatchTopKGate
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.dictionaries.thresholds import GatedGate, JumpReLUGate
from pellucid.interop.folds import (
    Weights,
    add_subtraction,
    drop_subtraction,
    fold_pursuit_scale,
)


@torch.no_grad()
def weights_of(coder: Coder) -> Weights:
    """The folded tensors of a dictionary without router.

    They are those of its gate, whatever solver stands in the gate's place.
    """
    assert coder.router is None
    every = torch.arange(coder.config.latents, device=coder.bias.device)
    c, c_out, gate = coder.in_scale, coder.out_scale, coder.gate
    scaled = Weights(
        encoder=None if gate.solves else _reads(coder).rows().gather(every),
        encoder_bias=None if gate.bias is None else gate.bias.clone(),
        decoder=coder.decoder.rows().gather(every),
        decoder_bias=coder.bias.clone(),
        threshold=_threshold(coder),
        log_scale=None if gate.log_scale is None else gate.log_scale.clone(),
        gate_bias=gate.decision_bias.clone() if isinstance(gate, GatedGate) else None,
        skip=None if coder.skip is None else coder.skip * (c / c_out),
        subtracts=coder.is_sae,
    )
    equal = torch.equal(c, c_out)
    if gate.solves:
        # ``settle`` measures one scale for one site.
        assert equal
        return fold_pursuit_scale(scaled, 0.0, float(c))[0]
    if coder.is_sae and not equal:
        # b_dec / c is subtracted, b_dec / c_out added: no one tensor is both.
        scaled = drop_subtraction(scaled)
    return replace(
        scaled,
        encoder=scaled.rows() * c,
        decoder=scaled.decoder / c_out,
        decoder_bias=scaled.decoder_bias / c_out,
    )


def residual_of(coder: Coder) -> float:
    """τ of a pursuit in raw units."""
    assert isinstance(coder.config.gate, PursuitConfig)
    return coder.config.gate.residual / float(coder.in_scale)


def _reads(coder: Coder) -> Atoms:
    return coder.decoder if coder.encoder is None else coder.encoder


def _threshold(coder: Coder) -> Tensor | None:
    gate, n = coder.gate, coder.config.latents
    if isinstance(gate, JumpReLUGate):
        return gate.threshold.to(coder.bias.dtype).clone()
    if isinstance(gate, BatchTopKGate):
        # Never measured, it is −1, and the gate then passes what is positive.
        return gate.threshold.clamp_min(0).to(coder.bias.dtype).expand(n).clone()
    return None


@torch.no_grad()
def coder_of(
    weights: Weights,
    gate: GateConfig,
    *,
    name: str,
    reads: Site,
    writes: Site,
    prefixes: tuple[float, ...] = (),
) -> Coder:
    """The dictionary with these tensors, in their dtype, in evaluation mode.

    Errors: an ``InteropError`` for one site of two widths.
    """
    n, d_out = weights.decoder.shape
    d_in = d_out if weights.encoder is None else weights.encoder.shape[1]
    pursuit = isinstance(gate, PursuitConfig)
    if reads == writes and d_in != d_out:
        raise InteropError(f"{reads}: one site has one width, found {d_in} and {d_out}")
    if not pursuit:
        weights = add_subtraction(weights) if reads == writes else drop_subtraction(weights)
    config = CoderConfig(
        latents=n,
        gate=gate,
        atoms=DenseAtomsConfig(tied=True) if pursuit else DenseAtomsConfig(norm="free"),
        skip=weights.skip is not None,
        auxk=0.0,
        prefixes=prefixes,
        normalise=False,
        center="zero",
    )
    coder = build_coder(config, name=name, reads=reads, writes=writes, d_in=d_in, d_out=d_out)
    coder = coder.to(weights.decoder.dtype).eval()
    coder.decoder.table().copy_(weights.decoder)
    coder.bias.copy_(weights.decoder_bias)
    if coder.skip is not None and weights.skip is not None:
        coder.skip.copy_(weights.skip)
    if coder.encoder is not None:
        coder.encoder.table().copy_(weights.rows())
    if coder.gate.bias is not None:
        coder.gate.bias.copy_(weights.bias())
    if isinstance(coder.gate, GatedGate) and coder.gate.log_scale is not None:
        assert weights.log_scale is not None
        assert weights.gate_bias is not None
        coder.gate.log_scale.copy_(weights.log_scale)
        coder.gate.decision_bias.copy_(weights.gate_bias)
    if isinstance(coder.gate, JumpReLUGate):
        assert weights.threshold is not None
        coder.gate.threshold.copy_(weights.threshold)
    if isinstance(coder.gate, BatchTopKGate):
        assert weights.threshold is not None
        coder.gate.threshold.copy_(weights.threshold[0])
    return coder
