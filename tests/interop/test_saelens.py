"""SAELens folders without SAELens: the format's table as reference code, and every bad input.

``test_saelens_package.py`` does the same through SAELens itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import laws
from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.dictionaries import Coder, CoderConfig
from pellucid.dictionaries.atoms import DenseAtomsConfig
from pellucid.dictionaries.gates import BatchTopKConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.interop import ReadOptions, WriteOptions
from pellucid.interop.saelens import read_saelens, write_saelens
from pellucid.interop.weights import weights_of

K = 4
PURSUIT = PursuitConfig(k=K, residual=0.5)
SAES = {
    "standard": CoderConfig(latents=16, gate=ReLUConfig(), auxk=0.0),
    "topk": CoderConfig(latents=16, gate=TopKConfig(k=K)),
    "abstopk": CoderConfig(latents=16, gate=TopKConfig(k=K, sign="abs")),
    "jumprelu": CoderConfig(latents=16, gate=JumpReLUConfig(l0=4.0), auxk=0.0),
    "gated": CoderConfig(latents=16, gate=GatedConfig(), auxk=0.0),
    "matching_pursuit": CoderConfig(
        latents=16, gate=PURSUIT, atoms=DenseAtomsConfig(tied=True), auxk=0.0
    ),
}
TRANSCODERS = {
    "transcoder": SAES["standard"],
    "skip_transcoder": CoderConfig(latents=16, gate=ReLUConfig(), auxk=0.0, skip=True),
    "jumprelu_transcoder": SAES["jumprelu"],
    "jumprelu_skip_transcoder": CoderConfig(latents=16, gate=BatchTopKConfig(k=K), skip=True),
}
CASES = [(name, config, None) for name, config in SAES.items()] + [
    (name, config, 5) for name, config in TRANSCODERS.items()
]


def reference(
    config: Mapping[str, Any], t: Mapping[str, Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Latents and output by the format's table."""
    kind, centre = config["architecture"], t["b_dec"]
    z = x - centre if config["apply_b_dec_to_input"] else x
    if kind == "matching_pursuit":
        f = torch.stack([_pursue(config, t["W_dec"], row) for row in z])
        return f, f @ t["W_dec"] + centre
    a = z @ t["W_enc"]
    if kind == "gated":
        f = (a + t["b_gate"] > 0) * torch.relu(t["r_mag"].exp() * a + t["b_mag"])
        return f, f @ t["W_dec"] + centre
    a = a + t["b_enc"]
    if kind in ("topk", "abstopk"):
        norm = t["W_dec"].norm(dim=1) if config["rescale_acts_by_decoder_norm"] else 1.0
        a = a * norm
        rank = a.abs() if kind == "abstopk" else a
        f = a * torch.zeros_like(a).scatter(1, rank.topk(config["k"]).indices, 1.0)
        f = f if kind == "abstopk" else torch.relu(f)
        return f, (f / norm) @ t["W_dec"] + centre
    f = torch.relu(a)
    if kind.startswith("jumprelu"):
        f = f * (a > t["threshold"])
    y = f @ t["W_dec"] + centre
    return f, y + x @ t["W_skip"].T if "skip" in kind else y


def _pursue(config: Mapping[str, Any], atoms: Tensor, z: Tensor) -> Tensor:
    f, r = z.new_zeros(len(atoms)), z.clone()
    for _ in range(config["max_iterations"]):
        j = int((atoms @ r).relu().argmax())
        value = (atoms[j] @ r).relu()
        known = bool(f[j] != 0)
        f[j] += value
        r = r - value * atoms[j]
        if r.norm() < config["residual_threshold"] or known or value == 0:
            break
    return f


def dense(coder: Coder, x: Tensor) -> Tensor:
    code = coder.activate(x)
    spread = torch.zeros(len(x), coder.config.latents, dtype=x.dtype)
    return spread.scatter_add(1, code.unit, code.value)


