"""Losses, gradients and Adam steps of SAELens' training classes against ours.

What agrees is compared in float64; where the two differ by design, the difference itself is
asserted, so that neither side can change unseen.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pellucid.core.unit import Site
from pellucid.dictionaries import Coder, CoderConfig, build_coder
from pellucid.dictionaries.atoms import DenseAtomsConfig
from pellucid.dictionaries.coder import DEAD_ROWS
from pellucid.dictionaries.gates import BatchTopKConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.interop.saelens_class import dense_code

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

D, N, K, B = 8, 32, 4, 24
WEIGHT = 0.3  # of every sparsity penalty
FREE = DenseAtomsConfig(norm="free")
SITE = Site.parse("m:out")
# By their parameter, and whether ours is transposed.
NAMES = {"W_enc": True, "W_dec": False, "b_enc": False, "b_dec": False, "threshold": False}
GATED = {"b_mag": "b_enc", "b_gate": "decision_bias", "r_mag": "log_scale"}


def _theirs(kind: str, **fields: Any) -> Any:
    from sae_lens import TrainingSAE
    from sae_lens.registry import get_sae_training_class

    sae_class, config_class = get_sae_training_class(kind)
    assert issubclass(sae_class, TrainingSAE)
    theirs = sae_class(config_class(d_in=D, d_sae=N, dtype="float64", **fields))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (3 if name == "b_dec" else 0.4))
        if kind == "jumprelu":
            theirs.threshold.copy_(torch.rand(N) * 0.5)
        if kind == "gated":
            # Ours keeps unit rows and leaves their norm out of the penalty.
            theirs.W_dec.div_(theirs.W_dec.norm(dim=1, keepdim=True))
    return theirs


def _ours(theirs: Any, **fields: Any) -> Coder:
    config = CoderConfig(
        latents=N,
        **{"atoms": FREE, "auxk": 0.0, "reduction": "sum", "normalise": False, **fields},
    )
    coder = build_coder(config, name="d", reads=SITE, writes=SITE, d_in=D, d_out=D).double()
    with torch.no_grad():
        for name, tensor in _of(coder).items():
            source = dict(theirs.named_parameters())[name]
            tensor.copy_(source.T if NAMES.get(name) else source)
    return coder.train()


def _of(coder: Coder) -> dict[str, Tensor]:
    """Our parameters under their names."""
    assert coder.encoder is not None
    found = {
        "W_enc": coder.encoder.table(),
        "W_dec": coder.decoder.table(),
        "b_dec": coder.bias,
        ("b_mag" if coder.gate.log_scale is not None else "b_enc"): coder.gate.bias,
        "r_mag": coder.gate.log_scale,
        "b_gate": getattr(coder.gate, "decision_bias", None),
        "threshold": getattr(coder.gate, "threshold", None),
    }
    return {name: t for name, t in found.items() if isinstance(t, nn.Parameter)}


def _rows(theirs: Any) -> Tensor:
    return torch.randn(B, D, dtype=torch.float64) + theirs.b_dec.detach()


def _step(theirs: Any, x: Tensor, dead: Tensor | None = None) -> Any:
    from sae_lens.saes.sae import TrainStepInput

    weights = dict.fromkeys(theirs.get_coefficients(), WEIGHT)
    return theirs.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients=weights,
            dead_neuron_mask=dead,
            n_training_steps=0,
            is_logging_step=False,
        )
    )


def _bury(coder: Coder, dead: Tensor) -> None:
    coder.silent[dead] = DEAD_ROWS


def _same(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    scale = max(float(expected.detach().abs().max()), 1e-30)
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * scale)


def _same_gradients(coder: Coder, theirs: Any, *, without: tuple[str, ...] = ()) -> None:
    other = dict(theirs.named_parameters())
    for name, parameter in _of(coder).items():
        if name in without:
            continue
        assert parameter.grad is not None, name
        assert other[name].grad is not None, name
        expected = other[name].grad
        # Their θ is float32 whatever the rest is.
        tolerance = 1e-5 if name == "threshold" else 1e-9
        _same(parameter.grad, expected.T if NAMES.get(name) else expected, tolerance)


def _total(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


# --- what agrees ---------------------------------------------------------------------------------

STEP = {"jumprelu_bandwidth": 0.5}
PAIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "relu": ("standard", {}, {"gate": ReLUConfig(l1=WEIGHT)}),
    "topk": ("topk", {"k": K, "rescale_acts_by_decoder_norm": False}, {"gate": TopKConfig(k=K)}),
    "abstopk": (
        "abstopk",
        {"k": K, "rescale_acts_by_decoder_norm": False},
        {"gate": TopKConfig(k=K, sign="abs")},
    ),
    "batchtopk": (
        "batchtopk",
        {"k": K, "rescale_acts_by_decoder_norm": False},
        {"gate": BatchTopKConfig(k=K)},
    ),
    "step": (
        "jumprelu",
        {**STEP, "jumprelu_sparsity_loss_mode": "step"},
        {"gate": JumpReLUConfig(penalty="l0", weight=WEIGHT, bandwidth=0.5)},
    ),
    "step to input": (
        "jumprelu",
        {**STEP, "jumprelu_sparsity_loss_mode": "step", "jumprelu_ste_to_input": True},
        {"gate": JumpReLUConfig(penalty="l0", weight=WEIGHT, bandwidth=0.5, ste_to_input=True)},
    ),
    "quadratic": (
        "jumprelu",
        {**STEP, "jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 5.0},
        {"gate": JumpReLUConfig(penalty="quadratic_token", weight=WEIGHT, bandwidth=0.5, l0=5.0)},
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_losses_and_gradients(name):
    kind, fields, ours_fields = PAIRS[name]
    theirs = _theirs(kind, **fields)
    ours = _ours(theirs, **ours_fields)
    x = _rows(theirs)
    output, parts = _step(theirs, x), ours.losses(x, x)
    _same(parts["reconstruction"], output.losses["mse_loss"])
    _same(_total(parts), output.loss, 1e-7 if kind == "jumprelu" else 1e-9)
    output.loss.backward()
    _total(parts).backward()
    _same_gradients(ours, theirs)


def test_tanh_and_the_pull_of_silent_latents():
    """Theirs pulls dead latents only, ours all: equal when all are dead, and else not."""
    fields = {"jumprelu_sparsity_loss_mode": "tanh", "pre_act_loss_coefficient": 3e-6}
    theirs = _theirs("jumprelu", **STEP, **fields)
    gate = JumpReLUConfig(penalty="tanh", weight=WEIGHT, bandwidth=0.5)
    ours = _ours(theirs, gate=gate)
    x = _rows(theirs)
    parts = ours.losses(x, x)
    some = torch.arange(N) % 2 == 0
    part = _step(theirs, x, some).losses["pre_act_loss"]
    assert 0 < part < 0.9 * parts["pre_act"]
    output = _step(theirs, x, torch.ones(N, dtype=torch.bool))
    _same(parts["pre_act"], output.losses["pre_act_loss"], 1e-6)
    _same(parts["sparsity"], output.losses["l0_loss"], 1e-6)
    output.loss.backward()
    _total(parts).backward()
    _same_gradients(ours, theirs)


@pytest.mark.parametrize("name", ["relu", "topk", "abstopk", "batchtopk", "step"])
def test_ten_adam_steps(name):
    kind, fields, ours_fields = PAIRS[name]
    theirs = _theirs(kind, **fields)
    ours = _ours(theirs, **ours_fields)
    optimisers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (theirs, ours)]
    for _ in range(10):
        x = _rows(theirs)
        found = (_step(theirs, x).loss, _total(ours.losses(x, x)))
        for optimiser, loss in zip(optimisers, found):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ours.after_step()
    other = dict(theirs.named_parameters())
    for key, parameter in _of(ours).items():
        _same(parameter, other[key].T if NAMES.get(key) else other[key], 1e-6)


# --- what differs --------------------------------------------------------------------------------


def test_gated_does_not_detach_the_decoder():
    """Losses agree on unit rows; their auxiliary reconstruction and penalty also move D, b_dec."""
    theirs = _theirs("gated")
    ours = _ours(theirs, gate=GatedConfig(l1=WEIGHT), atoms=DenseAtomsConfig(norm="unit"))
    x = _rows(theirs)
    output, parts = _step(theirs, x), ours.losses(x, x)
    _same(parts["reconstruction"], output.losses["mse_loss"])
    _same(parts["l1"], output.losses["l1_loss"])
    _same(parts["gate_reconstruction"], output.losses["auxiliary_reconstruction_loss"])
    output.losses["mse_loss"].backward(retain_graph=True)
    from_mse = theirs.W_dec.grad.clone()
    theirs.zero_grad()
    output.loss.backward()
    _total(parts).backward()
    _same_gradients(ours, theirs, without=("W_dec", "b_dec"))
    _same(ours.decoder.table().grad, from_mse)
    assert not torch.allclose(theirs.W_dec.grad, from_mse)
    assert not torch.allclose(theirs.b_dec.grad, ours.bias.grad)


@pytest.mark.parametrize("dead_count", [2, 12])
@pytest.mark.parametrize("kind", ["topk", "abstopk"])
def test_auxk_is_the_same_sum_on_another_scale(kind, dead_count):
    """Theirs: #dead/(d/2), at most 1, times mean ‖e − ê‖². Ours: α Σ‖e − ê‖² / Σ‖e − ē‖²."""
    theirs = _theirs(kind, k=K, rescale_acts_by_decoder_norm=False)
    dead = torch.arange(N) < dead_count
    with torch.no_grad():
        # Positive everywhere, so that ReLU on dead latents makes no difference here.
        theirs.b_enc[dead] += 8
    gate = TopKConfig(k=K, sign="abs" if kind == "abstopk" else "relu")
    ours = _ours(theirs, gate=gate, auxk=1 / 32, auxk_ramp=True)
    _bury(ours, dead)
    x = _rows(theirs)
    output, parts = _step(theirs, x, dead), ours.losses(x, x)
    error = x - ours(x)
    spread = (error - error.mean(0)).square().sum()
    factor = 32 * spread.detach() / B
    _same(parts["auxk"] * factor, output.losses["auxiliary_reconstruction_loss"])
    ramp = min(1.0, dead_count / (D // 2))
    ours.config = replace(ours.config, auxk_ramp=False)
    _bury(ours, dead)
    _same(ours.losses(x, x)["auxk"] * ramp, parts["auxk"])
    (parts["auxk"] * factor).backward()
    output.losses["auxiliary_reconstruction_loss"].backward()
    _same_gradients(ours, theirs, without=("b_dec",))
    # Ours keeps b_dec out of it, theirs moves it through x − b_dec.
    assert ours.bias.grad is None or not ours.bias.grad.any()
    assert theirs.b_dec.grad.any()


def test_auxk_of_theirs_lets_dead_latents_be_negative():
    """Dead pre-activations without ReLU: where all are negative, ours is the plain error."""
    theirs = _theirs("topk", k=K, rescale_acts_by_decoder_norm=False)
    dead = torch.arange(N) < 6
    with torch.no_grad():
        theirs.b_enc[dead] -= 8
    ours = _ours(theirs, gate=TopKConfig(k=K), auxk=1 / 32)
    _bury(ours, dead)
    x = _rows(theirs)
    error = (x - ours(x)).detach()
    plain = error.square().sum() / (error - error.mean(0)).square().sum()
    _same(ours.losses(x, x)["auxk"], plain / 32)
    found = _step(theirs, x, dead).losses["auxiliary_reconstruction_loss"]
    assert abs(found - error.square().sum(1).mean()) > 1


def test_matryoshka_sums_where_ours_averages():
    shares = (0.25, 0.5, 1.0)
    widths = [8, 16, N]
    fields = {"k": K, "matryoshka_widths": widths, "rescale_acts_by_decoder_norm": False}
    theirs = _theirs("matryoshka_batchtopk", **fields)
    ours = _ours(theirs, gate=BatchTopKConfig(k=K), prefixes=shares)
    x = _rows(theirs)
    output, parts = _step(theirs, x), ours.losses(x, x)
    assert set(parts) == {"reconstruction"}
    _same(parts["reconstruction"] * len(widths), output.loss)
    output.loss.backward()
    (parts["reconstruction"] * len(widths)).backward()
    _same_gradients(ours, theirs)


def test_the_decoder_norm_ranks_before_their_topk():
    """With uneven rows the choice differs; with unit rows it does not."""
    theirs = _theirs("topk", k=K)
    assert theirs.cfg.rescale_acts_by_decoder_norm
    with torch.no_grad():
        unit = theirs.W_dec / theirs.W_dec.norm(dim=1, keepdim=True)
        theirs.W_dec.copy_(unit * (torch.rand(N, 1) * 1.5 + 0.5))
    x = _rows(theirs)
    ours = _ours(theirs, gate=TopKConfig(k=K))
    assert not torch.equal(theirs.encode(x) != 0, dense_code(ours.eval(), x) != 0)
    with torch.no_grad():
        theirs.W_dec.copy_(unit)
    ours = _ours(theirs, gate=TopKConfig(k=K))
    _same(dense_code(ours.eval(), x), theirs.encode(x))


def test_their_threshold_starts_at_zero():
    """After one step theirs is lr · m, ours m, the smallest kept activation; then both decay."""
    theirs = _theirs("batchtopk", k=K, rescale_acts_by_decoder_norm=False)
    ours = _ours(theirs, gate=BatchTopKConfig(k=K, threshold_from=0))
    x = _rows(theirs)
    acts = _step(theirs, x).feature_acts
    smallest = acts[acts > 0].min()
    ours.losses(x, x)
    ours.after_step()
    assert isinstance(ours.gate.threshold, Tensor)
    _same(ours.gate.threshold, smallest, 1e-6)
    _same(theirs.topk_threshold, theirs.cfg.topk_threshold_lr * smallest)


def test_their_pursuit_runs_up_to_d_steps(tmp_path):
    from sae_lens import SAE

    from pellucid.interop import ReadOptions
    from pellucid.interop.saelens import read_saelens

    config = {"architecture": "matching_pursuit", "d_in": D, "d_sae": N, "metadata": {}}
    sae = SAE.from_dict(config)
    assert sae.cfg.max_iterations is None
    sae.save_model(tmp_path)
    (found,) = read_saelens(tmp_path, ReadOptions(reads=SITE))
    assert found.coder.config.k == D
