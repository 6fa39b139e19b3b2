"""The run folder: made, replaced, read, summarised, and told from others."""

import errno
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pellucid.core.errors import ConfigError, RunError
from pellucid.recipes import folder
from pellucid.recipes.folder import (
    RunSummary,
    check_new,
    commit,
    create_run,
    cut_metrics,
    is_run,
    log_event,
    machine,
    read_metrics,
    read_run,
    summarise,
    write_run,
)
from pellucid.recipes.language import LanguageRun
from pellucid.train.checkpoint import Checkpoint, save_checkpoint

EMPTY = Checkpoint(model={"w": torch.zeros(1)}, optimizer={"m": torch.zeros(1)}, state={})


@pytest.fixture
def run(tmp_path: Path, config: LanguageRun) -> Path:
    path = tmp_path / "run"
    create_run(path, config, recipe="pools-x", command=["pellucid", "train"], overwrite=False)
    return path


def test_what_is_made(run: Path, config: LanguageRun):
    assert sorted(path.name for path in run.iterdir()) == ["environment.json", "run.json"]
    assert is_run(run)
    found, record = read_run(run)
    assert found == config
    assert record == {
        "schema": 1,
        "kind": "language",
        "recipe": "pools-x",
        "command": ["pellucid", "train"],
    }
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["seed"] == config.seed
    assert environment["device"] == "cpu"


def test_a_folder_that_does_not_exist_or_is_empty_is_free(tmp_path: Path):
    check_new(tmp_path / "new", overwrite=False)
    check_new(tmp_path, overwrite=False)


def test_a_run_is_replaced_only_if_asked(run: Path, config: LanguageRun):
    with pytest.raises(RunError, match=r"exists already; choose another --run, add --overwrite "):
        check_new(run, overwrite=False)
    (run / "old").write_text("old")
    other = replace(config, steps=9)
    create_run(run, other, recipe="r", command=[], overwrite=True)
    assert read_run(run)[0].steps == 9
    assert not (run / "old").exists()


def test_what_is_no_run_is_never_replaced(tmp_path: Path, config: LanguageRun):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunError) as caught:
            create_run(tmp_path, config, recipe="r", command=[], overwrite=overwrite)
        # Neither --overwrite nor resume would help.
        assert str(caught.value) == (
            f"{tmp_path}: exists already and is not a run, so it is left alone; choose another "
            "--run, or remove it first"
        )
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_command_that_is_offered_can_be_pasted(tmp_path: Path, config: LanguageRun):
    path = tmp_path / "my run"
    create_run(path, config, recipe="r", command=[], overwrite=False)
    with pytest.raises(RunError, match=rf"continue it with: pellucid resume '{path}'$"):
        check_new(path, overwrite=False)


def test_a_folder_that_cannot_be_written_is_not_left_half_made(
    tmp_path: Path, config: LanguageRun, monkeypatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # run.json is there already, environment.json is not.
    write, written = folder.write_atomically, []

    def second_fails(path: Path, text: str) -> None:
        written.append(path.name)
        (full if len(written) == 2 else write)(path, text)

    monkeypatch.setattr(folder, "write_atomically", second_fails)
    with pytest.raises(RunError) as caught:
        create_run(tmp_path / "run", config, recipe="r", command=[], overwrite=False)
    assert str(caught.value) == (
        f"{tmp_path}/run: cannot be made: No space left on device; free some space or choose "
        "another --run"
    )
    assert written == ["run.json", "environment.json"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ConfigError, "expected JSON, found "),
        ("[]", RunError, "expected a run's record with the fields schema, "),
        ("{}", RunError, "expected a run's record with the fields schema, "),
        (
            '{"schema": 7, "config": {}}',
            RunError,
            "written in schema 7, this version reads up to 1",
        ),
        (
            '{"schema": "1", "config": {}}',
            RunError,
            "expected a run's record with the fields schema, ",
        ),
        (
            '{"schema": 1, "kind": "", "recipe": "", "command": [], "config": {}}',
            ConfigError,
            "model is missing; expected TransformerConfig",
        ),
    ],
)
def test_a_record_that_is_none(run: Path, text: str, error: type[Exception], message: str):
    (run / "run.json").write_text(text)
    with pytest.raises(error) as caught:
        read_run(run)
    assert str(caught.value).startswith(f"{run / 'run.json'}: ")
    assert message in str(caught.value)