def read(path: Path, **options: Any) -> Coder:
    (found,) = read_saelens(path, ReadOptions(dtype="float64", **options))
    return found.coder


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((path / "cfg.json").read_text()), load_file(path / "sae_weights.safetensors")


@pytest.fixture
def folder(tmp_path, make):
    """A written folder, changed as asked: fields and tensors replaced, None removes."""

    def build(
        name: str = "topk", *, cfg: Mapping[str, Any] | None = None, **tensors: Tensor | None
    ) -> Path:
        config = SAES.get(name) or TRANSCODERS[name]
        coder = make(config, d_out=None if name in SAES else 5)
        path = tmp_path / "out"
        write_saelens((coder,), path, WriteOptions(dtype="float64", overwrite=True))
        fields, state = parts(path)
        changed = {**fields, **(cfg or {})}
        kept = {key: value for key, value in {**state, **tensors}.items() if value is not None}
        (path / "cfg.json").write_text(
            json.dumps({key: value for key, value in changed.items() if value is not None})
        )
        save_file(
            {key: value.contiguous() for key, value in kept.items()},
            path / "sae_weights.safetensors",
        )
        return path

    return build


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "config", "d_out"), CASES)
def test_what_is_written_computes_the_same(tmp_path, make, rows, close, name, config, d_out):
    ours = make(config, d_out=d_out)
    write_saelens((ours,), tmp_path / "out", WriteOptions(dtype="float64"))
    fields, tensors = parts(tmp_path / "out")
    assert fields["architecture"] == name
    x = rows(ours)
    code, output = reference(fields, tensors, x)
    scale = ours.in_scale if ours.gate.solves else 1.0
    close(dense(ours, x) / scale, code)
    close(ours(x), output)


@pytest.mark.parametrize(("name", "config", "d_out"), CASES)
def test_round_trip(tmp_path, make, rows, close, name, config, d_out):
    ours = make(config, d_out=d_out)
    write_saelens((ours,), tmp_path / "out", WriteOptions(dtype="float64"))
    back = read(tmp_path / "out")
    before, after = weights_of(ours), weights_of(back)
    for field in ("encoder", "encoder_bias", "decoder", "decoder_bias", "skip", "threshold"):
        one, other = getattr(before, field), getattr(after, field)
        assert (one is None) == (other is None), field
        assert one is None or torch.equal(one, other), field
    x = rows(ours, 5)
    close(back(x), ours(x))
    for law in laws.LAWS:
        law(back, x)


@pytest.mark.parametrize("kind", ["topk", "abstopk"])
def test_rescaled_selections_are_folded(folder, close, kind):
    path = folder(kind, cfg={"rescale_acts_by_decoder_norm": True})
    state = parts(path)[1]
    ours = read(path)
    x = torch.randn(20, 8, dtype=torch.float64) + state["b_dec"]
    code, output = reference(*parts(path), x)
    close(dense(ours, x), code)
    close(ours(x), output)
    state["W_dec"][3] = 0
    save_file(state, path / "sae_weights.safetensors")
    with pytest.raises(InteropError, match="divides by norms of rows, found row 3 zero"):
        read(path)


def test_negative_thresholds_mean_zero(folder, close):
    """Theirs applies a ReLU too, so θ = −1 is θ = 0."""
    path = folder("jumprelu", threshold=torch.full((16,), -1.0, dtype=torch.float64))
    ours = read(path)
    assert not ours.gate.threshold.any()
    x = torch.randn(20, 8, dtype=torch.float64) + ours.bias
    close(dense(ours, x), reference(*parts(path), x)[0])


def test_a_pursuit_of_rows_that_are_not_unit(folder, close):
    """SAELens does not keep them unit while training; what it then computes is kept."""
    atoms = torch.randn(16, 8, dtype=torch.float64) * 0.3
    path = folder("matching_pursuit", W_dec=atoms)
    (found,) = read_saelens(path, ReadOptions(dtype="float64"))
    assert "rows have norms from" in found.warnings[0]
    x = torch.randn(20, 8, dtype=torch.float64) + found.coder.bias
    close(dense(found.coder, x), reference(*parts(path), x)[0])
    close(found.coder(x), reference(*parts(path), x)[1])


