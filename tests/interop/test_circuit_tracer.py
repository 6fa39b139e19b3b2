"""circuit-tracer's transcoder sets against reference code written from the format's table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import laws
from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.dictionaries import Coder, CoderConfig
from pellucid.dictionaries.atoms import ExpanderAtomsConfig
from pellucid.dictionaries.gates import BatchTopKConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.interop import Imported, ReadOptions, WriteOptions
from pellucid.interop.circuit_tracer import read_circuit_tracer, write_circuit_tracer
from pellucid.interop.weights import weights_of

K, LAYERS = 5, 3
THETA = "activation_function.threshold"
SHAPES = ((8, 32), (16, 16))
ACTIVATIONS = ("relu", "topk", None)


def reference(
    state: Mapping[str, Tensor], config: Mapping[str, Any], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Features and output of one layer's file."""
    a = x @ state["W_enc"].T + state["b_enc"]
    if config.get("activation") == "topk":
        keep = torch.zeros_like(a).scatter(1, a.topk(config["k"], dim=1).indices, 1.0)
        f = a * keep
    elif config.get("activation") is None and THETA in state:
        f = a * (a > state[THETA])
    else:
        f = torch.relu(a)
    y = f @ state["W_dec"] + state["b_dec"]
    return f, y + x @ state["W_skip"].T if "W_skip" in state else y


