"""Every fold leaves what a dictionary computes alone, both ways, against naive code in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pellucid.interop.folds import (
    Weights,
    add_subtraction,
    drop_subtraction,
    fold_decoder_norm,
    fold_input_scale,
    fold_pursuit_scale,
    fold_whitening,
)

D, N, K, C = 8, 32, 5, 0.3
KINDS = ("relu", "topk", "abstopk", "jumprelu", "gated")


def compute(weights: Weights, kind: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and output of weights, as the equations state them."""
    z = x - weights.decoder_bias if weights.subtracts else x
    a = z @ weights.rows().T
    if kind == "gated":
        assert weights.log_scale is not None
        assert weights.gate_bias is not None
        f = (a + weights.gate_bias > 0) * torch.relu(weights.log_scale.exp() * a + weights.bias())
    else:
        a = a + weights.bias()
        if kind == "jumprelu":
            assert weights.threshold is not None
            f = a * (a > weights.threshold)
        elif kind == "relu":
            f = torch.relu(a)
        else:
            rank = a.abs() if kind == "abstopk" else a
            f = torch.zeros_like(a).scatter(1, rank.topk(K).indices, 1.0) * a
            f = f if kind == "abstopk" else torch.relu(f)
    y = f @ weights.decoder + weights.decoder_bias
    return f, y if weights.skip is None else y + x @ weights.skip.T


def draw(kind: str, *, subtracts: bool = True, skip: bool = False, d_out: int = D) -> Weights:
    """Weights with ν in [.5, 2] and a large decoder bias."""
    torch.manual_seed(3)
    rows = torch.randn(N, d_out, dtype=torch.float64)
    gated = kind == "gated"
    return Weights(
        encoder=torch.randn(N, D, dtype=torch.float64) * 0.5,
        encoder_bias=torch.randn(N, dtype=torch.float64) * 0.5,
        decoder=rows / rows.norm(dim=1, keepdim=True) * (torch.rand(N, 1) * 1.5 + 0.5),
        decoder_bias=torch.randn(d_out, dtype=torch.float64) * 5,
        threshold=torch.rand(N, dtype=torch.float64) if kind == "jumprelu" else None,
        log_scale=torch.randn(N, dtype=torch.float64) * 0.5 if gated else None,
        gate_bias=torch.randn(N, dtype=torch.float64) * 0.5 if gated else None,
        skip=torch.randn(d_out, D, dtype=torch.float64) if skip else None,
        subtracts=subtracts,
    )


def inputs(weights: Weights) -> Tensor:
    noise = torch.randn(40, D, dtype=torch.float64)
    return noise + weights.decoder_bias if weights.subtracts else noise


def same(found: Tensor, expected: Tensor) -> None:
    # Some hundred terms of order 10 round to 1e-13; 1e-10 is far from any real difference.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_input_scale(kind, subtracts):
    """Folded weights on x do what the others do on c·x, whose output is divided by c."""
    weights = draw(kind, subtracts=subtracts)
    z = inputs(weights)
    code, output = compute(weights, kind, z)
    folded, raw = compute(fold_input_scale(weights, C), kind, z / C)
    same(folded, code)
    same(raw, output / C)
    back = fold_input_scale(fold_input_scale(weights, C), 1 / C)
    same(compute(back, kind, z)[1], output)


def test_a_skip_acts_on_raw_rows():
    """y = (Σ f D + b)(c·x) / c + S·x."""
    weights = draw("relu", subtracts=False, skip=True)
    x = inputs(weights)
    without = replace(weights, skip=None)
    assert weights.skip is not None
    expected = compute(without, "relu", C * x)[1] / C + x @ weights.skip.T
    same(compute(fold_input_scale(weights, C), "relu", x)[1], expected)


