"""Names of sites: ours, Hugging Face's, TransformerLens'."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.interop.sites import (
    MODULES,
    hook_of,
    layer_of,
    layer_path,
    site_of_hook,
    to_hugging_face,
    to_own,
)
from pellucid.models.hf_files import MODULE_NAMES

TABLE = [
    ("blocks.7:in", "model.layers.7:in", "blocks.7.hook_resid_pre"),
    ("blocks.7:out", "model.layers.7:out", "blocks.7.hook_resid_post"),
    ("blocks.7.ffn:in", "model.layers.7.mlp:in", "blocks.7.mlp.hook_in"),
    ("blocks.7.ffn:out", "model.layers.7.mlp:out", "blocks.7.hook_mlp_out"),
]


@pytest.mark.parametrize(("ours", "theirs", "hook"), TABLE)
def test_the_table_in_all_directions(ours, theirs, hook):
    own, hugging_face = Site.parse(ours), Site.parse(theirs)
    assert to_hugging_face(own) == hugging_face
    assert to_own(hugging_face) == own
    assert hook_of(own) == hook_of(hugging_face) == hook
    options = {"norm_folded": False, "where": "cfg.json: hook_name"}
    assert site_of_hook(hook, layers="model.layers", **options) == hugging_face
    assert site_of_hook(hook, layers="blocks", **options) == own


def test_module_names_are_those_of_our_exported_models():
    """The models' own table, which this room may not import."""
    assert set(MODULES) == {pair for pair in MODULE_NAMES if pair[0] != "tied_mlp"}


@given(st.sampled_from([name for name, _ in MODULES]), st.integers(0, 40), st.booleans())
def test_renaming_is_undone_by_renaming_back(name, layer, inside):
    path = name.replace("L", str(layer)) + (".gate.weight" if inside else "")
    site = Site(module=path, port="out")
    assert to_own(to_hugging_face(site)) == site


def test_other_models_keep_their_names():
    site = Site.parse("gpt_neox.layers.3.mlp:out")
    assert to_hugging_face(site) == to_own(site) == site
    assert hook_of(site) == "blocks.3.hook_mlp_out"
    assert hook_of(Site.parse("transformer.h.3:in")) == "blocks.3.hook_resid_pre"
    hook = "blocks.3.hook_resid_post"
    found = site_of_hook(hook, layers="transformer.h", norm_folded=False, where="f")
    assert str(found) == "transformer.h.3:out"


@pytest.mark.parametrize("text", ["model.layers.3.self_attn:out", "model.norm:out", "lm_head:in"])
def test_sites_without_a_hook(text):
    assert hook_of(Site.parse(text)) is None


def test_a_module_path_is_its_output():
    found = site_of_hook("model.layers.3.mlp", layers="blocks", norm_folded=False, where="f")
    assert str(found) == "model.layers.3.mlp:out"


def test_the_norm_before_its_gain():
    name = "blocks.3.ln2.hook_normalized"
    with pytest.raises(InteropError, match=r"f: hook: blocks\.3\.ln2.*add --norm-folded"):
        site_of_hook(name, layers="blocks", norm_folded=False, where="f: hook")
    found = site_of_hook(name, layers="blocks", norm_folded=True, where="f: hook")
    assert str(found) == "blocks.3.ffn:in"


def test_a_second_name_of_the_output():
    found = site_of_hook("blocks.3.mlp.hook_out", layers="blocks", norm_folded=False, where="f")
    assert str(found) == "blocks.3.ffn:out"


@pytest.mark.parametrize("name", ["blocks.3.attn.hook_z", "blocks.3.hook_resid_mid", "hook_embed"])
def test_hooks_that_are_no_site_of_the_table(name):
    with pytest.raises(InteropError, match="f: hook: expected a hook") as error:
        site_of_hook(name, layers="blocks", norm_folded=False, where="f: hook")
    assert name in str(error.value)


def test_layers():
    assert layer_path("model.layers", 3) == "model.layers.3"
    assert layer_path("blocks", 3, "mlp") == "blocks.3.ffn"
    assert layer_of(Site.parse("model.layers.12.mlp:in")) == 12
    assert layer_of(Site.parse("blocks.0:out")) == 0
    assert layer_of(Site.parse("model.norm:out")) is None
