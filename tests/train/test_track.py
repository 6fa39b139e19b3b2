"""Trackers behind stand-ins: what they are told, and that none of their failures stops a run."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from pellucid.core.errors import MissingExtra
from pellucid.train.loop import Progress
from pellucid.train.track import Track, check_tracker

STAND_IN = """
calls = []

def init(**settings):
    calls.append(("init", settings))

def log(metrics, step):
    calls.append(("log", metrics, step))
"""

PROGRESS = Progress(step=3, steps=9, tokens=30, metrics={"train/loss": 2.0, "lr": 0.1})


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Write a package of a given name and source where Python finds it first."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)

    yield write
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_what_a_tracker_is_told(tracker: str, tmp_path: Path, install):
    install(tracker, STAND_IN)
    warned: list[str] = []
    track = Track(tracker, tmp_path / "my-run", {"steps": 9}, warned.append)
    track.after_step(PROGRESS)
    assert sys.modules[tracker].calls == [
        ("init", {"project": "pellucid", "name": "my-run", "config": {"steps": 9}}),
        ("log", {"tokens": 30, "train/loss": 2.0, "lr": 0.1}, 3),
    ]
    assert warned == []


def test_tensorboard_gets_one_scalar_per_metric(tmp_path: Path, monkeypatch):
    written: list[tuple[object, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            written.append(("open", folder))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            written.append(("flush",))

    stand_in = ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    Track("tensorboard", tmp_path, {}, written.append).after_step(PROGRESS)
    assert written == [
        ("open", str(tmp_path / "tensorboard")),
        ("tokens", 30, 3),
        ("train/loss", 2.0, 3),
        ("lr", 0.1, 3),
        ("flush",),
    ]


def test_a_failure_while_logging_turns_the_tracker_off_with_one_warning(tmp_path: Path, install):
    install("wandb", "def init(**s): pass\ndef log(m, step): raise OSError('no\\n network')")
    warned: list[str] = []
    track = Track("wandb", tmp_path, {}, warned.append)
    for _ in range(3):
        track.after_step(PROGRESS)
    assert warned == ["wandb failed and is off for the rest of the run: no network"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def init(**s): raise RuntimeError('not logged in')", "not logged in"),
        ("def init(**s): raise TimeoutError", "TimeoutError"),
        ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
    ],
)
def test_a_failure_at_the_start_does_not_stop_the_run(source, reason, tmp_path: Path, install):
    install("trackio", source)
    warned: list[str] = []
    track = Track("trackio", tmp_path, {}, warned.append)
    track.after_step(PROGRESS)
    assert warned == [f"trackio failed and is off for the rest of the run: {reason}"]


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_with_its_command(tracker: str, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=rf"--track {tracker} needs the package {tracker}, "):
        check_tracker(tracker)
    with pytest.raises(MissingExtra, match="pip install"):
        Track(tracker, Path("run"), {}, print)
