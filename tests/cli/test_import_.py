"""``pellucid import``: foreign folders become run folders, and damaged ones one line."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pellucid.recipes.fit_folder import load_dictionary


@pytest.fixture
def foreign(cli, fitted: Path, tmp_path: Path) -> Path:
    """A SAELens folder."""
    out = tmp_path / "foreign"
    assert cli("export", fitted / "topk", "--format", "saelens", "--out", out).code == 0
    return out


def test_the_dictionary_is_there_under_its_name(cli, foreign: Path, tmp_path: Path):
    answer = cli("import", foreign, "--format", "saelens", "--run", tmp_path / "back")
    assert answer.code == 0, answer.err
    assert answer.out == f"{tmp_path / 'back' / 'topk'}\n"
    coder = load_dictionary(tmp_path / "back" / "topk")
    assert coder.spec.num_units == 32
    listed = cli("runs", tmp_path / "back")
    assert "topk from saelens" in listed.out
    assert listed.err == ""


def test_a_site_and_a_name_of_ones_own(cli, foreign: Path, tmp_path: Path):
    answer = cli(
        *("import", foreign, "--format", "saelens", "--run", tmp_path / "back"),
        *("--reads", "blocks.0.ffn:out", "--name", "mine"),
    )
    assert answer.code == 0, answer.err
    assert str(load_dictionary(tmp_path / "back" / "mine").spec.writes) == "blocks.0.ffn:out"


def test_damaged_folders_are_one_line(cli, foreign: Path, tmp_path: Path):
    def said() -> str:
        run = tmp_path / "back"
        text = cli("import", foreign, "--format", "saelens", "--run", run).error
        assert not run.exists()
        return text

    weights, config = foreign / "sae_weights.safetensors", foreign / "cfg.json"
    good, told = load_file(weights), json.loads(config.read_text())
    save_file({**good, "W_dec": good["W_dec"].T.contiguous()}, weights)
    assert "looks transposed" in said()
    save_file({name: t for name, t in good.items() if name != "b_dec"}, weights)
    assert "b_dec" in said()
    weights.write_bytes(b"PK\x03\x04 a pickle")
    assert "sae_weights.safetensors" in said()
    weights.unlink()
    assert "sae_weights.safetensors" in said()
    save_file(good, weights)
    config.write_text(json.dumps({**told, "architecture": "temporal"}))
    assert "temporal" in said()
    config.write_text("{")
    assert "cfg.json" in said()


def test_an_unknown_format(cli, foreign: Path, tmp_path: Path):
    said = cli("import", foreign, "--format", "sparsfy", "--run", tmp_path / "back").error
    assert "did you mean 'sparsify'?" in said
