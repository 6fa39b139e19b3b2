"""``pellucid export`` and what it refuses."""

from pathlib import Path

import pytest


def test_a_fitted_dictionary_is_written(cli, fitted: Path, tmp_path: Path):
    out = tmp_path / "out"
    answer = cli("export", fitted / "topk", "--format", "saelens", "--out", out)
    assert answer.code == 0, answer.err
    assert answer.out == f"{out}\n"
    assert {"cfg.json", "sae_weights.safetensors"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("name", "format", "said"),
    [
        ("topk", "saelense", "format 'saelense': did you mean 'saelens'?"),
        ("", "saelens", "name one of its dictionaries: "),
        ("expander", "saelens", "found signed TopK"),
        ("missing", "saelens", "not a dictionary"),
    ],
)
def test_what_cannot_be_exported_is_one_line(cli, fitted: Path, tmp_path: Path, name, format, said):
    out = tmp_path / "out"
    assert said in cli("export", fitted / name, "--format", format, "--out", out).error
    assert not out.exists()


def test_nothing_to_export(cli, tmp_path: Path):
    said = cli("export", "--format", "saelens", "--out", tmp_path / "out").error
    assert "DICTIONARY" in said or "folder of a dictionary" in said
