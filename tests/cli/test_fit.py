"""``pellucid fit`` and ``pellucid resume`` of its runs."""

import shutil
from pathlib import Path

import pytest

from pellucid.recipes.fit_folder import load_dictionary, read_record
from pellucid.train.checkpoint import list_checkpoints

SMALL = ("--latents", "32", "--k", "3", "--tokens", "96", "--batch", "16", "--device", "cpu")


def test_a_table_of_all_dictionaries(cli, activations: Path, tmp_path: Path):
    run = tmp_path / "run"
    asked = ("--dictionary", "topk", "--dictionary", "scale:router.experts=4", "--run", run)
    answer = cli("fit", activations, *asked, *SMALL)
    assert answer.code == 0, answer.err
    head, *rows = answer.out.splitlines()
    assert head.split()[:2] == ["dictionary", "fvu"]
    assert [row.split()[0] for row in rows] == ["topk", "scale"]
    assert float(rows[0].split()[1]) == pytest.approx(
        read_record(run / "topk").figures["fvu"], rel=1e-3
    )
    assert load_dictionary(run / "scale").spec.axes == (("expert", 4), ("latent", 8))
    listed = cli("runs", tmp_path)
    assert listed.err == ""
    assert "topk on blocks.1.ffn:out" in listed.out
    assert "6/6" in listed.out


def test_sparse_rows_are_told_with_what_they_prove(cli, activations: Path, tmp_path: Path):
    run = tmp_path / "run"
    answer = cli("fit", activations, "--dictionary", "expander", "--run", run, *SMALL)
    assert answer.code == 0, answer.err
    figures = read_record(run / "expander").figures
    said = answer.out.splitlines()[-1]
    flat, expansion = figures["beta"], figures["epsilon_2k"]
    assert said.startswith(f"expander: flatness {flat:.2f}, expansion at 2k {expansion:.2f}, R_id")
    assert "no certificate" in said


def test_a_killed_run_is_resumed(cli, activations: Path, tmp_path: Path):
    run = tmp_path / "run"
    asked = ("--dictionary", "topk", "--run", run, "--checkpoint-every", "2")
    whole = cli("fit", activations, *asked, *SMALL)
    assert whole.code == 0, whole.err
    for checkpoint in list_checkpoints(run / "topk")[1:]:
        shutil.rmtree(checkpoint)
    (run / "topk" / "latest").unlink()
    again = cli("resume", run)
    assert again.code == 0, again.err
    assert again.out == whole.out
    assert "goes on as planned" in cli("resume", run, "--steps", "9").error


def test_a_transcoder_on_a_model_as_it_runs(cli, trained: Path, corpus: Path, tmp_path: Path):
    answer = cli(
        *("fit", trained, "--transcoder", "topk", "--data", corpus, "--run", tmp_path / "run"),
        *("--reads", "blocks.1.ffn:in", "--writes", "blocks.1.ffn:out", *SMALL),
    )
    assert answer.code == 0, answer.err
    spec = load_dictionary(tmp_path / "run" / "topk").spec
    assert (str(spec.reads), str(spec.writes)) == ("blocks.1.ffn:in", "blocks.1.ffn:out")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--dictionary", "topkk"], "dictionary 'topkk': did you mean 'topk'?"),
        (["--dictionary", "topk", "--dictionary", "topk"], "two dictionaries are named 'topk'"),
        (["--dictionary", "topk", "--k", "33"], None),
        (["--dictionary", "topk:gate.k=33"], "gate.k: expected at most latents = 32, found 33"),
        (["--dictionary", "switch:router.experts=5"], "expected a multiple of router.experts = 5"),
        (["--dictionary", "expander:atoms.nonzeros=99"], "nonzeros: expected 1 to the width 16"),
        (["--dictionary", "topk", "--site", "blocks.0.ffn:out"], "blocks.0.ffn:out"),
        ([], "expected at least one dictionary"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(cli, activations: Path, tmp_path: Path, more, said):
    found = cli("fit", activations, *SMALL, *more, "--run", tmp_path / "run").error
    assert (said or "expected at most latents = 32, found 33") in found
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_unasked(cli, activations: Path, tmp_path: Path):
    asked = ("fit", activations, "--dictionary", "topk", "--run", tmp_path / "run", *SMALL)
    assert cli(*asked).code == 0
    assert "exists already" in cli(*asked).error
    assert cli(*asked, "--overwrite").code == 0


def test_a_cache_that_was_damaged(cli, activations: Path, tmp_path: Path):
    damaged = Path(shutil.copytree(activations, tmp_path / "cache"))
    shard = sorted(damaged.glob("train.*.site0.bin"))[0]
    asked = ("fit", damaged, "--dictionary", "topk", "--run", tmp_path / "run", *SMALL)
    shard.write_bytes(shard.read_bytes()[:-4])
    assert shard.name in cli(*asked).error
    shard.unlink()
    assert shard.name in cli(*asked).error
    assert not (tmp_path / "run").exists()


def test_help_lists_the_dictionaries(cli):
    answer = cli("fit", "--help")
    assert answer.code == 0
    assert "expander-scale" in answer.out.splitlines()[0]