def golden(
    folder: Path,
    activation: str | None,
    d: int = 8,
    n: int = 32,
    *,
    dtype: torch.dtype = torch.float64,
    threshold: bool = True,
    skip: bool = True,
    **fields: Any,
) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """A set of three layers with uneven decoder rows, large biases and thresholds below 0 too."""
    folder.mkdir(exist_ok=True)
    states = []
    for layer in range(LAYERS):
        rows = torch.randn(n, d)
        state = {
            "W_enc": torch.randn(n, d) * 0.5,
            "b_enc": torch.randn(n) * 0.5,
            "W_dec": rows / rows.norm(dim=1, keepdim=True) * (torch.rand(n, 1) * 1.5 + 0.5),
            "b_dec": torch.randn(d) * 5,
        }
        if skip:
            state["W_skip"] = torch.randn(d, d)
        if activation is None and threshold:
            state[THETA] = torch.rand(n) - 0.3
        state = {key: tensor.to(dtype) for key, tensor in state.items()}
        save_file(state, folder / f"layer_{layer}.safetensors")
        states.append(state)
    config = {
        "model_name": "some/model",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "team/set",
        **({"activation": activation} if activation else {}),
        **({"k": K} if activation == "topk" else {}),
        **fields,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return states, config


def read(folder: Path, **options: Any) -> tuple[Imported, ...]:
    return read_circuit_tracer(folder, ReadOptions(**options))


def dense(coder: Coder, x: Tensor) -> Tensor:
    code = coder.activate(x)
    spread = torch.zeros(len(x), coder.config.latents, dtype=x.dtype)
    return spread.scatter_add(1, code.unit, code.value)


# --- theirs to ours ------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_theirs_to_ours(tmp_path, close, activation, dtype, d, n):
    states, config = golden(tmp_path, activation, d, n, dtype=dtype)
    precision = "float64" if dtype == torch.float64 else "float32"
    found = read(tmp_path, dtype=precision)
    assert len(found) == LAYERS
    for layer, (one, state) in enumerate(zip(found, states)):
        x = torch.randn(24, d, dtype=getattr(torch, precision))
        exact = {key: tensor.to(x.dtype) for key, tensor in state.items()}
        code, output = reference(exact, config, x)
        assert 0 < (code != 0).double().mean() < 1
        close(dense(one.coder, x), code)
        close(one.coder(x), output)
        assert str(one.coder.spec.reads) == f"model.layers.{layer}.mlp:in"
        assert str(one.coder.spec.writes) == f"model.layers.{layer}.mlp:out"
        assert one.model == {"kind": "huggingface", "name": "some/model"}
        assert one.coder.spec.name == f"set-{layer}"
        assert one.warnings == ()


def test_their_topk_keeps_negative_values(tmp_path):
    """So it is our signed TopK: with k = n every pre-activation passes, whatever its sign."""
    golden(tmp_path, "topk", k=32)
    coder = read(tmp_path, dtype="float64")[0].coder
    assert coder.config.gate == TopKConfig(k=32, sign="signed")
    assert (dense(coder, torch.randn(4, 8, dtype=torch.float64)) < 0).any()


def test_without_thresholds_it_is_relu(tmp_path, close):
    states, config = golden(tmp_path, None, threshold=False, skip=False)
    coder = read(tmp_path, dtype="float64")[0].coder
    assert coder.config.gate == ReLUConfig()
    assert coder.skip is None
    x = torch.randn(9, 8, dtype=torch.float64)
    close(coder(x), reference(states[0], config, x)[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_laws_hold_over_their_transcoders(tmp_path, activation):
    golden(tmp_path, activation, n=12)
    coder = read(tmp_path, dtype="float64")[1].coder
    x = torch.randn(5, 8, dtype=torch.float64)
    for law in laws.LAWS:
        law(coder, x)


def test_a_pre_activation_at_its_threshold_is_off(tmp_path):
    """a = 4.5 − 4 = θ = 0.5, exact in binary."""
    states, _ = golden(tmp_path, None)
    state = states[0]
    state["W_enc"][0] = torch.eye(8)[0]
    state["b_enc"][0], state[THETA][0] = -4.0, 0.5
    save_file(state, tmp_path / "layer_0.safetensors")
    x = torch.zeros(2, 8, dtype=torch.float64)
    x[:, 0] = torch.tensor([4.5, 4.5 + 2**-40], dtype=torch.float64)
    found = dense(read(tmp_path, dtype="float64")[0].coder, x)
    assert found[:, 0].tolist() == [0, 0.5 + 2**-40]


def test_named_files_and_sites(tmp_path):
    golden(tmp_path, "relu", transcoders=[f"layer_{layer}.safetensors" for layer in range(LAYERS)])
    assert len(read(tmp_path)) == LAYERS
    golden(tmp_path, "relu", feature_input_hook="ln2.hook_normalized")
    with pytest.raises(InteropError, match="--norm-folded if the gain was folded"):
        read(tmp_path)
    assert str(read(tmp_path, norm_folded=True)[2].coder.spec.reads) == "model.layers.2.mlp:in"
    golden(tmp_path, "relu", feature_input_hook="hook_resid_mid")
    with pytest.raises(InteropError, match="feature_input_hook: expected a hook named"):
        read(tmp_path)
    site = Site.parse("model.layers.*.post_attention_layernorm:in")
    found = read(tmp_path, reads=site)[2].coder.spec
    assert str(found.reads) == "model.layers.2.post_attention_layernorm:in"
    with pytest.raises(InteropError, match=r"one site was given for 3 layers.*write \*"):
        read(tmp_path, reads=Site.parse("model.layers.1.mlp:in"))


# --- ours to theirs ------------------------------------------------------------------------------

CONFIGS = {
    "relu": CoderConfig(latents=32, gate=ReLUConfig(), auxk=0.0),
    "jumprelu": CoderConfig(latents=32, gate=JumpReLUConfig(l0=4.0), auxk=0.0),
    "batchtopk": CoderConfig(latents=32, gate=BatchTopKConfig(k=K)),
    "signed": CoderConfig(latents=32, gate=TopKConfig(k=K, sign="signed")),
    "expander": CoderConfig(
        latents=32,
        gate=TopKConfig(k=K, sign="signed"),
        atoms=ExpanderAtomsConfig(nonzeros=3),
        auxk=0.0,
    ),
    "skip": CoderConfig(latents=32, gate=ReLUConfig(), auxk=0.0, skip=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_ours_to_theirs(tmp_path, make, rows, close, name):
    ours = [make(CONFIGS[name], d_out=8, layer=layer) for layer in range(LAYERS)]
    # In any order: layers are told by their sites.
    write_circuit_tracer(tuple(ours[::-1]), tmp_path / "out", WriteOptions(dtype="float64"))
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["feature_input_hook"] == "mlp.hook_in"
    for layer, coder in enumerate(ours):
        state = load_file(tmp_path / "out" / f"layer_{layer}.safetensors")
        assert "k" not in state
        x = rows(coder)
        code, output = reference(state, config, x)
        assert 0 < (code != 0).double().mean() < 1
        close(dense(coder, x), code)
        close(coder(x), output)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(tmp_path, make, name):
    ours = tuple(make(CONFIGS[name], d_out=8, layer=i, dtype=torch.float32) for i in range(LAYERS))
    model = {"kind": "run", "name": "runs/a", "weights": "abc"}
    write_circuit_tracer(ours, tmp_path / "out", WriteOptions(model=model))
    for layer, (one, back) in enumerate(zip(ours, read(tmp_path / "out"))):
        before, after = weights_of(one), weights_of(back.coder)
        for field in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold", "skip"):
            value, other = getattr(before, field), getattr(after, field)
            assert (value is None) == (other is None), field
            assert value is None or torch.equal(value, other), field
        assert back.coder.spec.reads == one.spec.reads
        assert back.coder.spec.name == f"made-{layer}"
        assert back.model == model


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_kind": "cross_layer_transcoder"}, "found cross_layer_transcoder, whose features"),
        ({"model_kind": "sae"}, 'model_kind: expected one of transcoder_set, found "sae"'),
        ({"activation": "gelu"}, "activation: expected relu, topk or nothing, found 'gelu'"),
        ({"activation": "topk", "k": 33}, "k: expected at most features = 32, found 33"),
        ({"activation": "topk"}, "k: expected an integer, found nothing"),
        ({"transcoders": ["hf://a/b/layer_0.safetensors"]}, "expected local files, found 'hf://"),
        ({"transcoders": []}, "transcoders: expected files, found none"),
        (
            {"transcoders": ["layer_0.safetensors", "layer_2.safetensors"]},
            "expected every layer from 0, found layer_2.safetensors in place 1",
        ),
        ({"feature_input_hook": None}, "feature_input_hook: expected a string, found nothing"),
    ],
)
def test_a_bad_config(tmp_path, fields, message):
    _, config = golden(tmp_path, "relu")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | fields))
    with pytest.raises(InteropError, match=message) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "config.yaml") in str(error.value)


