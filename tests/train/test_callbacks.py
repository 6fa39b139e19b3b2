"""What is written and said after a step, line by line."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pellucid.train import callbacks
from pellucid.train.callbacks import Checkpoints, Evaluate, MetricsFile, ProgressLine
from pellucid.train.loop import Progress


def progress(step: int, *, steps: int = 10, stopping: bool = False, **metrics: float) -> Progress:
    return Progress(
        step=step, steps=steps, tokens=100 * step, metrics=dict(metrics), stopping=stopping
    )


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that stands until its one number is changed."""
    now = [1000.0]
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


class Terminal(io.StringIO):
    """A stderr that a person looks at."""

    def isatty(self) -> bool:
        return True


def test_evaluation_comes_at_its_steps_and_at_the_end():
    asked: list[int] = []

    def figures():
        asked.append(len(asked))
        return {"val/bits_per_byte": 2.0}

    evaluate = Evaluate(figures=figures, every=4)
    with_figures = []
    for step in range(1, 11):
        here = progress(step)
        evaluate.after_step(here)
        if here.metrics:
            with_figures.append((step, here.metrics["val/bits_per_byte"]))
    assert with_figures == [(4, 2.0), (8, 2.0), (10, 2.0)]


def test_a_run_that_is_told_to_stop_is_not_evaluated():
    # The uninterrupted run has no evaluation there, and the two must log the same lines.
    here = progress(5, stopping=True)
    Evaluate(figures=lambda: {"val/x": 1.0}, every=4).after_step(here)
    assert here.metrics == {}


def test_metrics_lines(tmp_path: Path, clock: list[float]):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path=path, every=3, started=clock[0])
    for step in range(1, 11):
        clock[0] += 0.25
        evaluated = {"val/bits_per_byte": 1.5} if step == 4 else {}
        file.after_step(progress(step, **{"train/loss": step / 2}, **evaluated))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # Every third step, the evaluated one and the last; a quarter of a second a step.
    assert lines == [
        {"step": 3, "tokens": 300, "seconds": 0.75, "train/loss": 1.5},
        {"step": 4, "tokens": 400, "seconds": 1.0, "train/loss": 2.0, "val/bits_per_byte": 1.5},
        {"step": 6, "tokens": 600, "seconds": 1.5, "train/loss": 3.0},
        {"step": 9, "tokens": 900, "seconds": 2.25, "train/loss": 4.5},
        {"step": 10, "tokens": 1000, "seconds": 2.5, "train/loss": 5.0},
    ]


def test_a_stop_writes_no_line_of_its_own(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path=path, every=3).after_step(progress(5, stopping=True))
    assert not path.exists()


def test_lines_are_appended(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    MetricsFile(path=path, every=1).after_step(progress(2))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_checkpoints_come_at_their_steps_and_at_the_end():
    saved: list[int] = []
    keep = Checkpoints(save=saved.append, every=4)
    for step in range(1, 11):
        keep.after_step(progress(step))
    assert saved == [4, 8, 10]


def test_a_run_that_is_told_to_stop_saves():
    saved: list[int] = []
    Checkpoints(save=saved.append, every=4).after_step(progress(5, stopping=True))
    assert saved == [5]


def test_away_from_a_terminal_a_plain_line_every_interval(capsys, clock: list[float]):
    line = ProgressLine("pools-tiny", 10, 0, interval=5.0)
    for step in range(1, 11):
        clock[0] += 2.0
        line.after_step(progress(step, **{"train/loss": 3.14159}))
    written = capsys.readouterr()
    assert written.out == ""
    # Two seconds a step: lines at 6, 12 and 18 seconds and at the end. The rate counts from the
    # end of the first step: 100 tokens in 2 s; what is left is 7, 4, 1 and 0 steps of 2 s.
    assert written.err.splitlines() == [
        "pools-tiny: step 3/10 loss 3.142 tok/s 50 eta 0:14",
        "pools-tiny: step 6/10 loss 3.142 tok/s 50 eta 0:08",
        "pools-tiny: step 9/10 loss 3.142 tok/s 50 eta 0:02",
        "pools-tiny: step 10/10 loss 3.142 tok/s 50 eta 0:00",
    ]


def test_the_newest_validation_stays_in_the_line(capsys, clock: list[float]):
    line = ProgressLine("run", 3, 0, interval=0.0)
    line.after_step(
        progress(1, steps=3, **{"train/loss": 4.0, "val/bits_per_byte": 2.5, "val/live_units": 0.5})
    )
    clock[0] += 100.0
    line.after_step(progress(2, steps=3, **{"train/loss": 3.0}))
    assert capsys.readouterr().err.splitlines() == [
        "run: step 1/3 loss 4.000 bpb 2.500 live 50%",
        "run: step 2/3 loss 3.000 bpb 2.500 live 50% tok/s 1 eta 1:40",
    ]


def test_a_resumed_run_counts_its_own_rate(capsys, clock: list[float]):
    line = ProgressLine("run", 100, 90, interval=0.0)
    line.after_step(progress(91, steps=100, **{"train/loss": 1.0}))
    clock[0] += 1.0
    line.after_step(progress(92, steps=100, **{"train/loss": 1.0}))
    # 100 tokens in one second, and 8 steps of 100 tokens left.
    assert capsys.readouterr().err.splitlines()[-1] == (
        "run: step 92/100 loss 1.000 tok/s 100 eta 0:08"
    )


def test_a_stopped_run_says_where_it_stands(capsys, clock: list[float]):
    line = ProgressLine("run", 10, 0, interval=1e9)
    line.after_step(progress(4, stopping=True, **{"train/loss": 2.0}))
    assert capsys.readouterr().err == "run: step 4/10 loss 2.000\n"


def test_on_a_terminal_a_bar(monkeypatch, clock: list[float]):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    bar = ProgressLine("pools-tiny", 10, 4, interval=0.0)
    for step in range(5, 11):
        clock[0] += 1.0
        bar.after_step(progress(step, **{"train/loss": 1.25}))
    shown = terminal.getvalue()
    assert "pools-tiny" in shown
    assert "10/10" in shown.split("\r")[-1]
    assert "loss=1.250" in shown
    # A bar redraws one line; only its end moves to the next.
    assert shown.count("\n") == 1


def test_a_bar_closed_early_leaves_its_line(monkeypatch, clock: list[float]):
    # What is said after a fault starts at the beginning of a line, not behind the bar.
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    bar = ProgressLine("pools-tiny", 10, 0)
    bar.after_step(progress(1, **{"train/loss": 1.25}))
    assert not terminal.getvalue().endswith("\n")
    bar.close()
    bar.close()
    assert terminal.getvalue().endswith("\n")
    assert terminal.getvalue().count("\n") == 1


def test_there_is_nothing_to_close_away_from_a_terminal(capsys, clock: list[float]):
    ProgressLine("pools-tiny", 10, 0).close()
    assert capsys.readouterr().err == ""
