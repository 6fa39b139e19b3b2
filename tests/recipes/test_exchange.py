"""Dictionaries out to other tools' formats and back into run folders."""

import json
from pathlib import Path

import pytest
import torch

from pellucid.core.errors import ConfigError, InteropError, RunError
from pellucid.core.unit import Site
from pellucid.dictionaries import settle
from pellucid.interop import CONVERTERS, ReadOptions, WriteOptions
from pellucid.recipes.dictionary import choose_dictionary
from pellucid.recipes.exchange import (
    converter,
    export_dictionaries,
    import_dictionaries,
    summarise_import,
)
from pellucid.recipes.fit_folder import DictionaryRecord, load_dictionary, read_record, write_record
from pellucid.train.checkpoint import Checkpoint, save_checkpoint, weights

SITE = "model.layers.0.mlp:out"


def fitted(folder: Path, text: str = "topk") -> Path:
    """A dictionary as ``pellucid fit`` leaves it, on rows with a scale and a mean of their own."""
    name, config = choose_dictionary(text, latents=24, k=3)
    record = DictionaryRecord(
        name=name,
        reads=SITE,
        writes=SITE,
        d_in=8,
        d_out=8,
        seed=0,
        coder=config,
        model={"name": "org/model", "kind": "huggingface"},
    )
    coder = record.build()
    rows = 3 * torch.randn(64, 8) + 1
    settle(coder, rows, rows)
    write_record(folder / name, record)
    state = Checkpoint(model=weights(coder), optimizer={}, state={"metrics_bytes": 0})
    save_checkpoint(folder / name, 7, state, keep=1)
    return folder / name


def bring_back(source: Path, run: Path, format: str = "saelens", *, overwrite: bool = False):
    return import_dictionaries(
        source, format, run, ReadOptions(), command=["pellucid"], overwrite=overwrite
    )


@pytest.mark.parametrize("format", ["saelens", "sparsify", "dictionary_learning"])
def test_out_and_back_is_the_same_function(tmp_path: Path, format: str):
    folder = fitted(tmp_path / "runs")
    export_dictionaries([folder], format, tmp_path / "out", WriteOptions())
    found = bring_back(tmp_path / "out", tmp_path / "back", format)
    assert len(found) == 1
    name = found[0].coder.spec.name
    coder, again = load_dictionary(folder), load_dictionary(tmp_path / "back" / name)
    x = 3 * torch.randn(40, 8) + 1
    with torch.no_grad():
        # The input scale is folded into the weights, in float32.
        torch.testing.assert_close(again(x), coder(x), atol=1e-5, rtol=1e-5)
    record = read_record(tmp_path / "back" / name)
    assert record.reads == SITE
    assert (tmp_path / "back" / name / "provenance.json").is_file()
    (row,) = summarise_import(tmp_path / "back")
    assert row.recipe == f"{name} from {format}"


def test_every_format_is_found_by_name():
    for one in CONVERTERS:
        assert converter(one.name) is one
    with pytest.raises(ConfigError, match=r"^format 'saelense': did you mean 'saelens'\?$"):
        converter("saelense")


def test_the_model_goes_along(tmp_path: Path):
    export_dictionaries([fitted(tmp_path)], "saelens", tmp_path / "out", WriteOptions())
    assert "org/model" in (tmp_path / "out" / "cfg.json").read_text()


def test_a_form_that_does_not_fit_is_refused_and_nothing_written(tmp_path: Path):
    folder = fitted(tmp_path, "expander:atoms.nonzeros=3")
    with pytest.raises(InteropError, match="found signed TopK"):
        export_dictionaries([folder], "saelens", tmp_path / "out", WriteOptions())
    assert not (tmp_path / "out").exists()


def test_what_is_no_dictionary(tmp_path: Path):
    with pytest.raises(RunError, match="not a dictionary"):
        export_dictionaries([tmp_path], "saelens", tmp_path / "out", WriteOptions())


def test_a_run_is_replaced_only_if_asked_and_only_by_what_could_be_read(tmp_path: Path):
    export_dictionaries([fitted(tmp_path)], "saelens", tmp_path / "out", WriteOptions())
    bring_back(tmp_path / "out", tmp_path / "back")
    with pytest.raises(RunError, match="exists already"):
        bring_back(tmp_path / "out", tmp_path / "back")
    before = (tmp_path / "back" / "run.json").read_text()
    config = tmp_path / "out" / "cfg.json"
    good = config.read_text()
    config.write_text(json.dumps({**json.loads(good), "architecture": "temporal"}))
    with pytest.raises(InteropError, match="temporal"):
        bring_back(tmp_path / "out", tmp_path / "back", overwrite=True)
    assert (tmp_path / "back" / "run.json").read_text() == before
    config.write_text(good)
    found = bring_back(tmp_path / "out", tmp_path / "back", overwrite=True)
    assert found[0].coder.spec.reads == Site.parse(SITE)
