"""A dictionary as plain tensors, and the changes of form that leave what it computes alone.

    z = x − b_dec, or x            ŷ = Σ_j f_j D_j + b_dec + S x
    a = W z + b      f from a;     gated: π = W z, f = [π + b_g > 0] · relu(exp(r) π + b)

Foreign formats differ by these folds:

    input scale c     W·c, D/c, b_dec/c; biases and thresholds stay     latents stay
                      pursuit: D stays, b_dec/c, τ/c                    latents become f/c
    decoder norm ν    D/ν, W·ν, b·ν, θ·ν, b_g·ν                         latents become f·ν
    subtraction       dropped: b − W·b_dec; added: b + W·b_dec          latents stay
                      gated: b_g ∓ W·b_dec, b ∓ exp(r)·W·b_dec
    whitening         z = (x − μ)M: W·Mᵀ by rows, D·M⁻¹, b_dec·M⁻¹ + μ;
                      b − W·μ only without subtraction                  latents stay

A skip path acts on raw x throughout. Each costs one pass over the weights.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Rows and biases on raw activations; ``subtracts`` says whether z = x − b_dec.

    ``encoder`` is None for a pursuit, which reads along the decoder. ``threshold`` is θ of a
    JumpReLU or BatchTopK, one per latent; ``log_scale`` and ``gate_bias`` are r and b_g of a gated
    dictionary, whose ``encoder_bias`` is its magnitudes'.
    """

    encoder: Float[Tensor, "n d_in"] | None
    encoder_bias: Float[Tensor, " n"] | None
    decoder: Float[Tensor, "n d_out"]
    decoder_bias: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " n"] | None = None
    log_scale: Float[Tensor, " n"] | None = None
    gate_bias: Float[Tensor, " n"] | None = None
    skip: Float[Tensor, "d_out d_in"] | None = None
    subtracts: bool = True

    def rows(self) -> Float[Tensor, "n d_in"]:
        """The encoder rows of what is no pursuit."""
        assert self.encoder is not None
        return self.encoder

    def bias(self) -> Float[Tensor, " n"]:
        """The encoder bias of what is no pursuit."""
        assert self.encoder_bias is not None
        return self.encoder_bias


@torch.no_grad()
def fold_input_scale(weights: Weights, scale: float) -> Weights:
    """Weights on raw x from weights on ``scale`` · x, whose output was divided by it again."""
    return replace(
        weights,
        encoder=weights.rows() * scale,
        decoder=weights.decoder / scale,
        decoder_bias=weights.decoder_bias / scale,
    )


@torch.no_grad()
def fold_pursuit_scale(weights: Weights, residual: float, scale: float) -> tuple[Weights, float]:
    """The same for a pursuit and the residual norm τ it stops at; its latents become f/c."""
    assert weights.encoder is None
    return replace(weights, decoder_bias=weights.decoder_bias / scale), residual / scale


@torch.no_grad()
def fold_decoder_norm(weights: Weights) -> Weights:
    """Unit decoder rows, and latents times their former norms.

    Exact where every latent is judged alone (ReLU, gated, JumpReLU); for a top-k it is exact only
    if the selection ranked ν·a. Norms must not be 0.
    """
    norm = weights.decoder.norm(dim=1)

    def times(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor * norm

    return replace(
        weights,
        encoder=weights.rows() * norm.unsqueeze(1),
        decoder=weights.decoder / norm.unsqueeze(1),
        encoder_bias=times(weights.encoder_bias),
        threshold=times(weights.threshold),
        gate_bias=times(weights.gate_bias),
    )


def drop_subtraction(weights: Weights) -> Weights:
    """z = x − b_dec as z = x."""
    if not weights.subtracts:
        return weights
    return replace(_shifted(weights, -weights.decoder_bias), subtracts=False)


def add_subtraction(weights: Weights) -> Weights:
    """z = x as z = x − b_dec."""
    if weights.subtracts:
        return weights
    return replace(_shifted(weights, weights.decoder_bias), subtracts=True)


@torch.no_grad()
def fold_whitening(
    weights: Weights,
    mean: Float[Tensor, " d"],
    matrix: Float[Tensor, "d d"],
    inverse: Float[Tensor, "d d"],
) -> Weights:
    """Weights on raw x from weights on (x − mean) matrix, whose output was mapped back."""
    rows = weights.rows() @ matrix.T
    folded = replace(
        weights,
        encoder=rows,
        decoder=weights.decoder @ inverse,
        decoder_bias=weights.decoder_bias @ inverse + mean,
    )
    # With subtraction the folded b_dec takes the mean off.
    return folded if weights.subtracts else _shifted(folded, -mean)


@torch.no_grad()
def _shifted(weights: Weights, by: Float[Tensor, " d"]) -> Weights:
    """Pre-activations raised by W · ``by``."""
    shift = weights.rows() @ by
    if weights.log_scale is None or weights.gate_bias is None:
        return replace(weights, encoder_bias=weights.bias() + shift)
    return replace(
        weights,
        encoder_bias=weights.bias() + weights.log_scale.exp() * shift,
        gate_bias=weights.gate_bias + shift,
    )
