"""dictionary_learning folders against reference code that is written from the format's table.

``reference`` computes each class on the tensors of a file, by their names, as its authors state
it; it shares nothing with the converter. The files are made here, so they hold what is awkward.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import laws
from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.dictionaries import Coder, CoderConfig
from pellucid.dictionaries.gates import BatchTopKConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.interop import ReadOptions, WriteOptions
from pellucid.interop.dictionary_learning import (
    CLASSES,
    read_dictionary_learning,
    write_dictionary_learning,
)
from pellucid.interop.weights import weights_of

SHAPES = ((8, 32), (16, 16))
K, THRESHOLD = 5, 0.4


def reference(kind: str, state: Mapping[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and reconstruction of rows x."""
    relu = torch.relu
    match kind:
        case "AutoEncoder":
            f = relu((x - state["bias"]) @ state["encoder.weight"].T + state["encoder.bias"])
            return f, f @ state["decoder.weight"].T + state["bias"]
        case "AutoEncoderNew":
            f = relu(x @ state["encoder.weight"].T + state["encoder.bias"])
            return f, f @ state["decoder.weight"].T + state["decoder.bias"]
        case "GatedAutoEncoder":
            pi = (x - state["decoder_bias"]) @ state["encoder.weight"].T
            magnitude = relu(state["r_mag"].exp() * pi + state["mag_bias"])
            f = (pi + state["gate_bias"] > 0) * magnitude
            return f, f @ state["decoder.weight"].T + state["decoder_bias"]
        case "JumpReluAutoEncoder":
            a = x @ state["W_enc"] + state["b_enc"]
            f = relu(a * (a > state["threshold"]))
            return f, f @ state["W_dec"] + state["b_dec"]
        case "AutoEncoderTopK":
            a = relu((x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
            top = a.topk(int(state["k"]), dim=1)
            f = torch.zeros_like(a).scatter(1, top.indices, top.values)
            return f, f @ state["decoder.weight"].T + state["b_dec"]
        case "BatchTopKSAE":
            a = relu((x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
            f = a * (a > state["threshold"])
            return f, f @ state["decoder.weight"].T + state["b_dec"]
        case "MatryoshkaBatchTopKSAE":
            assert int(state["group_sizes"].sum()) == len(state["b_enc"])
            a = relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
            f = a * (a > state["threshold"])
            return f, f @ state["W_dec"] + state["b_dec"]
    raise AssertionError(kind)


def golden(kind: str, d: int, n: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A state dict with uneven decoder rows and a large decoder bias."""
    rows = torch.randn(n, d, dtype=torch.float64)
    rows = rows / rows.norm(dim=1, keepdim=True) * (torch.rand(n, 1) * 1.5 + 0.5)
    encoder, bias = torch.randn(n, d, dtype=torch.float64) * 0.5, torch.randn(n).double() * 0.5
    centre = torch.randn(d, dtype=torch.float64) * 5
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        state = {"W_enc": encoder.T.contiguous(), "b_enc": bias, "W_dec": rows, "b_dec": centre}
    else:
        name = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")
        name = "decoder_bias" if kind == "GatedAutoEncoder" else name
        state = {"encoder.weight": encoder, "decoder.weight": rows.T.contiguous(), name: centre}
        if kind == "GatedAutoEncoder":
            extra = ("r_mag", "gate_bias", "mag_bias")
            state |= {key: torch.randn(n).double() * 0.5 for key in extra}
        else:
            state["encoder.bias"] = bias
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    if kind == "JumpReluAutoEncoder":
        state["threshold"] = (torch.rand(n) * 0.6 - 0.1).to(dtype)
    elif "TopK" in kind:
        state["k"] = torch.tensor(K, dtype=torch.int32)
        state["threshold"] = torch.tensor(THRESHOLD, dtype=dtype)
    if kind.startswith("Matryoshka"):
        state["group_sizes"] = torch.tensor([n // 4, n // 4, n // 2])
    return state


def save(folder: Path, kind: str, state: Mapping[str, Any], **trainer: Any) -> Path:
    folder.mkdir(exist_ok=True)
    encoder = state["W_enc"].T if "W_enc" in state else state["encoder.weight"]
    config = {
        "trainer_class": CLASSES[kind].trainer,
        "dict_class": kind,
        "activation_dim": encoder.shape[1],
        "dict_size": encoder.shape[0],
        **({"k": int(state["k"])} if "k" in state else {}),
        "layer": 3,
        "lm_name": "some/model",
        "submodule_name": "resid_post_layer_3",
        "lr": 1e-3,
        "steps": 10,
        **trainer,
    }
    buffer = {"d_submodule": 8, "io": "out", "n_ctxs": 10, "ctx_len": 128, "device": "cpu"}
    torch.save(dict(state), folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": config, "buffer": buffer}))
    return folder


def read(folder: Path, **options: Any) -> Coder:
    (found,) = read_dictionary_learning(folder, ReadOptions(**options))
    return found.coder


def dense(coder: Coder, x: Tensor) -> Tensor:
    code = coder.activate(x)
    spread = torch.zeros(len(x), coder.config.latents, dtype=x.dtype)
    return spread.scatter_add(1, code.unit, code.value)


def rows_about(state: Mapping[str, Any], kind: str, count: int = 24) -> Tensor:
    subtracts = CLASSES[kind].subtracts
    centre = state[CLASSES[kind].bias]
    noise = torch.randn(count, len(centre), dtype=torch.float64)
    return noise + centre.double() if subtracts else noise


# --- both ways -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CLASSES)
def test_theirs_to_ours(tmp_path, close, kind, dtype, d, n):
    state = golden(kind, d, n, dtype)
    save(tmp_path, kind, state)
    double = dtype == torch.float64
    ours = read(tmp_path, dtype="float64" if double else "float32")
    x = rows_about(state, kind).to(torch.float64 if double else torch.float32)
    # What a rounded file computes, in the precision it is read in.
    exact = {key: t.to(x.dtype) if t.is_floating_point() else t for key, t in state.items()}
    code, output = reference(kind, exact, x)
    assert 0 < (code != 0).double().mean() < 1
    close(dense(ours, x), code)
    close(ours(x), output)


@pytest.mark.parametrize("kind", CLASSES)
def test_laws_hold_over_their_dictionaries(tmp_path, kind):
    state = golden(kind, 8, 12)
    ours = read(save(tmp_path, kind, state), dtype="float64")
    x = rows_about(state, kind, 5)
    for law in laws.LAWS:
        law(ours, x)


CONFIGS = {
    "AutoEncoder": CoderConfig(latents=32, gate=ReLUConfig(), auxk=0.0),
    "GatedAutoEncoder": CoderConfig(latents=32, gate=GatedConfig(), auxk=0.0),
    "JumpReluAutoEncoder": CoderConfig(latents=32, gate=JumpReLUConfig(l0=4.0), auxk=0.0),
    "AutoEncoderTopK": CoderConfig(latents=32, gate=TopKConfig(k=K)),
    "BatchTopKSAE": CoderConfig(latents=32, gate=BatchTopKConfig(k=K)),
    "MatryoshkaBatchTopKSAE": CoderConfig(
        latents=32, gate=BatchTopKConfig(k=K), prefixes=(0.125, 0.5, 1.0)
    ),
}


@pytest.mark.parametrize("equal_scales", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_ours_to_theirs(tmp_path, make, rows, close, kind, equal_scales):
    ours = make(CONFIGS[kind])
    if not equal_scales:
        ours.out_scale.fill_(0.8)
    write_dictionary_learning((ours,), tmp_path / "out", WriteOptions(dtype="float64"))
    state = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["trainer"]
    assert config["dict_class"] == kind
    assert config["submodule_name"] == "resid_post_layer_1"
    x = rows(ours)
    code, output = reference(kind, state, x)
    assert 0 < (code != 0).double().mean() < 1
    close(dense(ours, x), code)
    close(ours(x), output)


@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip(tmp_path, make, kind):
    """Equal tensors, but for the class that subtracts nothing: its bias is folded twice."""
    ours = make(CONFIGS[kind], d=16, dtype=torch.float32)
    write_dictionary_learning((ours,), tmp_path / "out", WriteOptions())
    back = read(tmp_path / "out")
    before, after = weights_of(ours), weights_of(back)
    fields = ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold", "log_scale")
    for field in (*fields, "gate_bias"):
        one, other = getattr(before, field), getattr(after, field)
        assert (one is None) == (other is None), field
        if one is None:
            continue
        if kind == "JumpReluAutoEncoder" and field == "encoder_bias":
            # ‖W_j‖‖b_dec‖ ≈ 40, and float32 keeps 1e-7 of it.
            torch.testing.assert_close(other, one, rtol=0, atol=1e-4)
        else:
            assert torch.equal(one, other), field
    assert back.spec.reads == ours.spec.reads
    assert back.config.prefixes == ours.config.prefixes
    assert back.config.k == ours.config.k


def test_an_unmeasured_threshold_is_written_as_what_it_does(tmp_path, make, rows, close):
    """Ours passes what is positive then: θ = 0."""
    ours = make(CONFIGS["BatchTopKSAE"])
    ours.gate.threshold.fill_(-1.0)
    write_dictionary_learning((ours,), tmp_path / "out", WriteOptions(dtype="float64"))
    state = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    assert state["threshold"] == 0
    x = rows(ours)
    close(ours(x), reference("BatchTopKSAE", state, x)[1])


# --- sites and models ----------------------------------------------------------------------------


def test_sites_and_model(tmp_path):
    state = golden("AutoEncoder", 8, 32)
    save(tmp_path, "AutoEncoder", state)
    (found,) = read_dictionary_learning(tmp_path, ReadOptions(layers="gpt_neox.layers"))
    assert str(found.coder.spec.reads) == "gpt_neox.layers.3:out"
    assert found.coder.is_sae
    assert found.model == {"kind": "huggingface", "name": "some/model"}
    assert found.provenance["config"]["trainer"]["lr"] == 1e-3
    assert found.warnings == ()
    assert str(read(tmp_path, layers="blocks").spec.reads) == "blocks.3:out"
    save(tmp_path, "AutoEncoder", state, submodule_name="model.layers.2.mlp")
    assert str(read(tmp_path).spec.reads) == "model.layers.2.mlp:out"
    save(tmp_path, "AutoEncoder", state, submodule_name="attention of layer 2")
    with pytest.raises(
        InteropError, match=r"submodule_name: expected resid_post_layer_L .*--reads"
    ):
        read(tmp_path)
    site = Site.parse("model.layers.2.self_attn:out")
    assert read(tmp_path, reads=site).spec.writes == site


def test_unknown_tensors_are_told(tmp_path):
    state = golden("AutoEncoder", 8, 32) | {"steering": torch.zeros(3)}
    (found,) = read_dictionary_learning(save(tmp_path, "AutoEncoder", state), ReadOptions())
    assert found.warnings == (f"{tmp_path / 'ae.pt'}: without meaning here: steering",)


# --- bad input -----------------------------------------------------------------------------------


def test_an_unknown_class(tmp_path):
    save(tmp_path, "AutoEncoder", golden("AutoEncoder", 8, 32), dict_class="CrossCoder")
    with pytest.raises(InteropError, match=r'dict_class: expected one of Auto.*found "CrossCoder"'):
        read(tmp_path)


def test_a_pickled_object_is_refused_and_not_run(tmp_path):
    """The archive would call ``eval``; it is named, and nothing of it runs."""

    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    save(tmp_path, "AutoEncoder", golden("AutoEncoder", 8, 32))
    torch.save({"encoder.weight": Payload()}, tmp_path / "ae.pt")
    expected = r"ae.pt: expected tensors only, found \w*\.?eval; refused, save a state dict"
    with pytest.raises(InteropError, match=expected):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.bias": None}, r"ae.pt: encoder.bias: expected shape \(32,\), found nothing"),
        ({"decoder.weight": torch.zeros(32, 8)}, r"expected \(8, 32\), found \(32, 8\); looks tr"),
        ({"bias": torch.full((8,), torch.nan)}, r"bias: expected finite values, found 8 of 8"),
        ({"bias": [1, 2]}, r"bias: expected a tensor, number, string or None, found list"),
    ],
)
def test_a_bad_state_dict(tmp_path, change, message):
    save(tmp_path, "AutoEncoder", golden("AutoEncoder", 8, 32))
    state = {**golden("AutoEncoder", 8, 32), **change}
    torch.save(
        {key: value for key, value in state.items() if value is not None}, tmp_path / "ae.pt"
    )
    with pytest.raises(InteropError, match=message) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("threshold", "message"),
    [(-1.0, "found -1, which was never estimated"), (None, "found nothing")],
)
def test_a_threshold_that_was_never_estimated(tmp_path, threshold, message):
    state = golden("BatchTopKSAE", 8, 32)
    state["threshold"] = torch.tensor(-1.0 if threshold is None else threshold)
    if threshold is None:
        del state["threshold"]
    save(tmp_path, "BatchTopKSAE", state)
    with pytest.raises(InteropError, match=rf"threshold: expected at least 0, {message}"):
        read(tmp_path)


def test_numbers_that_disagree(tmp_path):
    state = golden("AutoEncoderTopK", 8, 32)
    save(tmp_path, "AutoEncoderTopK", state, k=7)
    with pytest.raises(InteropError, match=r"k: expected 7 as in config.json, found 5"):
        read(tmp_path)
    save(tmp_path, "AutoEncoderTopK", state, k=33)
    with pytest.raises(InteropError, match=r"trainer.k: expected at most dict_size = 32, found 33"):
        read(tmp_path)
    state = golden("MatryoshkaBatchTopKSAE", 8, 32) | {"group_sizes": torch.tensor([8, 8])}
    save(tmp_path, "MatryoshkaBatchTopKSAE", state)
    with pytest.raises(InteropError, match=r"group_sizes: expected sizes that add up to 32"):
        read(tmp_path)
    save(tmp_path, "JumpReluAutoEncoder", golden("JumpReluAutoEncoder", 8, 32))
    config = json.loads((tmp_path / "config.json").read_text())
    config["trainer"]["apply_b_dec_to_input"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InteropError, match="its own loader forgets it"):
        read(tmp_path)


def test_what_the_format_cannot_hold(tmp_path, make):
    signed = make(CoderConfig(latents=32, gate=TopKConfig(k=4, sign="abs")))
    message = r"gate: expected ReLU, .* in an SAE, found AbsTopK; use saelens, or --lossy"
    with pytest.raises(InteropError, match=message):
        write_dictionary_learning((signed,), tmp_path / "out", WriteOptions())
    assert not (tmp_path / "out").exists()
    transcoder = make(CONFIGS["AutoEncoder"], d_out=8)
    with pytest.raises(InteropError, match="sites: expected one, found those of a transcoder"):
        write_dictionary_learning((transcoder,), tmp_path / "out", WriteOptions())
    with pytest.raises(InteropError, match="expected one dictionary, found 2; export them one by"):
        write_dictionary_learning((signed, signed), tmp_path / "out", WriteOptions())


def test_the_nearest_form_and_how_near_it_is(tmp_path, make):
    signed = make(CoderConfig(latents=32, gate=TopKConfig(k=4, sign="abs")))
    options = WriteOptions(lossy=True)
    (line,) = write_dictionary_learning((signed,), tmp_path / "out", options)
    assert line.startswith("made: written as TopK, which is not AbsTopK: other latents are active")
    assert line.endswith("of 512 Gaussian rows")
    assert read(tmp_path / "out").config.gate == TopKConfig(k=4)
