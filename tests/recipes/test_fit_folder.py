"""The folder of a run of fits: what it holds, what it refuses, and dictionaries out of it."""

import json
from pathlib import Path

import pytest
import torch

from pellucid.core.errors import CheckpointError, ConfigError, RunError
from pellucid.recipes.dictionary import FitRun, choose_dictionary, plan_fits
from pellucid.recipes.fit_folder import (
    DictionaryRecord,
    create_fit,
    final_figures,
    is_fit,
    load_dictionary,
    read_fit,
    read_record,
    summarise_fit,
    with_figures,
    write_record,
)

OUT = "blocks.0.ffn:out"


def config() -> FitRun:
    chosen = [(*choose_dictionary("topk", latents=12, k=3), OUT, OUT)]
    return FitRun(source="cache", fits=plan_fits(chosen, steps=2, batch=8), steps=2, batch=8)


def record(**more) -> DictionaryRecord:
    fields = {
        "name": "topk",
        "reads": OUT,
        "writes": OUT,
        "d_in": 4,
        "d_out": 4,
        "seed": 3,
        "coder": config().fits[0].coder,
        "model": {"name": "runs/a"},
    }
    return DictionaryRecord(**{**fields, **more})


def test_a_run_is_read_as_it_was_made(tmp_path: Path):
    run = tmp_path / "run"
    create_fit(run, config(), command=["pellucid", "fit"], overwrite=False)
    assert is_fit(run)
    assert read_fit(run) == config()
    stored = json.loads((run / "run.json").read_text())
    assert stored["command"] == ["pellucid", "fit"]
    assert stored["kind"] == "fit"


def test_an_existing_folder_is_left_alone_unless_replaced(tmp_path: Path):
    run = tmp_path / "run"
    create_fit(run, config(), command=[], overwrite=False)
    (run / "old").write_text("")
    with pytest.raises(RunError, match="exists already; choose another --run, add --overwrite"):
        create_fit(run, config(), command=[], overwrite=False)
    assert (run / "old").exists()
    create_fit(run, config(), command=[], overwrite=True)
    assert not (run / "old").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="is not a run"):
        create_fit(foreign, config(), command=[], overwrite=True)
    assert (foreign / "thesis.tex").exists()


def test_a_record_is_read_as_it_was_written(tmp_path: Path):
    found = with_figures(record(), {"fvu": 0.25}, {"ce_recovered": "no model"})
    write_record(tmp_path / "topk", found)
    assert read_record(tmp_path / "topk") == found
    assert found.figures == {"fvu": 0.25}
    assert record().figures == {}


def test_a_record_builds_the_same_dictionary_every_time():
    one, other, third = record().build(), record().build(), record(seed=4).build()
    assert torch.equal(one.decoder.table(), other.decoder.table())
    assert not torch.equal(one.decoder.table(), third.decoder.table())
    assert one.spec.name == "topk"


def test_the_figures_of_a_run_by_dictionary(tmp_path: Path):
    create_fit(tmp_path / "run", config(), command=[], overwrite=False)
    write_record(tmp_path / "run" / "topk", with_figures(record(), {"fvu": 0.5}, {}))
    assert final_figures(tmp_path / "run") == {"topk": {"fvu": 0.5}}


def test_what_is_no_run_of_fits(tmp_path: Path):
    with pytest.raises(RunError, match="not a run; fit one with: pellucid fit"):
        read_fit(tmp_path)
    assert not is_fit(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"kind": "language", "schema": 1}))
    assert not is_fit(tmp_path)
    with pytest.raises(RunError, match="expected a run of fits, found 'language'"):
        read_fit(tmp_path)
    create_fit(tmp_path / "new", config(), command=[], overwrite=False)
    path = tmp_path / "new" / "run.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(RunError, match="written in schema 2"):
        read_fit(tmp_path / "new")
    path.write_text(path.read_text().replace('"schema": 2', '"schema": "x"'))
    with pytest.raises(RunError, match="expected a run of fits"):
        read_fit(tmp_path / "new")
    path.write_text("[]")
    with pytest.raises(RunError, match="expected a run of fits"):
        read_fit(tmp_path / "new")


def test_what_is_no_dictionary(tmp_path: Path):
    with pytest.raises(RunError, match="not a dictionary; fit one first"):
        read_record(tmp_path)
    write_record(tmp_path / "topk", record())
    with pytest.raises(RunError, match="not a dictionary; name one of its dictionaries: topk"):
        read_record(tmp_path)
    path = tmp_path / "topk" / "dictionary.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9'))
    with pytest.raises(RunError, match="written in schema 9"):
        read_record(tmp_path / "topk")
    path.write_text(path.read_text().replace('"d_in"', '"d_inn"'))
    with pytest.raises(ConfigError, match=r"unknown key d_inn; did you mean 'd_in'\?"):
        read_record(tmp_path / "topk")


def test_a_dictionary_without_a_checkpoint(tmp_path: Path):
    write_record(tmp_path, record())
    with pytest.raises(CheckpointError, match="has no complete checkpoint"):
        load_dictionary(tmp_path)


def test_each_dictionary_is_a_row_of_the_listing(tmp_path: Path):
    create_fit(tmp_path / "run", config(), command=[], overwrite=False)
    write_record(tmp_path / "run" / "topk", record())
    (one,) = summarise_fit(tmp_path / "run")
    assert one.name == str(tmp_path / "run" / "topk")
    assert one.recipe == f"topk on {OUT}"
    assert (one.step, one.steps, one.tokens, one.bits_per_byte) == (0, 2, 0, None)
