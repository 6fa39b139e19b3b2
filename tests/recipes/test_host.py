"""Models by name as hosts: runs of ours and folders of transformers, and what is neither."""

from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from pellucid.core.errors import AddressError, ConfigError
from pellucid.core.unit import Site
from pellucid.recipes import host as module
from pellucid.recipes.host import expand_sites, open_host


@pytest.fixture(scope="session")
def neox(tmp_path_factory, trained: Path) -> Path:
    """A random GPT-NeoX of two layers, with the tokenizer of the trained run."""
    folder = tmp_path_factory.mktemp("hub") / "neox"
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    for file in trained.glob("tokenizer*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_run_is_opened_with_its_tokenizer_and_context(trained: Path):
    opened = open_host(str(trained))
    assert opened.context == 12
    assert opened.host.width(Site.parse("blocks.0.ffn:in")) == 16
    assert opened.tokenizer.decode(opened.tokenizer.encode("pool unit")) == "pool unit"
    assert opened.identity["kind"] == "run"
    assert not opened.model.training


def test_a_folder_of_transformers_is_opened_alike(neox: Path):
    opened = open_host(str(neox))
    assert opened.context == 32
    assert opened.host.width(Site.parse("gpt_neox.layers.1.mlp:out")) == 16
    assert opened.identity["kind"] == "huggingface"


def test_the_identity_is_that_of_the_weights(trained: Path, neox: Path, tmp_path: Path):
    one = open_host(str(neox)).identity["weights"]
    assert open_host(str(neox)).identity["weights"] == one
    assert open_host(str(trained)).identity["weights"] != one
    model = GPTNeoXForCausalLM.from_pretrained(neox)
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_h_to_4h.bias[3] += 1e-6
    changed = tmp_path / "changed"
    model.save_pretrained(changed)
    for file in neox.glob("tokenizer*.json"):
        (changed / file.name).write_bytes(file.read_bytes())
    assert open_host(str(changed)).identity["weights"] != one


def test_stars_stand_for_one_part_of_a_path(neox: Path):
    model = open_host(str(neox)).model
    found = expand_sites(["gpt_neox.layers.*.mlp:out", "gpt_neox.layers.0.mlp:out"], model)
    assert found == ("gpt_neox.layers.0.mlp:out", "gpt_neox.layers.1.mlp:out")
    assert expand_sites(["gpt_neox.*:in"], model)[0].count(".") == 1


def test_a_site_that_is_not_there_offers_the_nearest(neox: Path):
    model = open_host(str(neox)).model
    with pytest.raises(AddressError, match=r"did you mean 'gpt_neox\.layers\.0\.mlp'\?"):
        expand_sites(["gpt_neox.layers.0.mpl:out"], model)
    with pytest.raises(AddressError, match=r"the model has no module 'layers\.9'"):
        expand_sites(["layers.9:out"], model)


def test_what_is_no_model_is_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match="neither a run folder nor a model that") as caught:
        open_host(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_fit_says_what_it_needs(neox: Path, monkeypatch):
    monkeypatch.setattr(module, "_free_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=r"needs 0\.0 GB for its weights, 0\.0 GB are free; "):
        open_host(str(neox))