def test_another_precision(folder):
    path = folder("topk")
    (found,) = read_saelens(path, ReadOptions())
    assert found.coder.bias.dtype == torch.float32


# --- what else a folder says ---------------------------------------------------------------------


def test_provenance_model_and_sites(folder):
    path = folder("topk")
    fields = parts(path)[0]
    del fields["metadata"]["pellucid"]
    fields["metadata"] |= {"hook_name": "blocks.7.hook_resid_post", "model_name": "some/model"}
    (path / "cfg.json").write_text(json.dumps(fields))
    (found,) = read_saelens(path, ReadOptions(name="mine"))
    assert found.coder.spec.name == "mine"
    assert found.model == {"kind": "huggingface", "name": "some/model"}
    assert found.provenance == {"format": "saelens", "config": fields}
    assert found.warnings == ()
    # The Hugging Face name beside it, here the one of layer 1, tells where layers are kept.
    assert str(found.coder.spec.reads) == "model.layers.7:out"
    fields["metadata"]["hf_hook_name"] = "gpt_neox.layers.7"
    (path / "cfg.json").write_text(json.dumps(fields))
    assert str(read(path).spec.reads) == "gpt_neox.layers.7:out"
    assert str(read(path, layers="blocks").spec.reads) == "blocks.7:out"
    assert read(path).spec.name == "out"
    site = Site.parse("a.b:in")
    assert read(path, reads=site).spec.reads == read(path, reads=site).spec.writes == site


def test_a_transcoder_needs_two_sites(folder):
    path = folder("transcoder")
    fields = parts(path)[0]
    del fields["metadata"]["pellucid"]
    (path / "cfg.json").write_text(json.dumps(fields))
    found = read(path).spec
    assert (str(found.reads), str(found.writes)) == (
        "model.layers.1.mlp:in",
        "model.layers.1.mlp:out",
    )
    del fields["metadata"]["hook_name_out"]
    (path / "cfg.json").write_text(json.dumps(fields))
    with pytest.raises(InteropError, match=r"metadata\.hook_name_out: expected a hook, found noth"):
        read(path)
    assert str(read(path, writes=Site.parse("a:out")).spec.writes) == "a:out"


def test_hooks_are_written_as_saelens_takes_them(tmp_path, make):
    coder = make(SAES["topk"])
    write_saelens((coder,), tmp_path / "a", WriteOptions(model={"name": "m"}))
    metadata = parts(tmp_path / "a")[0]["metadata"]
    assert metadata["hook_name"] == metadata["hf_hook_name"] == "model.layers.1"
    assert metadata["model_class_name"] == "AutoModelForCausalLM"
    assert metadata["sae_lens_version"].startswith("6.")
    assert metadata["training_architecture"] == "TopK"
    write_saelens((make(TRANSCODERS["transcoder"], d_out=5),), tmp_path / "b", WriteOptions())
    metadata = parts(tmp_path / "b")[0]["metadata"]
    assert metadata["hook_name"] == "blocks.1.mlp.hook_in"
    assert metadata["hook_name_out"] == "model.layers.1.mlp"


