"""SAELens configs: versions, sites, fields that must not be overlooked."""

import json
from typing import Any

import pytest

from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.interop import ReadOptions
from pellucid.interop.files import Fields
from pellucid.interop.saelens_config import check_unknown, hook_fields, read_config, read_sites

# The config of a well-known release from before version 6, shortened.
OLD = {
    "hook_point": "blocks.8.hook_resid_pre",
    "hook_point_layer": 8,
    "hook_point_head_index": None,
    "model_name": "gpt2-small",
    "dataset_path": "Skylion007/openwebtext",
    "context_size": 128,
    "d_in": 768,
    "d_sae": 24576,
    "dtype": "torch.float32",
    "device": "mps",
    "l1_coefficient": 8e-05,
    "activation_fn_str": "relu",
    "normalize_activations": False,
}


@pytest.fixture
def config(tmp_path):
    def write(data: dict[str, Any]) -> Fields:
        (tmp_path / "cfg.json").write_text(json.dumps(data))
        return read_config(tmp_path)

    return write


def test_an_old_config(config):
    fields = config(OLD)
    assert fields.data["architecture"] == "standard"
    assert fields.data["normalize_activations"] == "none"
    assert fields.data["metadata"] == {
        "hook_name": "blocks.8.hook_resid_pre",
        "hook_head_index": None,
        "model_name": "gpt2-small",
        "dataset_path": "Skylion007/openwebtext",
        "context_size": 128,
    }
    assert str(read_sites(fields, ReadOptions(), transcoder=False)[0]) == "model.layers.8:in"
    for name in ("architecture", "normalize_activations"):
        fields.find(name, str)
    fields.find("d_in", int)
    fields.find("d_sae", int)
    (line,) = check_unknown(fields)
    assert line.endswith("without meaning here: hook_point_layer, l1_coefficient")


@pytest.mark.parametrize("flag", [True, "expected_average_only_in"])
def test_an_old_normalisation(config, flag):
    fields = config(OLD | {"normalize_activations": flag})
    assert fields.data["normalize_activations"] == "expected_average_only_in"


def test_an_old_topk(config):
    fields = config(OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 32}})
    assert fields.data["architecture"] == "topk"
    assert fields.data["k"] == 32
    assert config(OLD | {"activation_fn_str": "topk"}).data["k"] is None


def test_old_heads_are_joined(config):
    fields = config(OLD | {"hook_point": "blocks.8.attn.hook_z"})
    assert fields.data["reshape_activations"] == "hook_z"
    with pytest.raises(InteropError, match="name the site yourself"):
        read_sites(fields, ReadOptions(), transcoder=False)
    site = Site.parse("transformer.h.8.attn.c_proj:in")
    assert read_sites(fields, ReadOptions(reads=site), transcoder=False) == (site, site)


@pytest.mark.parametrize("version", ["6.0.0", "6.54.12", "5.10.0", None])
def test_versions_that_are_read(config, version):
    metadata = {"hook_name": "blocks.1.hook_resid_pre", "sae_lens_version": version}
    fields = config({"architecture": "standard", "metadata": metadata})
    assert fields.data["metadata"]["hook_name"] == "blocks.1.hook_resid_pre"


@pytest.mark.parametrize("where", ["metadata", "beside"])
def test_a_newer_version_is_refused(config, where):
    version = {"sae_lens_version": "7.0.1"}
    data = {"architecture": "standard", "metadata": version if where == "metadata" else {}}
    with pytest.raises(InteropError, match=r"sae_lens_version: expected at most 6, found 7\.0\.1"):
        config(data | (version if where == "beside" else {}))


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("apply_b_dec_to_inputs", "apply_b_dec_to_input"),
        ("normalise_activations", "normalize_activations"),
        ("max_iteration", "max_iterations"),
    ],
)
def test_a_misspelt_field_that_decides_is_an_error(config, field, meant):
    fields = config({"architecture": "standard", "metadata": {}, field: True})
    with pytest.raises(InteropError, match=f"{field}: unknown field; did you mean '{meant}'"):
        check_unknown(fields)
    both = config({"architecture": "standard", "metadata": {}, field: True, meant: True})
    both.find("architecture", str)
    both.data = {**both.data}
    assert check_unknown(both)[0].endswith(f"{field}, {meant}")


def test_heads_of_one_hook_are_no_site(config):
    metadata = {"hook_name": "blocks.1.hook_resid_pre", "hook_head_index": 3}
    fields = config({"architecture": "standard", "metadata": metadata})
    with pytest.raises(InteropError, match="hook_head_index: expected none, found 3; one head"):
        read_sites(fields, ReadOptions(), transcoder=False)


def test_our_own_record_wins_over_hooks(config):
    record = {"reads": "blocks.1.ffn:in", "writes": "blocks.1.ffn:out"}
    metadata = {"hook_name": "blocks.1.mlp.hook_in", "pellucid": record}
    fields = config({"architecture": "transcoder", "metadata": metadata})
    found = read_sites(fields, ReadOptions(), transcoder=True)
    assert found == (Site.parse(record["reads"]), Site.parse(record["writes"]))
    other = Site.parse("a:in")
    assert read_sites(fields, ReadOptions(reads=other), transcoder=True)[0] == other


@pytest.mark.parametrize(
    ("site", "hook", "path"),
    [
        ("blocks.1.ffn:out", "model.layers.1.mlp", "model.layers.1.mlp"),
        ("gpt_neox.layers.1:out", "gpt_neox.layers.1", "gpt_neox.layers.1"),
        ("model.layers.1.mlp:in", "blocks.1.mlp.hook_in", None),
        ("model.norm:in", "model.norm:in", None),
    ],
)
def test_hooks_that_are_written(site, hook, path):
    fields = hook_fields(Site.parse(site), "_out")
    assert fields["hook_name_out"] == hook
    assert fields.get("hf_hook_name_out") == path