def test_a_gap_and_other_files(tmp_path):
    golden(tmp_path, "relu")
    (tmp_path / "layer_1.safetensors").unlink()
    with pytest.raises(InteropError, match="layers: expected every layer from 0 once, found 0, 2"):
        read(tmp_path)
    for path in tmp_path.glob("layer_*"):
        path.rename(path.with_name(path.name.replace("layer_", "W_enc_")))
    with pytest.raises(InteropError, match="found cross-layer files; expected layer_0"):
        read(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(InteropError, match="expected YAML, found"):
        read(tmp_path)
    (tmp_path / "config.yaml").write_text("3")
    with pytest.raises(InteropError, match="expected YAML fields, found int"):
        read(tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(InteropError, match="found no such file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_enc": torch.zeros(8, 32)}, r"W_enc: expected \(32, 8\), found \(8, 32\); looks trans"),
        ({"b_enc": None}, "b_enc: expected a vector, found nothing; keys: W_dec, W_enc"),
        ({"b_dec": torch.full((8,), torch.inf)}, "b_dec: expected finite values, found 8 of 8"),
        ({"k": torch.tensor(5)}, "activation: expected topk, since layer_1.safetensors holds k"),
    ],
)
def test_a_bad_file(tmp_path, change, message):
    states, _ = golden(tmp_path, "relu")
    state = {key: value for key, value in {**states[1], **change}.items() if value is not None}
    save_file(state, tmp_path / "layer_1.safetensors")
    with pytest.raises(InteropError, match=message) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_layers_of_different_sizes(tmp_path):
    golden(tmp_path, "relu", skip=False)
    narrow = {"W_enc": torch.zeros(16, 8), "W_dec": torch.zeros(16, 8)}
    narrow |= {"b_enc": torch.zeros(16), "b_dec": torch.zeros(8)}
    save_file(narrow, tmp_path / "layer_2.safetensors")
    with pytest.raises(InteropError, match="W_enc: expected one shape in all layers"):
        read(tmp_path)


