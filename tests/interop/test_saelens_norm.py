"""Normalisations of SAELens: folded exactly, or refused with the reason.

``test_saelens_package.py`` proves the folds through SAELens' own.
"""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pellucid.core.errors import InteropError
from pellucid.dictionaries.gates import ReLUConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.interop import ReadOptions
from pellucid.interop.files import Fields
from pellucid.interop.folds import Weights
from pellucid.interop.saelens_norm import unnormalised

D, N = 4, 6


def weights(**changes: Any) -> Weights:
    drawn = Weights(
        encoder=torch.randn(N, D),
        encoder_bias=torch.randn(N),
        decoder=torch.randn(N, D),
        decoder_bias=torch.randn(D),
    )
    return replace(drawn, **changes)


@pytest.fixture
def fold(tmp_path):
    def run(kind: str, w: Weights, gate: Any = None, **options: Any) -> tuple[Weights, Any]:
        fields = Fields(tmp_path / "cfg.json", {"normalize_activations": kind})
        return unnormalised(fields, w, gate or ReLUConfig(), ReadOptions(**options))

    return run


def test_none_changes_nothing(fold):
    w = weights()
    assert fold("none", w)[0] is w


def test_a_scale_from_the_option_or_the_file_beside(fold, tmp_path):
    """W·c, D/c, b_dec/c, with c = 0.5; the option wins over the file's 3."""
    w = weights()
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 3}))
    for options, c in (({"input_scale": 0.5}, 0.5), ({}, 3.0)):
        found, _ = fold("expected_average_only_in", w, **options)
        torch.testing.assert_close(found.rows(), w.rows() * c)
        torch.testing.assert_close(found.decoder, w.decoder / c)
        torch.testing.assert_close(found.decoder_bias, w.decoder_bias / c)
        assert found.encoder_bias is w.encoder_bias


@pytest.mark.parametrize("content", [None, {"scaling_factor": None}])
def test_a_scale_that_is_nowhere(fold, tmp_path, content):
    if content is not None:
        (tmp_path / "activation_scaler.json").write_text(json.dumps(content))
    with pytest.raises(
        InteropError, match=r"whose factor no activation_scaler\.json beside it holds"
    ):
        fold("expected_average_only_in", weights())


def test_bad_scales(fold):
    with pytest.raises(InteropError, match="expected a factor above 0, found -1"):
        fold("expected_average_only_in", weights(), input_scale=-1.0)
    with pytest.raises(InteropError, match="with an input scale, found none; leave --input-scale"):
        fold("none", weights(), input_scale=0.5)


def test_a_pursuit_scales_its_residual_bound(fold):
    w = weights(encoder=None, encoder_bias=None)
    gate = PursuitConfig(k=3, residual=1.0)
    found, after = fold("expected_average_only_in", w, gate, input_scale=0.5)
    assert after == PursuitConfig(k=3, residual=2.0)
    assert found.decoder is w.decoder
    torch.testing.assert_close(found.decoder_bias, 2 * w.decoder_bias)


def test_whitening_from_the_file_beside(fold, tmp_path):
    w = weights()
    matrix = torch.randn(D, D) + 3 * torch.eye(D)
    state = {
        "mean": torch.randn(D),
        "matrix": matrix,
        "inverse_matrix": torch.linalg.inv(matrix).contiguous(),
    }
    save_file(state, tmp_path / "activation_whitening.safetensors")
    found, _ = fold("covariance_whitening", w)
    # By columns, as the format states it: W_enc ← M W_enc.
    torch.testing.assert_close(found.rows().T, matrix @ w.rows().T)
    torch.testing.assert_close(found.decoder, w.decoder @ state["inverse_matrix"])
    expected = w.decoder_bias @ state["inverse_matrix"] + state["mean"]
    torch.testing.assert_close(found.decoder_bias, expected)


def test_whitening_that_cannot_be_folded(fold, tmp_path):
    with pytest.raises(InteropError, match=r"activation_whitening\.safetensors: .* no such file"):
        fold("covariance_whitening", weights())
    for w, gate in (
        (weights(encoder=None, encoder_bias=None), PursuitConfig(k=3)),
        (weights(decoder=torch.randn(N, 3), decoder_bias=torch.randn(3), subtracts=False), None),
    ):
        with pytest.raises(InteropError, match="folds into SAEs that have an encoder alone"):
            fold("covariance_whitening", w, gate)
    save_file({"matrix": torch.eye(3)}, tmp_path / "activation_whitening.safetensors")
    with pytest.raises(InteropError, match=r"matrix: expected \(4, 4\), found \(3, 3\)"):
        fold("covariance_whitening", weights())


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_what_depends_on_the_row(fold, kind):
    w = weights()
    with pytest.raises(InteropError, match=f"found {kind}, which depends on each row.*--row-norm"):
        fold(kind, w)
    assert fold(kind, w, row_normalised=True)[0] is w
