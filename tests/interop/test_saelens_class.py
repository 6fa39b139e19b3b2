"""Folders of our own class in SAELens, read back without SAELens; with it: the package's tests."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pellucid.core.errors import InteropError, MissingExtra, PellucidError
from pellucid.core.unit import Site
from pellucid.dictionaries import DICTIONARIES, CoderConfig
from pellucid.dictionaries.atoms import ExpanderAtomsConfig
from pellucid.dictionaries.gates import TopKConfig
from pellucid.interop import ReadOptions, WriteOptions
from pellucid.interop.saelens import read_saelens, register, write_saelens
from pellucid.interop.saelens_class import (
    dense_code,
    dense_decode,
    own_tensors,
    skip_path,
)


def _small(name: str) -> CoderConfig:
    config = DICTIONARIES[name]
    router, atoms = config.router, config.atoms
    if router is not None:
        router = replace(router, experts=4, active=min(2, router.active))
    if isinstance(atoms, ExpanderAtomsConfig):
        atoms = replace(atoms, nonzeros=3, stored=name == "expander-switch")
    gate = config.with_k(4).gate
    return replace(config, latents=16, gate=gate, router=router, atoms=atoms)


@pytest.fixture
def folder(tmp_path, make):
    coder = make(CoderConfig(latents=16, gate=TopKConfig(k=4)), dtype=torch.float32)
    write_saelens((coder,), tmp_path / "out", WriteOptions(own_class=True))
    return tmp_path / "out"


@pytest.mark.parametrize("d_out", [None, 5])
@pytest.mark.parametrize("name", DICTIONARIES)
def test_everything_comes_back_as_it_was(tmp_path, make, rows, close, name, d_out):
    if name == "pursuit" and d_out:
        return
    ours = make(_small(name), d_out=d_out)
    model = {"kind": "run", "name": "runs/a", "weights": "abc"}
    options = WriteOptions(own_class=True, dtype="float64", model=model)
    write_saelens((ours,), tmp_path / "out", options)
    (found,) = read_saelens(tmp_path / "out", ReadOptions(dtype="float64"))
    assert found.coder.config == ours.config
    assert found.coder.spec == ours.spec
    assert found.model == model
    assert found.warnings == ()
    for key, tensor in own_tensors(ours).items():
        assert torch.equal(own_tensors(found.coder)[key], tensor), key
    x = rows(ours)
    close(found.coder(x), ours(x))


def test_counters_stay_behind(folder):
    names = set(load_file(folder / "sae_weights.safetensors"))
    assert not any("silent" in name or "steps" in name for name in names)
    assert {"coder.in_scale", "coder.decoder.weight"} <= names


@pytest.mark.parametrize("stored", [True, False])
def test_places_of_sparse_atoms_are_kept_where_they_are_stored(tmp_path, make, stored):
    """Stored ones are the file's, also where the seed would draw others now."""
    config = _small("expander")
    ours = make(replace(config, atoms=replace(config.atoms, stored=stored)))
    write_saelens((ours,), tmp_path / "out", WriteOptions(own_class=True))
    path = tmp_path / "out" / "sae_weights.safetensors"
    state = load_file(path)
    assert ("coder.decoder.index" in state) == stored
    if not stored:
        return
    state["coder.decoder.index"] = state["coder.decoder.index"].flip(0).contiguous()
    save_file(state, path)
    (found,) = read_saelens(tmp_path / "out", ReadOptions())
    assert torch.equal(found.coder.decoder.index, ours.decoder.index.flip(0))


@pytest.mark.parametrize("name", ["topk", "scale", "expander", "pursuit"])
def test_dense_codes_and_what_they_write(make, rows, close, name):
    ours = make(replace(_small(name), skip=name == "topk"))
    x = rows(ours)
    code = dense_code(ours, x)
    sparse = ours.activate(x)
    assert int((code != 0).sum()) == int((sparse.value != 0).sum())
    close(dense_decode(ours, code) + skip_path(ours, x), ours(x))
    three = x.view(4, 6, 8)
    close(dense_code(ours, three).flatten(0, 1), code)
    assert dense_decode(ours, dense_code(ours, three)).shape == (4, 6, 8)


def test_sites_and_name_can_be_replaced(folder):
    site = Site.parse("a.b:out")
    (found,) = read_saelens(folder, ReadOptions(reads=site, name="mine"))
    assert found.coder.spec.reads == found.coder.spec.writes == site
    assert found.coder.spec.name == "mine"
    with pytest.raises(InteropError, match="an SAE stays one, found sites"):
        read_saelens(folder, ReadOptions(writes=site))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"coder\.schema: written in schema 2, this version reads up to 1; upgrade"),
        ({"schema": None}, r"coder\.schema: expected an integer, found nothing"),
        ({"config": {"latents": 16, "colour": 1}}, "unknown key colour"),
        ({"config": {"latents": 8}}, "expected d_sae = 16, found 8"),
        ({"reads": "nowhere"}, "expected MODULE:in or MODULE:out"),
        ({"config": {"latents": 16, "gate": {"kind": "topk", "k": 17}}}, "at most latents = 16"),
    ],
)
def test_a_bad_config(folder, change, message):
    path = folder / "cfg.json"
    data = json.loads(path.read_text())
    data["coder"] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(PellucidError, match=message) as error:
        read_saelens(folder, ReadOptions())
    assert "\n" not in str(error.value)


def test_a_bad_tensor(folder):
    path = folder / "sae_weights.safetensors"
    state = load_file(path)
    save_file({**state, "coder.bias": torch.zeros(9)}, path)
    with pytest.raises(InteropError, match=r"coder\.bias: expected \(8,\), found \(9,\)"):
        read_saelens(folder, ReadOptions())
    del state["coder.bias"]
    save_file(state, path)
    with pytest.raises(InteropError, match=r"coder\.bias: expected shape \(8,\), found nothing"):
        read_saelens(folder, ReadOptions())


def test_without_saelens_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    monkeypatch.setitem(sys.modules, "sae_lens.registry", None)
    with pytest.raises(MissingExtra, match=r"needs the package sae-lens.*pellucid\[interop\]"):
        register()