def test_a_new_record_replaces_the_old_one_whole(run: Path, config: LanguageRun):
    write_run(run, replace(config, steps=77), recipe="other", command=["x"])
    found, record = read_run(run)
    assert (found.steps, record["recipe"]) == (77, "other")
    assert list(run.glob(".*")) == []


def test_metrics_end_with_the_last_whole_line(run: Path):
    assert read_metrics(run) == []
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "x": 0.5}\n{"step": 2, "x": 0.25}\n{"step": 3, '
    )
    assert read_metrics(run) == [{"step": 1, "x": 0.5}, {"step": 2, "x": 0.25}]


@pytest.mark.parametrize("line", ["{", "3", "[1]", "\0\0\0{}", ""])
def test_a_line_of_metrics_that_is_no_record_is_named(run: Path, line: str):
    (run / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(RunError) as caught:
        read_metrics(run)
    text = str(caught.value)
    assert text.startswith(f"{run}/metrics.jsonl:2: expected one JSON object a line, found ")
    assert len(text.splitlines()) == 1


def test_metrics_that_are_no_text_are_named(run: Path):
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl:1: expected one JSON object a line"):
        read_metrics(run)


@pytest.mark.parametrize(
    ("size", "left"),
    [
        (0, b""),
        (3, b"ab\n"),
        # Within a line, and within a file that is shorter: whole lines stay.
        (5, b"ab\n"),
        (6, b"ab\ncd\n"),
        (99, b"ab\ncd\n"),
    ],
)
def test_metrics_are_cut_to_whole_lines_and_never_grow(run: Path, size: int, left: bytes):
    (run / "metrics.jsonl").write_bytes(b"ab\ncd\nef")
    cut_metrics(run, size)
    assert (run / "metrics.jsonl").read_bytes() == left


def test_there_need_not_be_metrics_to_cut(run: Path):
    cut_metrics(run, 5)
    assert not (run / "metrics.jsonl").exists()


def test_a_summary(run: Path):
    name = str(run)
    begun = RunSummary(name=name, recipe="pools-x", step=0, steps=4, tokens=0, bits_per_byte=None)
    assert summarise(run) == begun
    save_checkpoint(run, 2, EMPTY, keep=3)
    lines = [{"step": 1}, {"step": 2, "val/bits_per_byte": 3.5}, {"step": 3}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Two steps of 2 sequences of 12 tokens.
    assert summarise(run) == replace(begun, step=2, tokens=48, bits_per_byte=3.5)


def test_events_are_appended(run: Path):
    log_event(run, "start", {"step": 0})
    log_event(run, "stop", {"step": 4, "early": False})
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in events] == [("start", 0), ("stop", 4)]
    assert all(event["time"] for event in events)


def test_the_commit_without_git(monkeypatch):
    def missing(*args: object, **settings: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(folder.subprocess, "run", missing)
    assert commit() == (None, False)


def test_the_commit_of_a_checkout(monkeypatch):
    answers = {"ls-files": "folder.py\n", "rev-parse": "abc123\n", "status": " M file\n"}

    def git(command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout=answers[command[1]])

    monkeypatch.setattr(folder.subprocess, "run", git)
    assert commit() == ("abc123", True)
    answers["status"] = ""
    assert commit() == ("abc123", False)


def test_the_commit_of_somebody_elses_checkout_is_not_ours(tmp_path: Path, monkeypatch):
    """As where pellucid is installed into an environment inside a repository."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    package = tmp_path / ".venv" / "folder.py"
    package.parent.mkdir()
    package.touch()
    (tmp_path / "theirs.py").touch()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "theirs.py"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(folder, "__file__", str(package))
    assert commit() == (None, False)
    # Once the file is theirs, the commit is.
    for words in (["add", "-f", ".venv/folder.py"], ["commit", "-qm", "ours"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True, capture_output=True)
    revision, dirty = commit()
    assert revision is not None
    assert len(revision) == 40
    assert not dirty


def test_the_machine_names_its_threads():
    assert machine().endswith(f", {torch.get_num_threads()} threads")
    assert len(machine()) > len(", 1 threads")
