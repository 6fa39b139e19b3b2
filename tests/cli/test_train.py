"""``pellucid train`` up to the first step: configs, their order of precedence, what is refused."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from pellucid.core.config import from_dict
from pellucid.recipes.language import LanguageRun, recipe, recipe_names


def config_of(answer) -> LanguageRun:
    assert answer.code == 0
    assert answer.err == ""
    return from_dict(LanguageRun, json.loads(answer.out))


def test_a_dry_run_prints_the_recipe_and_writes_nothing(cli, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_of(cli("train", "pools-tiny", "--dry-run")) == recipe("pools-tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_its_own_json(cli, tmp_path: Path, name: str):
    printed = cli("train", name, "--dry-run")
    path = tmp_path / "config.json"
    path.write_text(printed.out)
    # Started from any recipe, the file decides.
    again = cli("train", "dense-demo", "--from", path, "--dry-run")
    assert again.out == printed.out
    assert config_of(again) == recipe(name)


def test_flags_go_before_the_file_and_the_file_before_the_recipe(cli, tmp_path: Path):
    path = tmp_path / "run.json"
    first = cli("train", "peer-tiny", "--steps", "7", "--batch", "3", "--dry-run")
    # As a run folder keeps it, under "config".
    path.write_text(json.dumps({"schema": 1, "kind": "language", "config": json.loads(first.out)}))
    found = config_of(cli("train", "pools-small", "--from", path, "--steps", "9", "--dry-run"))
    assert found.steps == 9
    assert found.batch == 3
    assert found.model == recipe("peer-tiny").model
    assert found.optim == recipe("peer-tiny").optim


def test_a_trained_run_is_a_source_of_configs(cli, trained: Path):
    stored = json.loads((trained / "run.json").read_text())["config"]
    for source in (trained / "run.json", trained):
        found = config_of(cli("train", "pools-demo", "--from", source, "--dry-run"))
        assert found == from_dict(LanguageRun, stored)


def test_a_folder_without_a_run_is_no_source_of_configs(cli, tmp_path: Path):
    error = cli("train", "pools-demo", "--from", tmp_path, "--dry-run").only_error
    assert error == f"{tmp_path}/run.json: no such file"


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (("--steps", "5"), "steps", 5),
        (("--steps=5",), "steps", 5),
        (("--data", "hub:a:b"), "data.source", "hub:a:b"),
        (("--data.source", "x"), "data.source", "x"),
        (("--data.source", "x", "--data", "y"), "data.source", "y"),
        (("--optim.lr", "1e-4"), "optim.lr", 1e-4),
        (("--optim.betas", "0.8", "0.99"), "optim.betas", (0.8, 0.99)),
        (("--schedule.kind", "wsd"), "schedule.kind", "wsd"),
        (("--precision", "bf16"), "precision", "bf16"),
        (("--compile",), "compile", True),
        (("--track", "wandb"), "track", "wandb"),
        (("--model.layers", "3"), "model.layers", 3),
        (("--distil.teacher", "runs/a"), "distil.teacher", "runs/a"),
        (("--data.mask-documents",), "data.mask_documents", True),
        (("--data.max-bytes", "1000"), "data.max_bytes", 1000),
    ],
    ids=str,
)
def test_every_field_is_a_flag(cli, flags: tuple[str, ...], field: str, value: object):
    found: object = config_of(cli("train", "pools-tiny", *flags, "--dry-run"))
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


def test_slots_are_reached_by_their_place(cli):
    found = config_of(cli("train", "pools-tiny", "--model.ffn.0.k", "9", "--dry-run"))
    assert found.model.slot(3).k == 9


def test_help_names_the_recipes(cli):
    out = cli("train", "--help").out
    for name in recipe_names():
        assert f" {name}" in out.splitlines()[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "train: expected a recipe such as pools-tiny as the first argument"),
        (("--steps", "3"), "train: expected a recipe such as pools-tiny as the first argument"),
        (("pools-tny",), "recipe 'pools-tny': did you mean 'pools-tiny'?"),
        (("pools",), "recipe 'pools': did you mean 'pools-"),
        (("pools-tiny", "--stpes", "3"), "train: unknown argument --stpes; did you mean '--steps'"),
        (
            ("pools-tiny", "--model.ffn.0.open-pool", "3"),
            "train: unknown argument --model.ffn.0.open-pool; did you mean '--model.ffn.0.open-",
        ),
        (("pools-tiny", "--steps", "x"), "train: Error parsing --steps: invalid literal for int()"),
        (("pools-tiny", "--steps", "0"), "steps: expected at least 1, found 0"),
        (("pools-tiny", "--seed", "-1"), "seed: expected 0 to 9223372036854775807, found -1"),
        (("pools-tiny", "--seed", str(2**63)), "seed: expected 0 to 9223372036854775807, found 92"),
        (("pools-tiny", "--optim.lr", "0"), "lr: expected more than 0, found 0.0"),
        (("pools-tiny", "--optim.betas", "0.9", "1"), "betas: expected two numbers from 0 to bel"),
        (("pools-tiny", "--distil.alpha", "2"), "alpha: expected a share from 0 to 1, found 2.0"),
        (("pools-tiny", "--precision", "fp8"), "invalid choice 'fp8' for argument '--precision'"),
        (
            ("pools-tiny", "--model.ffn.0.k", "1025"),
            "k: expected at most open_pools · slots = 1024, found 1025; lower k or open more pools",
        ),
        (
            ("pools-tiny", "--model.ffn.0.open-pools", "65"),
            "open_pools: expected at most pools = 64, found 65; open fewer pools",
        ),
        (
            ("peer-tiny", "--model.ffn.0.experts", "8000"),
            "experts: product keys need a perfect square, found 8000; use 7921 or 8100",
        ),
        (
            ("pooled-peer-tiny", "--model.ffn.0.pools", "63"),
            "pools: product keys need a perfect square, found 63; use 49 or 64",
        ),
        (("topk-mlp-tiny", "--model.ffn.0.k", "2000"), "k: expected at most hidden = 1088, found"),
        (("pools-tiny", "--model.kv-heads", "3"), "kv_heads: expected a divisor of heads = 4, fo"),
        (("pools-tiny", "--from", "no.json"), "no.json: no such file"),
        (("pools-tiny", "--device", "tpu"), "device: expected auto, cpu or cuda, found 'tpu'"),
        (("pools-tiny", "--data", "no/such/folder"), "no/such/folder: no such file or folder"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    cli, tmp_path: Path, monkeypatch, args: tuple[str, ...], message: str
):
    monkeypatch.chdir(tmp_path)
    assert message in cli("train", *args).only_error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stesp": 3}, "unknown key stesp; did you mean 'steps'?"),
        ({"steps": "3"}, "steps: expected int, found '3'"),
        ({"optim": {"lr": 0.1, "momentum": 0.9}}, "unknown key optim.momentum; expected one of: "),
        ({"precision": "bf61"}, "precision: found 'bf61'; did you mean 'bf16'?"),
        ({"optim": {"lr": -1.0}}, "optim.lr: expected more than 0, found -1.0"),
    ],
    ids=str,
)
def test_a_file_is_read_strictly(cli, tmp_path: Path, change: dict[str, object], message: str):
    config = json.loads(cli("train", "pools-tiny", "--dry-run").out)
    path = tmp_path / "my run.json"
    path.write_text(json.dumps({**config, **change}))
    error = cli("train", "pools-tiny", "--from", path, "--dry-run").only_error
    assert error.startswith(f"{path}: {message}")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"config": 3}'])
def test_a_file_that_holds_no_config(cli, tmp_path: Path, text: str):
    path = tmp_path / "run.json"
    path.write_text(text)
    error = cli("train", "pools-tiny", "--from", path, "--dry-run").only_error
    assert error.startswith(f"{path}: ")
    assert "expected" in error


def test_an_existing_run_is_left_alone(cli, tmp_path: Path, trained: Path, flags, snapshot):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = snapshot(run)
    assert cli("train", "pools-demo", *flags, "--run", run).only_error == (
        f"{run}: exists already; choose another --run, add --overwrite to replace it, or "
        f"continue it with: pellucid resume {run}"
    )
    assert snapshot(run) == before


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_folder_that_is_no_run_is_never_overwritten(cli, tmp_path: Path, flags, overwrite):
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "photo.jpg").write_bytes(b"sea")
    error = cli("train", "pools-demo", *flags, "--run", holiday, *overwrite).only_error
    assert error.startswith(f"{holiday}: exists already and is not a run, so it is left alone; ")
    assert (holiday / "photo.jpg").read_bytes() == b"sea"


def test_a_file_in_the_place_of_a_run(cli, tmp_path: Path, flags):
    path = tmp_path / "run"
    path.write_text("text")
    assert "exists already" in cli("train", "pools-demo", *flags, "--run", path).only_error
    assert "is not a run" in cli("train", "pools-demo", *flags, "--run", path, "--overwrite").error
    assert path.read_text() == "text"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model.context", "20000"), "context = 20000 is longer than the corpus, whose training"),
        (("--model.vocab-size", "200"), "vocab_size = 200, expected at least 257"),
        (("--device", "cuda:0"), "device: cuda:0 is not available here"),
        (("--device", "cpu:x"), "device: cpu:x cannot be used: Invalid device string"),
        (("--track", "wandb"), "--track wandb needs the package wandb, which is not installed"),
        (
            ("--distil.teacher", "/"),
            "distil.teacher '/': neither a run folder nor a model that tra",
        ),
        (("--data.tokenizer", "no.json"), "no.json: no such tokenizer"),
        (("--data.text-field", "body"), "expected the field 'body', found the fields id, text, do"),
    ],
    ids=str,
)
@pytest.mark.parametrize("taken", [False, True], ids=["new", "overwrite"])
def test_what_shows_only_with_the_data_is_refused_before_a_run_is_made_or_replaced(
    cli, tmp_path: Path, flags, trained: Path, snapshot, monkeypatch, args, message: str, taken
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "wandb" else find(n))
    run = tmp_path / "run"
    if taken:
        shutil.copytree(trained, run)
    before = snapshot(tmp_path)
    answer = cli("train", "pools-demo", *flags, "--run", run, "--overwrite", *args)
    assert message in answer.error
    assert snapshot(tmp_path) == before
    assert run.exists() == taken


def test_a_model_that_cannot_be_built_leaves_the_old_run(
    cli, tmp_path: Path, flags, trained: Path, snapshot, monkeypatch
):
    def no_memory(*_: object) -> None:
        raise RuntimeError("not enough memory")

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = snapshot(tmp_path)
    monkeypatch.setattr("pellucid.recipes.training.Transformer", no_memory)
    answer = cli("train", "pools-demo", *flags, "--run", run, "--overwrite")
    assert answer.code == 1
    assert "failed: RuntimeError: not enough memory" in answer.err
    assert snapshot(tmp_path) == before


def test_a_teacher_of_another_tokenizer(cli, tmp_path: Path, flags, trained: Path):
    teacher = ("--distil.teacher", trained)
    answer = cli(
        "train",
        "pools-demo",
        *flags,
        *teacher,
        "--model.vocab-size",
        "290",
        "--run",
        tmp_path / "r",
    )
    assert f"distil.teacher '{trained}': was trained with another tokenizer" in answer.error
    assert not (tmp_path / "r").exists()


def corrupt(kind: str, folder: Path, rows: list[dict[str, str]], make_corpus) -> str:
    """Spoil a corpus, and say what the error must name."""
    if kind == "empty":
        make_corpus(folder, [])
        return "the corpus is empty"
    if kind == "no text":
        rows[6] = {"id": "x", "body": "text"}
        make_corpus(folder, rows)
        return "text.jsonl.zst:7: expected the field 'text', found the fields id, body"
    if kind == "no validation":
        make_corpus(
            folder, [r for r in rows if (r["domain"], r["split"]) != ("code", "validation")]
        )
        return "the domain 'code' has no validation text"
    make_corpus(folder, rows)
    file = folder / "text.jsonl.zst"
    if kind == "not zstd":
        file.write_bytes(b"these are not the bytes you are looking for")
        return f"{file}: expected zstd data"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-20])
        return f"{file}: the zstd data ends early"
    (folder / "latin.txt").write_bytes("naïve\n".encode("latin-1"))
    return "latin.txt:1: expected UTF-8, found the byte 0xef at column 3"


@pytest.mark.parametrize(
    "kind", ["empty", "no text", "no validation", "not zstd", "truncated", "not UTF-8"]
)
def test_a_corpus_that_cannot_be_used(
    cli, tmp_path: Path, flags, make_corpus, documents, kind: str
):
    message = corrupt(kind, tmp_path / "corpus", documents(), make_corpus)
    run = tmp_path / "run"
    answer = cli("train", "pools-demo", *flags, "--data", tmp_path / "corpus", "--run", run)
    assert message in answer.error
    assert not run.exists()


def test_a_folder_without_data(cli, tmp_path: Path, flags):
    (tmp_path / "notes.md").write_text("no data")
    answer = cli("train", "pools-demo", *flags, "--data", tmp_path, "--run", tmp_path / "run")
    assert "expected files ending in .jsonl, .jsonl.zst, .parquet, .txt, found none" in answer.error
    assert not (tmp_path / "run").exists()
