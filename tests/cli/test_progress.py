"""What is said on stderr and how a run's end is told."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from pellucid.cli import progress
from pellucid.cli.progress import finish, note_progress, say


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_one_line_on_stderr(capsys):
    say("hello")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "pellucid: hello\n")


def test_a_reporter_speaks_of_new_tasks_and_after_a_while(capsys, clock: list[float]):
    report = note_progress(interval=5.0)
    report("reading", 0, 0)
    clock[0] += 4.0
    report("reading", 1000, 2000)
    clock[0] += 1.0
    report("reading", 1500, 2000)
    report("packing", 1500, 0)
    report("packing", 1501, 0)
    assert capsys.readouterr().err.splitlines() == [
        "pellucid: reading",
        "pellucid: reading 1,500 of 2,000",
        "pellucid: packing 1,500",
    ]


def test_a_finished_run_leaves_its_folder_on_stdout(capsys):
    assert finish(Path("runs/a"), 10, 10) == 0
    said = capsys.readouterr()
    assert said.out == "runs/a\n"
    assert said.err == "pellucid: finished 10 steps\n"


def test_a_stopped_run_leaves_the_command_that_continues_it(capsys):
    assert finish(Path("runs/my run"), 4, 10) == 0
    said = capsys.readouterr()
    assert shlex.split(said.out) == ["pellucid", "resume", "runs/my run"]
    assert said.err == ("pellucid: stopped at step 4 of 10 after a checkpoint; continue with:\n")
