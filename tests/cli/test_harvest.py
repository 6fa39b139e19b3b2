"""``pellucid harvest``: a cache from the command line, and one line for what cannot be done."""

from pathlib import Path

import pytest

from pellucid.data.activations import ActivationCache


@pytest.fixture
def ask(trained: Path, corpus: Path, tmp_path: Path) -> list[str]:
    """A small harvest of one site."""
    return [
        *("harvest", str(trained), "--site", "blocks.1.ffn:out", "--data", str(corpus)),
        *("--tokens", "300", "--validation-tokens", "50", "--out", str(tmp_path / "cache")),
        *("--device", "cpu"),
    ]


def test_the_folder_is_printed_and_holds_the_rows(cli, ask, tmp_path: Path):
    answer = cli(*ask)
    assert answer.code == 0, answer.err
    assert answer.out == f"{tmp_path / 'cache'}\n"
    assert "300 rows and" in answer.err
    cache = ActivationCache.open(tmp_path / "cache")
    assert cache.rows == 300
    assert [str(site) for site in cache.widths] == ["blocks.1.ffn:out"]


def test_a_finished_harvest_is_not_repeated(cli, ask, tmp_path: Path):
    assert cli(*ask).code == 0
    before = (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns
    assert cli(*ask).code == 0
    assert (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--site", "blocks.9.ffn:out"], "the model has no module 'blocks.9.ffn'"),
        (["--site", "blocks.1.ffn"], "expected MODULE:in or MODULE:out"),
        (["--tokens", "100000000"], "the training text has only"),
        (["--data", "nowhere"], "nowhere"),
        (["--dtype", "int8"], "dtype"),
        (["--sites", "blocks.1.ffn:out"], "unknown argument --sites; did you mean '--site'?"),
    ],
)
def test_what_cannot_be_harvested_is_one_line(cli, ask, tmp_path: Path, more, said):
    assert said in cli(*ask, *more).error
    assert not (tmp_path / "cache").exists()


def test_what_is_no_model(cli, tmp_path: Path):
    said = cli("harvest", tmp_path, "--site", "a:in", "--out", tmp_path / "out").error
    assert "neither a run folder nor a model that transformers can load" in said
    assert "expected a run folder or a model's name" in cli("harvest").error


def test_another_harvest_is_not_overwritten_unasked(cli, ask):
    assert cli(*ask).code == 0
    assert "holds another harvest: config.seed" in cli(*ask, "--seed", "3").error
    assert cli(*ask, "--seed", "3", "--overwrite").code == 0


def test_help_names_the_fields(cli):
    answer = cli("harvest", "--help")
    assert answer.code == 0
    assert "--validation-tokens" in answer.out
