"""sparsify folders without sparsify: the format's table as reference code, and every bad input.

``test_sparsify_package.py`` does the same through sparsify itself.
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
from pellucid.dictionaries.gates import GroupmaxConfig, ReLUConfig, TopKConfig
from pellucid.interop import ReadOptions, WriteOptions
from pellucid.interop.sparsify import read_sparsify, write_sparsify
from pellucid.interop.weights import weights_of

CONFIGS = {
    "topk": CoderConfig(latents=16, gate=TopKConfig(k=4)),
    "groupmax": CoderConfig(latents=16, gate=GroupmaxConfig(k=4)),
    "skip": CoderConfig(latents=16, gate=TopKConfig(k=4), skip=True),
}


def reference(
    config: Mapping[str, Any], t: Mapping[str, Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Latents and output by the format's table."""
    z = x if config["transcode"] else x - t["b_dec"]
    a = torch.relu(z @ t["encoder.weight"].T + t["encoder.bias"])
    k = config["k"]
    if config["activation"] == "topk":
        keep = torch.zeros_like(a).scatter(1, a.topk(k).indices, 1.0)
    else:
        blocks = a.view(len(a), k, -1)
        keep = torch.zeros_like(blocks).scatter(2, blocks.argmax(2, keepdim=True), 1.0).view_as(a)
    f = a * keep
    y = f @ t["W_dec"] + t["b_dec"]
    return f, y + x @ t["W_skip"].T if config["skip_connection"] else y


def dense(coder: Coder, x: Tensor) -> Tensor:
    code = coder.activate(x)
    spread = torch.zeros(len(x), coder.config.latents, dtype=x.dtype)
    return spread.scatter_add(1, code.unit, code.value)


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((path / "cfg.json").read_text()), load_file(path / "sae.safetensors")


def read(path: Path, **options: Any) -> Coder:
    (found,) = read_sparsify(path, ReadOptions(dtype="float64", **options))
    return found.coder


@pytest.fixture
def folder(tmp_path, make):
    """A written hookpoint without our record, fields and tensors replaced, None removes."""

    def build(
        name: str = "topk", *, cfg: Mapping[str, Any] | None = None, **tensors: Tensor | None
    ) -> Path:
        options = WriteOptions(dtype="float64", overwrite=True)
        write_sparsify((make(CONFIGS[name], d_out=8),), tmp_path / "out", options)
        path = tmp_path / "out" / "layers.1.mlp"
        fields, state = parts(path)
        changed = {**fields, "pellucid": None, **(cfg or {})}
        kept = {key: value for key, value in {**state, **tensors}.items() if value is not None}
        text = json.dumps({key: value for key, value in changed.items() if value is not None})
        (path / "cfg.json").write_text(text)
        save_file(kept, path / "sae.safetensors")
        return path

    return build