def test_pursuit_scale():
    """By hand in one dimension: D = 1, b = 2, c = 0.5; x = 10 gives z = 3, so f = 3, ŷ = 10."""
    one = torch.ones(1, 1, dtype=torch.float64)
    weights = Weights(
        encoder=None, encoder_bias=None, decoder=one, decoder_bias=2 * one[0], threshold=None
    )
    folded, residual = fold_pursuit_scale(weights, 0.1, 0.5)
    assert folded.decoder_bias.item() == 4
    assert torch.equal(folded.decoder, one)
    assert residual == 0.2
    x = 10.0
    latent = x - folded.decoder_bias.item()  # f / c = 6, and 3 in scaled units
    assert latent == (0.5 * x - 2) / 0.5
    assert latent * 1 + folded.decoder_bias.item() == x
    back, before = fold_pursuit_scale(folded, residual, 2.0)
    assert back.decoder_bias.item() == 2
    assert before == 0.1


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated"])
def test_decoder_norm(kind, subtracts):
    weights = draw(kind, subtracts=subtracts)
    x, norm = inputs(weights), weights.decoder.norm(dim=1)
    code, output = compute(weights, kind, x)
    folded = fold_decoder_norm(weights)
    same(folded.decoder.norm(dim=1), torch.ones(N, dtype=torch.float64))
    found, same_output = compute(folded, kind, x)
    same(found, code * norm)
    same(same_output, output)
    # Norms put back by hand undo it.
    again = replace(
        folded,
        encoder=folded.rows() / norm.unsqueeze(1),
        encoder_bias=folded.bias() / norm,
        decoder=folded.decoder * norm.unsqueeze(1),
        threshold=None if folded.threshold is None else folded.threshold / norm,
        gate_bias=None if folded.gate_bias is None else folded.gate_bias / norm,
    )
    same(compute(again, kind, x)[0], code)


@pytest.mark.parametrize("kind", ["topk", "abstopk"])
def test_decoder_norm_for_a_selection_that_ranks_by_it(kind):
    """Exact for the selection of ν·a, and a change of the selection of a."""
    weights = draw(kind)
    x, norm = inputs(weights), weights.decoder.norm(dim=1)
    scored = ((x - weights.decoder_bias) @ weights.rows().T + weights.bias()) * norm
    rank = scored.abs() if kind == "abstopk" else scored
    code = torch.zeros_like(scored).scatter(1, rank.topk(K).indices, 1.0) * scored
    code = code if kind == "abstopk" else torch.relu(code)
    found, output = compute(fold_decoder_norm(weights), kind, x)
    same(found, code)
    same(output, (code / norm) @ weights.decoder + weights.decoder_bias)
    assert not torch.equal(found != 0, compute(weights, kind, x)[0] != 0)


@pytest.mark.parametrize("kind", KINDS)
def test_subtraction(kind):
    weights = draw(kind)
    x = inputs(weights)
    code, output = compute(weights, kind, x)
    dropped = drop_subtraction(weights)
    assert not dropped.subtracts
    for form in (dropped, add_subtraction(dropped)):
        found, written = compute(form, kind, x)
        same(found, code)
        same(written, output)
    same(add_subtraction(dropped).bias(), weights.bias())
    assert drop_subtraction(dropped) is dropped
    assert add_subtraction(weights) is weights


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_whitening(kind, subtracts):
    """Folded weights on x do what the others do on (x − μ) M, whose output is mapped back."""
    weights = draw(kind, subtracts=subtracts)
    mean = torch.randn(D, dtype=torch.float64) * 3
    matrix = torch.randn(D, D, dtype=torch.float64) + 3 * torch.eye(D)
    inverse = torch.linalg.inv(matrix)
    z = inputs(weights)
    x = z @ inverse + mean
    code, output = compute(weights, kind, z)
    folded = fold_whitening(weights, mean, matrix, inverse)
    assert folded.subtracts == subtracts
    found, raw = compute(folded, kind, x)
    same(found, code)
    same(raw, output @ inverse + mean)
    # Whitening back is folded by the inverse map: x = z M⁻¹ + μ is (z + μM) M⁻¹.
    back = fold_whitening(folded, -mean @ matrix, inverse, matrix)
    same(compute(back, kind, z)[0], code)


def test_forgetting_a_part_of_a_fold_shows():
    """What each fold's parts are for: leaving one out changes the output."""
    weights = draw("gated")
    x = inputs(weights)
    output = compute(weights, "gated", x)[1]
    dropped = drop_subtraction(weights)
    for half in (
        replace(dropped, encoder_bias=weights.encoder_bias),
        replace(dropped, gate_bias=weights.gate_bias),
    ):
        assert not torch.allclose(compute(half, "gated", x)[1], output)
