"""The demonstration's two arms, and the folder that it may replace."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pellucid.core.errors import MissingExtra, RunError
from pellucid.recipes import demo
from pellucid.recipes.demo import ARMS, MARK, clear_demo, demo_config, run_demo
from pellucid.recipes.language import LanguageRun
from pellucid.train.loop import Progress


def test_the_arms_differ_in_their_slot_alone():
    pools, dense = (demo_config(arm, source="embedded", steps=None, seed=3) for arm in ARMS)
    assert pools.seed == dense.seed == 3
    assert pools.model.slot(0).kind == "pools"
    assert dense.model.slot(0).kind == "dense"
    # With one slot in both, trunk, data, optimiser and everything else are equal.
    assert replace(pools, model=replace(pools.model, ffn=dense.model.ffn)) == dense
    # 2·d·(P + e·n + k) = 4·d·f at width 128: f = (64 + 8·128 + 12) / 2.
    assert dense.model.slot(0).free_size == 550
    assert 900_000 <= pools.steps * pools.tokens_per_step <= 2_000_000


def test_clear_demo_makes_and_replaces(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    clear_demo(folder)
    (folder / "old").write_text("")
    clear_demo(folder)
    assert [path.name for path in folder.iterdir()] == [MARK]


def test_a_file_or_another_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(RunError, match="holds something that is not a demo"):
            clear_demo(taken)
    assert (tmp_path / "file").read_text() == "kept"
    clear_demo(tmp_path / "empty")
    assert (tmp_path / "empty" / MARK).is_file()


def quiet(*_: object) -> None:
    """Progress that nobody wants to hear of."""


def run_it(folder: Path):
    return run_demo(folder, source="embedded", steps=4, seed=0, progress=quiet, say=quiet)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_what_the_report_needs_is_asked_for_before_anything_is_trained(
    tmp_path: Path, monkeypatch, package: str
):
    monkeypatch.setattr(demo, "prepare_run", lambda *_: pytest.fail("read the text"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=f"needs the package {package}"):
        run_it(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arm", "step"), [("pools", 2), ("pools", 4), ("dense", 4)])
def test_a_stop_ends_the_demo_even_in_the_last_step_of_an_arm(
    tmp_path: Path, monkeypatch, config: LanguageRun, arm: str, step: int
):
    trained: list[str] = []

    def train(run: Path, prepared: object, *, name: str, say: object) -> Progress:
        trained.append(name)
        stopping = name == arm
        return Progress(step=step if stopping else 4, steps=4, tokens=0, stopping=stopping)

    monkeypatch.setattr(demo, "demo_config", lambda *_, **__: config)
    monkeypatch.setattr(demo, "train_language", train)
    monkeypatch.setattr(demo, "arm_report", lambda *_: pytest.fail("went on to the report"))
    done = run_it(tmp_path / "demo")
    assert (done.stopped, done.report, done.arms) == (arm, None, ())
    assert done.progress is not None
    assert done.progress.step == step
    assert trained[-1] == arm


def test_units_are_read_in_documents_by_themselves(tmp_path: Path, monkeypatch, config):
    """What is scored is packed; what is counted and shown has a document a row."""
    asked: list[bool] = []
    batches = demo.evaluation_batches

    def watch(*args: object, separate: bool = False, **more: object):
        asked.append(separate)
        return batches(*args, separate=separate, **more)

    seen: list[int] = []

    def measure(host: object, pools: object, batches: list, *rest: object):
        seen.append(max(len(set(row.tolist()) - {-1}) for b in batches for row in b.document))
        return ()

    monkeypatch.setattr(demo, "evaluation_batches", watch)
    monkeypatch.setattr(demo, "measure_activity", measure)
    prepared = demo.prepare_run(config, quiet)
    run = tmp_path / "run"
    demo.create_run(run, prepared.config, recipe="r", command=[], overwrite=False)
    demo.train_language(run, prepared, name="pools", say=quiet)
    found = demo.arm_report(run, "pools", prepared)
    assert asked == [False, True]
    assert seen == [1]
    assert found.bpb > 0