def test_a_stored_k_is_checked(tmp_path):
    states, _ = golden(tmp_path, "topk")
    save_file(states[0] | {"k": torch.tensor(K)}, tmp_path / "layer_0.safetensors")
    assert read(tmp_path)[0].coder.config.k == K
    save_file(states[0] | {"k": torch.tensor(4)}, tmp_path / "layer_0.safetensors")
    with pytest.raises(InteropError, match=r"k: expected 5 as in config\.yaml, found 4"):
        read(tmp_path)


def test_unknown_fields_and_tensors_are_told(tmp_path):
    states, _ = golden(tmp_path, "relu", colour="red")
    save_file(states[0] | {"extra": torch.zeros(1)}, tmp_path / "layer_0.safetensors")
    found = read(tmp_path)
    assert [len(one.warnings) for one in found] == [2, 0, 0]
    assert "without meaning here: extra" in found[0].warnings[0]
    assert "without meaning here: colour" in found[0].warnings[1]


@pytest.mark.parametrize(
    ("configs", "layers", "message"),
    [
        (["relu"], [1], "layers: expected every layer from 0 once, found 1"),
        (["relu", "relu"], [0, 0], "expected every layer from 0 once, found 0, 0"),
        (["relu", "signed"], [0, 1], "activation: expected one for all layers"),
        (["relu", "skip"], [0, 1], "skip: expected one for all layers, found False and True"),
    ],
)
def test_sets_that_do_not_go_together(tmp_path, make, configs, layers, message):
    ours = tuple(make(CONFIGS[name], d_out=8, layer=layer) for name, layer in zip(configs, layers))
    with pytest.raises(InteropError, match=message):
        write_circuit_tracer(ours, tmp_path / "out", WriteOptions())
    assert not (tmp_path / "out").exists()


def test_what_the_format_cannot_hold(tmp_path, make):
    topk = make(CoderConfig(latents=32, gate=TopKConfig(k=4)), d_out=8, layer=0)
    message = r"found TopK; use sparsify, or --lossy for the nearest form"
    with pytest.raises(InteropError, match=message):
        write_circuit_tracer((topk,), tmp_path / "out", WriteOptions())
    (line,) = write_circuit_tracer((topk,), tmp_path / "out", WriteOptions(lossy=True))
    assert "written as signed TopK, which is not TopK" in line
    assert read(tmp_path / "out")[0].coder.config.gate == TopKConfig(k=4, sign="signed")
    wide = make(CONFIGS["relu"], d_out=9, layer=0)
    with pytest.raises(InteropError, match="widths: expected equal ones, found 8 and 9"):
        write_circuit_tracer((wide,), tmp_path / "b", WriteOptions())
    sae = make(CONFIGS["relu"], layer=0)
    with pytest.raises(InteropError, match="sites: expected two, found those of an SAE"):
        write_circuit_tracer((sae,), tmp_path / "b", WriteOptions())
    gated = make(CoderConfig(latents=32, gate=GatedConfig(), auxk=0.0), d_out=8, layer=0)
    with pytest.raises(InteropError, match="found gated; use saelens with --own-class, or keep"):
        write_circuit_tracer((gated,), tmp_path / "b", WriteOptions(lossy=True))
