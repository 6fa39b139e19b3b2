"""The demonstration end to end: both arms, the summary, one page; and what it refuses."""

import json
import re

import pytest

from pellucid.recipes import demo
from pellucid.recipes.demo import ARMS, MARK, clear_demo
from pellucid.train.loop import Progress


@pytest.fixture
def small(monkeypatch):
    """The demo's own preset with fewer held-out tokens, so that a test takes seconds."""
    monkeypatch.setattr(demo, "REPORT_TOKENS", 200)


def test_demo(cli, corpus, tmp_path, small):
    folder = tmp_path / "demo"
    answer = cli("demo", "--data", corpus, "--steps", 3, "--run", folder)
    assert answer.code == 0, answer.err
    page = folder / "report.html"
    assert answer.out.endswith(f"report: {page}\n")
    for arm in ARMS:
        assert re.search(rf"^{arm} +\d\.\d\d\d", answer.out, re.MULTILINE), answer.out
        lines = (folder / arm / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 3
        assert (folder / arm / "model.safetensors").is_file()
    html = page.read_text(encoding="utf-8")
    for said in ("Validation bits per byte by domain", "given the token", "permuted", *("code",)):
        assert said in html, said
    # Self-contained: nothing is fetched.
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", html)
    assert "<script src" not in html
    assert "@import" not in html

    before = page.stat().st_mtime_ns
    again = cli("demo", "--data", corpus, "--steps", 2, "--run", folder)
    assert again.code == 0, again.err
    assert page.stat().st_mtime_ns > before
    assert json.loads((folder / "pools" / "run.json").read_text())["config"]["steps"] == 2


def test_a_folder_of_something_else_is_left_alone(cli, corpus, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    answer = cli("demo", "--data", corpus, "--steps", 2, "--run", tmp_path)
    assert answer.error == f"{tmp_path}: holds something that is not a demo; choose another --run"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_missing_text_leaves_the_last_demo(cli, tmp_path):
    clear_demo(tmp_path / "demo")
    answer = cli("demo", "--data", tmp_path / "nowhere", "--run", tmp_path / "demo")
    assert "nowhere" in answer.error
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [MARK]


def test_a_stopped_demo_is_started_over(cli, monkeypatch, tmp_path):
    """Its folder is made anew, so resuming the arm would not end in a report."""
    reached = Progress(step=3, steps=3, tokens=0, stopping=True)
    stopped = demo.DemoResult(stopped="dense", progress=reached)
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: stopped)
    answer = cli("demo", "--steps", 3, "--run", tmp_path / "my demo")
    assert answer.code == 0
    assert answer.err == (
        "pellucid: stopped at step 3 of 3 of dense; the demo starts over when it is run again:\n"
    )
    assert answer.out == f"pellucid demo --steps 3 --run '{tmp_path}/my demo'\n"
