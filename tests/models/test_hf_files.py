"""Weights under transformers' names: the renaming, atomic writing, and what cannot be read."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pellucid.core.errors import CheckpointError, ConfigError, PellucidError
from pellucid.models import hf_files
from pellucid.models.config import TransformerConfig
from pellucid.models.hf_files import (
    MODULE_NAMES,
    export_pretrained,
    load_transformer,
    to_our_name,
    to_their_name,
)
from pellucid.models.transformer import Transformer
from pellucid.pools import POOLS
from pellucid.pools.dense import SwiGLUConfig
from pellucid.pools.hierarchy import HierarchyConfig

CONFIG = TransformerConfig(
    width=8,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    vocab_size=16,
    context=8,
    ffn=(HierarchyConfig.tiny(),),
)
X = torch.arange(6).view(2, 3)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("embed.weight", "model.embed_tokens.weight"),
        ("unembed.weight", "lm_head.weight"),
        ("norm.gain", "model.norm.gain"),
        ("tied_mlp.up", "model.tied_mlp.up"),
        ("blocks.3.attn_norm.gain", "model.layers.3.input_layernorm.gain"),
        ("blocks.3.attn.query.weight", "model.layers.3.self_attn.query.weight"),
        ("blocks.3.attn.query_norm.gain", "model.layers.3.self_attn.query_norm.gain"),
        ("blocks.12.ffn_norm.gain", "model.layers.12.post_attention_layernorm.gain"),
        ("blocks.12.ffn.router.weight", "model.layers.12.mlp.router.weight"),
        ("blocks.12.ffn.sink.reads", "model.layers.12.mlp.sink.reads"),
        ("blocks.12.ffn", "model.layers.12.mlp"),
        ("blocks.12", "model.layers.12"),
        ("elsewhere.ffn.norm", "elsewhere.ffn.norm"),
    ],
)
def test_names_both_ways(ours, theirs):
    assert to_their_name(ours) == theirs
    assert to_our_name(theirs) == ours


@given(
    st.sampled_from(MODULE_NAMES),
    st.integers(0, 200),
    st.lists(st.sampled_from(["weight", "norm", "ffn", "blocks", "3"]), max_size=3),
)
def test_any_tail_survives_the_round_trip(pair, layer, tail):
    ours = ".".join([pair[0].replace("L", str(layer)), *tail])
    # Below a whole block any part's name may follow; those have pairs of their own.
    if pair[0] != "blocks.L" or not tail or tail[0] not in ("attn", "ffn"):
        assert to_our_name(to_their_name(ours)) == ours


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.tiny().kind)
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_gives_the_same_model_back(kind, tied, tmp_path):
    model = Transformer(replace(CONFIG, ffn=(kind.tiny(),), tied_embeddings=tied))
    export_pretrained(model, tmp_path, tokens_end=3)
    before = torch.get_rng_state()
    again = load_transformer(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.config == model.config
    assert not again.training
    assert (again.unembed.weight is again.embed.weight) == tied
    mine = dict(model.named_parameters()) | dict(model.named_buffers())
    found = dict(again.named_parameters()) | dict(again.named_buffers())
    assert mine.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in mine.items())


def test_dtype_and_frozen_routers_are_kept(tmp_path):
    frozen = replace(HierarchyConfig.tiny(), frozen_router=True)
    model = Transformer(replace(CONFIG, ffn=(frozen,))).to(torch.bfloat16)
    export_pretrained(model, tmp_path, tokens_end=None)
    again = load_transformer(tmp_path)
    assert again.embed.weight.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert again.get_parameter(name).requires_grad == parameter.requires_grad, name


def test_the_config_file_is_plain(tmp_path):
    model = Transformer(replace(CONFIG, ffn=(SwiGLUConfig.tiny(), HierarchyConfig.tiny())))
    export_pretrained(model, tmp_path, tokens_end=5)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["model_type"] == "pellucid"
    assert record["architectures"] == ["PellucidForCausalLM"]
    assert "auto_map" not in record
    assert record["hidden_size"] == 8
    assert record["num_hidden_layers"] == 2
    assert record["max_position_embeddings"] == 8
    assert record["num_key_value_heads"] == 1
    assert record["dtype"] == "float32"
    assert [record[f"{t}_token_id"] for t in ("bos", "eos", "pad")] == [5, 5, 5]
    assert record["transformer"]["ffn"][0]["kind"] == "swiglu"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_a_failed_export_leaves_the_old_files(tmp_path, monkeypatch):
    model = Transformer(CONFIG)
    export_pretrained(model, tmp_path, tokens_end=0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hf_files, "save_file", full)
    with torch.no_grad():
        model.embed.weight.add_(1)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        export_pretrained(model, tmp_path, tokens_end=0)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file_is_named_in_one_line(tmp_path):
    (tmp_path / "taken").write_text("mine")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors: cannot be written"
        ) as caught:
            export_pretrained(Transformer(CONFIG), folder, tokens_end=0)
        assert str(caught.value).startswith(f"{folder}/")
        assert "\n" not in str(caught.value)
    assert (tmp_path / "taken").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_export_replaces_the_old_one(tmp_path):
    model = Transformer(CONFIG).eval()
    export_pretrained(model, tmp_path / "new" / "folder", tokens_end=0)
    with torch.no_grad():
        model.embed.weight.add_(1)
    export_pretrained(model, tmp_path / "new" / "folder", tokens_end=0)
    assert torch.equal(load_transformer(tmp_path / "new" / "folder")(X), model(X))


def _drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _pickle(folder: Path) -> None:
    torch.save({"embed.weight": torch.zeros(2)}, folder / "model.safetensors")


def _other_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def _unknown_key(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    record["transformer"]["ffn"][0]["slotz"] = 3
    (folder / "config.json").write_text(json.dumps(record))


def _no_object(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {"transformer": "abc"}))


def _listed_kind(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    record["transformer"]["ffn"][0]["kind"] = []
    (folder / "config.json").write_text(json.dumps(record))


def _other_width(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {"vocab_size": 17}))


def _lose_a_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.embed_tokens.weight"]
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_drop_config, ConfigError, r"config\.json: no such file"),
        (_drop_weights, CheckpointError, r"model\.safetensors: no such file"),
        (_truncate, CheckpointError, r"model\.safetensors: expected safetensors"),
        (_pickle, CheckpointError, r"model\.safetensors: expected safetensors"),
        (_other_model, ConfigError, r"model_type: expected 'pellucid', found 'llama'"),
        (_unknown_key, ConfigError, r"config\.json: .*slotz; did you mean 'slots'"),
        (_no_object, ConfigError, r"/config\.json: transformer: expected an object, found 'abc'"),
        (_listed_kind, ConfigError, r"/config\.json: ffn\.0\.kind: found \[\]; expected one of"),
        (_other_width, CheckpointError, r"does not fit the model .* embed\.weight"),
        (_lose_a_tensor, CheckpointError, r"does not fit the model .*embed\.weight"),
    ],
)
def test_what_cannot_be_read_is_one_line(damage, error, message, tmp_path):
    export_pretrained(Transformer(CONFIG), tmp_path, tokens_end=0)
    damage(tmp_path)
    with pytest.raises(error, match=message) as caught:
        load_transformer(tmp_path)
    assert isinstance(caught.value, PellucidError)
    assert "\n" not in str(caught.value)