def test_nothing_is_overwritten_unasked(tmp_path, make):
    coder = make(SAES["topk"])
    write_saelens((coder,), tmp_path / "a", WriteOptions())
    with pytest.raises(InteropError, match="exists already"):
        write_saelens((coder,), tmp_path / "a", WriteOptions())


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cfg", "message"),
    [
        (
            "topk",
            {"architecture": "temporal"},
            r'architecture: expected one of standard, topk, .*, found "temporal"',
        ),
        ("topk", {"architecture": None}, "architecture: expected a string, found nothing"),
        ("topk", {"d_in": None}, "d_in: expected an integer, found nothing; fields: apply_b_dec"),
        ("topk", {"d_in": "8"}, "d_in: expected an integer, found '8'"),
        ("topk", {"k": None}, "k: expected an integer, found nothing"),
        ("topk", {"k": 17}, "k: expected at most d_sae = 16, found 17"),
        ("topk", {"k": 0}, "k: expected at least 1, found 0"),
        ("topk", {"d_sae": 15}, r"W_enc: expected \(8, 15\), found \(8, 16\)$"),
        ("transcoder", {"d_out": None}, "d_out: expected an integer, found nothing"),
        (
            "transcoder",
            {"apply_b_dec_to_input": True},
            "expected false in a transcoder, found true",
        ),
        ("matching_pursuit", {"max_iterations": 17}, "expected 1 to d_sae = 16, found 17"),
        ("topk", {"finetuning_scaling_factor": True}, "finetuning_scaling_factor: expected false"),
        ("topk", {"activation_fn": "tanh-relu"}, "activation_fn: expected topk, found 'tanh-relu'"),
        (
            "topk",
            {"rescale_act_by_decoder_norm": True, "rescale_acts_by_decoder_norm": None},
            "unknown field; did you mean 'rescale_acts_by_decoder_norm'",
        ),
        (
            "topk",
            {"normalize_activations": "zscore"},
            "normalize_activations: expected one of none",
        ),
    ],
)
def test_a_bad_config(folder, name, cfg, message):
    path = folder(name, cfg=cfg)
    with pytest.raises(InteropError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        (
            "topk",
            {"b_dec": None},
            r"b_dec: expected shape \(8,\), found nothing; keys: W_dec, W_enc",
        ),
        (
            "topk",
            {"W_dec": torch.zeros(8, 16)},
            r"W_dec: expected \(16, 8\), found \(8, 16\); looks",
        ),
        ("topk", {"b_enc": torch.full((16,), torch.inf)}, "b_enc: expected finite values"),
        ("gated", {"r_mag": None}, r"r_mag: expected shape \(16,\), found nothing"),
        ("jumprelu", {"threshold": torch.zeros(1)}, r"threshold: expected \(16,\), found \(1,\)"),
        (
            "skip_transcoder",
            {"W_skip": torch.zeros(8, 5)},
            r"W_skip: expected \(5, 8\), found \(8, 5\)",
        ),
        ("topk", {"scaling_factor": torch.full((16,), 2.0)}, "scaling_factor: expected ones"),
    ],
)
def test_a_bad_tensor(folder, name, tensors, message):
    path = folder(name, **tensors)
    with pytest.raises(InteropError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_widths_equal_hide_no_transposition(tmp_path, make, rows, close):
    """n = d: a transposed file cannot be told, so what is written must be right."""
    ours = make(CoderConfig(latents=8, gate=TopKConfig(k=3)), d=8)
    write_saelens((ours,), tmp_path / "out", WriteOptions(dtype="float64"))
    x = rows(ours)
    close(reference(*parts(tmp_path / "out"), x)[1], ours(x))
    close(read(tmp_path / "out")(x), ours(x))


def test_harmless_unknowns_are_told(folder):
    path = folder("topk", cfg={"l1_coefficient": 3.0}, extra=torch.zeros(2))
    (found,) = read_saelens(path, ReadOptions())
    assert found.warnings == (
        f"{path / 'cfg.json'}: without meaning here: l1_coefficient",
        f"{path / 'sae_weights.safetensors'}: without meaning here: extra",
    )


def test_factors_of_one_are_ignored(folder):
    assert read(folder("topk", scaling_factor=torch.ones(16)))


def test_missing_files(folder):
    path = folder("topk")
    (path / "sae_weights.safetensors").unlink()
    with pytest.raises(
        InteropError, match=r"sae_weights\.safetensors: expected safetensors, found no"
    ):
        read(path)
    with pytest.raises(
        InteropError, match=r"cfg\.json: expected a JSON object, found no such file"
    ):
        read(path / "nowhere")


def test_one_width_for_one_site(folder):
    path = folder("transcoder")
    site = Site.parse("a:out")
    with pytest.raises(InteropError, match="one site has one width, found 8 and 5"):
        read(path, reads=site, writes=site)