@pytest.mark.parametrize("equal_scales", [True, False])
@pytest.mark.parametrize("d_out", [None, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_computes_the_same(tmp_path, make, rows, close, name, d_out, equal_scales):
    ours = make(CONFIGS[name], d_out=d_out)
    if not equal_scales:
        ours.out_scale.fill_(0.8)
    told = write_sparsify((ours,), tmp_path / "out", WriteOptions(dtype="float64"))
    path = tmp_path / "out" / ("layers.1.mlp" if d_out else "layers.1")
    assert told == (f"made: written to {path}",)
    x = rows(ours)
    code, output = reference(*parts(path), x)
    close(dense(ours, x), code)
    close(ours(x), output)


@pytest.mark.parametrize("d_out", [None, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(tmp_path, make, rows, name, d_out):
    ours = make(CONFIGS[name], d_out=d_out)
    model = {"kind": "run", "name": "runs/a"}
    write_sparsify((ours,), tmp_path / "out", WriteOptions(dtype="float64", model=model))
    (found,) = read_sparsify(tmp_path / "out", ReadOptions(dtype="float64"))
    before, after = weights_of(ours), weights_of(found.coder)
    for field in ("encoder", "encoder_bias", "decoder", "decoder_bias", "skip"):
        one, other = getattr(before, field), getattr(after, field)
        assert (one is None) == (other is None), field
        assert one is None or torch.equal(one, other), field
    assert found.coder.spec.reads == ours.spec.reads
    assert found.coder.spec.name == "made"
    assert found.model == model
    x = rows(ours, 5)
    for law in laws.LAWS:
        law(found.coder, x)


def test_several_hookpoints(tmp_path, make):
    ours = tuple(make(CONFIGS["topk"], d_out=8, layer=layer) for layer in (0, 2))
    assert len(write_sparsify(ours, tmp_path / "out", WriteOptions())) == 2
    found = read_sparsify(tmp_path / "out", ReadOptions())
    assert [str(one.coder.spec.writes) for one in found] == [
        "model.layers.0.mlp:out",
        "model.layers.2.mlp:out",
    ]
    # One recorded name would be one folder.
    assert [one.coder.spec.name for one in found] == ["layers.0.mlp", "layers.2.mlp"]
    with pytest.raises(InteropError, match="one name or site was given for 2 dictionaries"):
        read_sparsify(tmp_path / "out", ReadOptions(name="x"))
    with pytest.raises(InteropError, match=r"two dictionaries for layers\.0\.mlp; export them"):
        write_sparsify((ours[0], ours[0]), tmp_path / "b", WriteOptions())
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("layers", "hookpoint", "module"),
    [
        ("model.layers", "layers.3.mlp", "model.layers.3.mlp"),
        ("blocks", "layers.3.mlp", "blocks.3.ffn"),
        ("gpt_neox.layers", "layers.3", "gpt_neox.layers.3"),
        ("transformer.h", "h.3.mlp", "transformer.h.3.mlp"),
        ("layers", "layers.3", "layers.3"),
    ],
)
def test_a_hookpoint_is_a_module_below_the_base(folder, layers, hookpoint, module):
    path = folder("topk").rename(folder("topk").with_name(hookpoint))
    found = read(path, layers=layers).spec
    assert (str(found.reads), str(found.writes)) == (f"{module}:in", f"{module}:out")
    assert found.name == hookpoint
    cfg = json.loads((path / "cfg.json").read_text()) | {"transcode": False}
    (path / "cfg.json").write_text(json.dumps(cfg))
    assert str(read(path, layers=layers).spec.reads) == f"{module}:out"
    site = Site.parse("a:in")
    assert read(path, reads=site).spec.writes == site


def test_the_run_beside_it_names_the_model(folder):
    path = folder("topk")
    (path.parent / "config.json").write_text(json.dumps({"model": "some/model", "batch_size": 8}))
    (found,) = read_sparsify(path, ReadOptions())
    assert found.model == {"kind": "huggingface", "name": "some/model"}
    assert found.provenance["config"]["k"] == 4
    (path.parent / "config.json").unlink()
    assert read_sparsify(path, ReadOptions())[0].model == {}


@pytest.mark.parametrize(
    ("name", "cfg", "message"),
    [
        (
            "topk",
            {"activation": "relu"},
            r'activation: expected one of topk, groupmax, found "relu"',
        ),
        ("topk", {"k": None}, "k: expected an integer, found nothing"),
        ("topk", {"k": 17}, "k: expected at most num_latents = 16, found 17"),
        ("groupmax", {"k": 3}, "k: expected a divisor of num_latents = 16, found 3"),
        ("topk", {"d_in": 7}, r"encoder\.weight: expected \(16, 7\), found \(16, 8\)$"),
        ("topk", {"num_latents": 0, "expansion_factor": 3}, r"expected \(24, 8\), found \(16, 8\)"),
        ("topk", {"signed": True}, "signed: expected false, found true"),
        ("topk", {"skip_connection": True}, r"W_skip: expected shape \(8, 8\), found nothing"),
    ],
)
def test_a_bad_config(folder, name, cfg, message):
    path = folder(name, cfg=cfg)
    with pytest.raises(InteropError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"b_dec": None}, r"b_dec: expected shape \(8,\), found nothing; keys: W_dec, encoder"),
        ({"W_dec": torch.zeros(8, 16)}, r"W_dec: expected \(16, 8\), found \(8, 16\); looks trans"),
        ({"b_dec": torch.full((8,), torch.nan)}, "b_dec: expected finite values, found 8 of 8"),
    ],
)
def test_a_bad_tensor(folder, tensors, message):
    with pytest.raises(InteropError, match=message):
        read(folder("topk", **tensors))


def test_unknown_fields_are_told_and_training_ones_are_not(folder):
    path = folder("topk", cfg={"colour": "red"}, extra=torch.zeros(1))
    (found,) = read_sparsify(path, ReadOptions())
    assert found.warnings == (f"{path}: without meaning here: colour, extra",)
    assert read_sparsify(folder("topk"), ReadOptions())[0].warnings == ()


def test_nothing_to_read(tmp_path):
    with pytest.raises(
        InteropError, match=r"expected cfg\.json or folders that hold it, found none"
    ):
        read_sparsify(tmp_path, ReadOptions())


def test_what_the_format_cannot_hold(tmp_path, make):
    relu = make(CoderConfig(latents=16, gate=ReLUConfig(), auxk=0.0))
    message = "found ReLU; use saelens, or dictionary_learning, or saelens with --own-class, or k"
    with pytest.raises(InteropError, match=message):
        write_sparsify((relu,), tmp_path / "out", WriteOptions())
    wide = make(CONFIGS["topk"], d_out=9)
    with pytest.raises(InteropError, match="widths: expected equal ones, found 8 and 9"):
        write_sparsify((wide,), tmp_path / "out", WriteOptions())
    signed = make(CoderConfig(latents=16, gate=TopKConfig(k=4, sign="signed")))
    lines = write_sparsify((signed,), tmp_path / "out", WriteOptions(lossy=True))
    assert "written as TopK, which is not signed TopK" in lines[0]


def test_sites_the_format_has_no_name_for(tmp_path, make):
    spec_of = {"reads": "model.layers.1:in", "writes": "model.layers.1:in"}
    coder = make(CONFIGS["topk"])
    object.__setattr__(coder._spec, "reads", Site.parse(spec_of["reads"]))
    object.__setattr__(coder._spec, "writes", Site.parse(spec_of["writes"]))
    with pytest.raises(InteropError, match="sites: expected one module's output, found model"):
        write_sparsify((coder,), tmp_path / "out", WriteOptions())
    assert not (tmp_path / "out").exists()
