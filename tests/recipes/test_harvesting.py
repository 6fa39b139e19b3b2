"""A request for activations, and the cache it becomes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pellucid.core.errors import AddressError, ConfigError, DataError
from pellucid.core.unit import Site
from pellucid.data.activations import ActivationCache
from pellucid.recipes.harvesting import HarvestRequest, harvest_sites, held_out_rows, text_of
from pellucid.recipes.host import open_host

IN, OUT = Site.parse("blocks.0.ffn:in"), Site.parse("blocks.0.ffn:out")


def ask(**more) -> HarvestRequest:
    return HarvestRequest(**{"site": ("blocks.0.ffn:out",), "tokens": 50, "device": "cpu", **more})


def run(model: Path, request: HarvestRequest, out: Path, *, overwrite: bool = False):
    return harvest_sites(str(model), request, out, overwrite=overwrite, report=lambda *_: None)


def test_rows_are_what_the_model_has_at_both_sites(trained: Path, harvested: Path):
    cache = ActivationCache.open(harvested)
    assert (cache.rows, cache.validation_rows) == (200, 60)
    assert cache.widths == {IN: 16, OUT: 16}
    assert cache.origin.model["name"] == str(trained)
    # What is kept at the output is what the layer makes of what is kept at its input.
    rows = cache.batch(0, 40)
    ffn = open_host(str(trained)).model.get_submodule("blocks.0.ffn")
    with torch.no_grad():
        torch.testing.assert_close(ffn(rows.x[IN]), rows.x[OUT], atol=1e-5, rtol=1e-5)


def test_wildcards_and_the_models_context_are_filled_in(trained: Path, source: Path):
    opened = open_host(str(trained))
    corpus = text_of(replace(trained_data(trained), source=str(source)), opened, lambda *_: None)
    config = ask(site=("blocks.*.ffn:in",), validation_tokens=7).resolve(opened, corpus)
    assert config.sites == ("blocks.0.ffn:in", "blocks.1.ffn:in")
    assert config.context == 12
    assert config.validation_tokens == 7
    assert ask(context=8).resolve(opened, corpus).context == 8


def trained_data(run: Path):
    from pellucid.recipes.folder import read_run

    return read_run(run)[0].data


def test_a_small_text_keeps_what_it_can_hold_out(trained: Path, source: Path):
    opened = open_host(str(trained))
    corpus = text_of(replace(trained_data(trained), source=str(source)), opened, lambda *_: None)
    assert held_out_rows(corpus) == len(corpus.validation.tokens) * 9 // 10 < 65_536


def test_default_held_out_rows_can_be_harvested(trained: Path, source: Path, tmp_path: Path):
    cache = run(trained, ask(data=str(source)), tmp_path / "cache")
    assert cache.validation_rows > 50


def test_the_same_request_is_not_run_again_and_another_is_refused(
    trained: Path, source: Path, tmp_path: Path
):
    out = tmp_path / "cache"
    request = ask(data=str(source), validation_tokens=20)
    run(trained, request, out)
    before = (out / "manifest.json").stat().st_mtime_ns
    run(trained, request, out)
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"config\.seed: expected 0, found 1"):
        run(trained, replace(request, seed=1), out)
    run(trained, replace(request, seed=1), out, overwrite=True)
    assert json.loads((out / "manifest.json").read_text())["origin"]["config"]["seed"] == 1


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"site": ()}, ConfigError, "sites: expected at least one"),
        ({"site": ("blocks.0.fnn:out",)}, AddressError, r"did you mean 'blocks\.0\.ffn'\?"),
        ({"tokens": 0}, ConfigError, "tokens"),
        ({"tokens": 10**6}, DataError, "the training text has only"),
        ({"data": "nowhere"}, DataError, "nowhere"),
        ({"device": "tpu"}, ConfigError, "device: expected auto, cpu or cuda"),
    ],
)
def test_what_cannot_be_harvested(
    trained: Path, source: Path, tmp_path: Path, more, error, message
):
    with pytest.raises(error, match=message):
        run(trained, ask(**{"data": str(source), **more}), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
