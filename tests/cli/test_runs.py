"""``pellucid runs``: what is found, how far it is, and folders that hold something else."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, trained: Path) -> Path:
    """Two runs, one nested, the other without a checkpoint; and something that is no run."""
    shutil.copytree(trained, tmp_path / "a")
    shutil.copytree(trained, tmp_path / "deep" / "er" / "b")
    shutil.rmtree(tmp_path / "deep" / "er" / "b" / "checkpoints")
    (tmp_path / "deep" / "er" / "b" / "metrics.jsonl").unlink()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "run.txt").write_text("not a run")
    return tmp_path


def test_numbers_for_machines(cli, folder: Path):
    answer = cli("runs", folder, "--json")
    assert answer.code == 0
    lines = (folder / "a" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])["val/bits_per_byte"]
    assert json.loads(answer.out) == [
        {
            "name": str(folder / "a"),
            "recipe": "pools-demo",
            "step": 8,
            "steps": 8,
            "tokens": 8 * 4 * 16,
            "bits_per_byte": last,
        },
        {
            "name": str(folder / "deep" / "er" / "b"),
            "recipe": "pools-demo",
            "step": 0,
            "steps": 8,
            "tokens": 0,
            "bits_per_byte": None,
        },
    ]


def test_the_table(cli, folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    answer = cli("runs", ".")
    assert answer.err == ""
    head, first, second = answer.out.splitlines()
    assert head.split() == ["run", "recipe", "step", "tokens", "bits", "per", "byte"]
    assert first.split()[:4] == ["a", "pools-demo", "8/8", "512"]
    assert float(first.split()[4]) > 1
    assert second.split() == ["deep/er/b", "pools-demo", "0/8", "0", "–"]


def test_the_default_folder(cli, folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    folder.joinpath("runs").mkdir()
    (folder / "a").rename(folder / "runs" / "a")
    assert [row["name"] for row in json.loads(cli("runs", "--json").out)] == ["runs/a"]


def test_no_runs(cli, tmp_path: Path):
    assert json.loads(cli("runs", tmp_path, "--json").out) == []


def test_a_run_folder_itself(cli, folder: Path):
    assert len(json.loads(cli("runs", folder / "a", "--json").out)) == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", "{", "run.json: expected JSON, found "),
        ("metrics.jsonl", "\0\0{}\n", "metrics.jsonl:1: expected one JSON object a line, found "),
    ],
)
def test_one_run_that_cannot_be_read_is_shown_as_such(
    cli, folder: Path, monkeypatch, file: str, text: str, message: str
):
    bad = folder / "deep" / "er" / "b"
    (bad / file).write_text(text)
    answer = cli("runs", folder, "--json")
    assert answer.code == 0
    whole, broken = json.loads(answer.out)
    assert (whole["name"], whole["step"]) == (str(folder / "a"), 8)
    assert broken.keys() == {"name", "error"}
    assert broken["name"] == str(bad)
    assert broken["error"].startswith(f"{bad}/{message}")
    assert answer.err == f"pellucid: {broken['error']}\n"
    monkeypatch.chdir(folder)
    *_, first, second = cli("runs", ".").out.splitlines()
    assert first.split()[2] == "8/8"
    assert second.split() == ["deep/er/b", "cannot", "be", "read", "–", "–", "–"]


def test_a_folder_of_another_kind_among_the_checkpoints(cli, folder: Path):
    (folder / "a" / "checkpoints" / "step_copy").mkdir()
    (folder / "a" / "latest").write_text("step_copy")
    names = [row["name"] for row in json.loads(cli("runs", folder, "--json").out)]
    assert names == [str(folder / "a"), str(folder / "deep" / "er" / "b")]


def test_names_are_printed_as_they_are(cli, folder: Path, monkeypatch):
    """rich would read [bold] as a mark-up, and stumble over [/]."""
    monkeypatch.chdir(folder)
    (folder / "a").rename(folder / "[bold]a[")
    record = json.loads((folder / "[bold]a[" / "run.json").read_text())
    (folder / "[bold]a[" / "run.json").write_text(json.dumps({**record, "recipe": "x[/]"}))
    first = cli("runs", ".").out.splitlines()[1]
    assert first.split()[:2] == ["[bold]a[", "x[/]"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("no/such",), "no/such: no such folder; give the folder that holds the runs"),
        (("a", "b"), "runs: unknown argument b; see pellucid runs --help"),
    ],
)
def test_what_is_refused(cli, args: tuple[str, ...], message: str):
    assert cli("runs", *args).only_error == message
