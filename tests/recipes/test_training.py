"""A run put together: its loop and callbacks, faults, and what a resumed run does again."""

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pellucid.core.errors import CheckpointError, RunError, TrainingError
from pellucid.data.packing import PADDING, Batch
from pellucid.data.tokenizer import TextTokenizer
from pellucid.recipes import prepare, training
from pellucid.recipes.folder import create_run, read_metrics, read_run
from pellucid.recipes.language import DistilConfig, LanguageRun
from pellucid.recipes.load import load_run
from pellucid.recipes.prepare import Prepared, prepare_run
from pellucid.recipes.training import train_language
from pellucid.train.checkpoint import list_checkpoints, load_checkpoint
from pellucid.train.loop import Progress


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to hear of."""


@pytest.fixture
def begin(tmp_path: Path) -> Callable[[LanguageRun, str], tuple[Path, Prepared]]:
    """Prepare a run and make its folder."""

    def make(config: LanguageRun, name: str = "run") -> tuple[Path, Prepared]:
        prepared = prepare_run(config, quiet)
        run = tmp_path / name
        create_run(run, prepared.config, recipe="test", command=[], overwrite=False)
        return run, prepared

    return make


def without_times(run: Path) -> list[dict[str, float]]:
    timed = ("seconds", "time/")
    return [{k: v for k, v in m.items() if not k.startswith(timed)} for m in read_metrics(run)]


def test_the_first_step_reads_the_first_batches(config: LanguageRun, begin):
    _, prepared = begin(replace(config, accumulate=3))
    seen: list[Batch] = []
    loop = training._loop(prepared, *fresh(prepared), "cpu")
    for step in (0, 1):
        seen += loop.batches(step)
    assert len(seen) == 6
    for index, batch in enumerate(seen):
        assert torch.equal(batch.tokens, prepared.order.batch(index).tokens)
    assert loop.tokens_per_step == 3 * 2 * 12


def fresh(prepared: Prepared):
    model = training.Transformer(prepared.config.model)
    objective = training._objective(prepared, model)
    return objective, training.build_optimizer(objective.param_groups(), prepared.config.optim)


def test_a_run(config: LanguageRun, begin, capsys):
    run, prepared = begin(config)
    progress = train_language(run, prepared, name="test", say=print)
    assert (progress.step, progress.steps, progress.tokens) == (4, 4, 96)
    assert [path.name for path in list_checkpoints(run)] == ["step_000000002", "step_000000004"]
    lines = without_times(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        scored = {"val/bits_per_byte", "val/bits_per_byte/even", "val/bits_per_byte/odd"}
        assert (scored | {"val/live_units"} <= line.keys()) == (line["step"] in (2, 4))
    state = load_checkpoint(run).state
    assert state["corpus"] == prepared.corpus.identity
    assert state["tokens"] == 96
    assert state["metrics_bytes"] == (run / "metrics.jsonl").stat().st_size
    assert "test: step 4/4 loss " in capsys.readouterr().err


def test_evaluation_does_not_disturb_training(config: LanguageRun, begin):
    # Losses of a run that is evaluated at every step and of one evaluated only at the end.
    often, rarely = (
        begin(replace(config, evaluate_every=every), f"run-{every}") for every in (1, 100)
    )
    for run, prepared in (often, rarely):
        train_language(run, prepared, name="test", say=print)
    losses = [[m["train/loss"] for m in read_metrics(run)] for run, _ in (often, rarely)]
    assert losses[0] == losses[1]


def test_a_run_that_lost_its_end_repeats_it(config: LanguageRun, begin, monkeypatch):
    whole, prepared = begin(config, "whole")
    train_language(whole, prepared, name="test", say=print)
    cut, prepared = begin(config, "cut")

    read = prepared.order.batch

    def until_the_fourth_step(index: int) -> Batch:
        if index == 3:
            raise OSError("the power went off")
        return read(index)

    # The checkpoint of the second step is the newest then, and the third has been logged.
    with monkeypatch.context() as patch:
        patch.setattr(prepared.order, "batch", until_the_fourth_step)
        with pytest.raises(OSError, match="power"):
            train_language(cut, prepared, name="test", say=print)
    assert [line["step"] for line in read_metrics(cut)] == [1, 2, 3]
    train_language(cut, prepared, name="test", say=print)
    assert without_times(cut) == without_times(whole)
    ours, theirs = load_checkpoint(cut), load_checkpoint(whole)
    for name, tensor in theirs.optimizer.items():
        assert torch.equal(ours.optimizer[name], tensor), name


def test_going_back_by_name(config: LanguageRun, begin):
    run, prepared = begin(config)
    train_language(run, prepared, name="test", say=print)
    lines = without_times(run)
    train_language(run, prepared, name="test", say=print, checkpoint="step_000000002")
    assert without_times(run) == lines


def test_going_back_holds_even_if_the_run_breaks_off_at_once(
    config: LanguageRun, begin, monkeypatch
):
    run, prepared = begin(config)
    train_language(run, prepared, name="test", say=print)

    def broken(index: int) -> Batch:
        raise OSError("the power went off")

    monkeypatch.setattr(prepared.order, "batch", broken)
    with pytest.raises(OSError, match="power"):
        train_language(run, prepared, name="test", say=print, checkpoint="step_000000002")
    assert [path.name for path in list_checkpoints(run)] == ["step_000000002"]
    assert [line["step"] for line in read_metrics(run)] == [1, 2]


def test_a_new_plan_is_written_down_once_the_run_goes_on(config: LanguageRun, begin):
    run, prepared = begin(config)
    train_language(run, prepared, name="test", say=print)
    longer = replace(prepared, config=replace(prepared.config, steps=5))
    train_language(run, longer, name="test", say=print)
    assert read_run(run)[0].steps == 5
    assert load_run(run).step == 5


def test_other_text_is_refused_and_the_plan_stays(config: LanguageRun, begin):
    run, prepared = begin(config)
    train_language(run, prepared, name="test", say=print)
    other = replace(
        prepared,
        corpus=replace(prepared.corpus, identity="another"),
        config=replace(prepared.config, steps=9),
    )
    with pytest.raises(RunError, match="is no longer what this run was trained on"):
        train_language(run, other, name="test", say=print)
    assert read_run(run)[0].steps == 4


def test_documents_are_named_where_the_loss_is_not_finite(config: LanguageRun, begin):
    wild = replace(config, steps=50, optim=replace(config.optim, lr=1e30))
    run, prepared = begin(wild)
    with pytest.raises(TrainingError, match=r"the batch held documents (even|odd)-\d") as caught:
        train_language(run, prepared, name="test", say=print)
    assert "\n" not in str(caught.value)


def test_at_most_eight_documents_are_named(config: LanguageRun):
    corpus = prepare_run(config, quiet).corpus
    many = torch.arange(corpus.train.num_documents).view(1, -1)
    text = training._name_documents(corpus, Batch(many, many, many))
    assert text.endswith(" and 4 more")
    assert text.count(",") == 7
    few = torch.tensor([[1, 1, 0, 1]])
    ids = corpus.train.ids
    assert training._name_documents(corpus, Batch(few, few, few)) == (
        f"documents {ids[0]}, {ids[1]}"
    )


def test_a_tracker_sees_every_step(config: LanguageRun, begin, monkeypatch):
    logged: list[tuple[int, float]] = []
    monkeypatch.setattr(prepare, "check_tracker", lambda _: None)

    class Stand(training.Callback):
        def __init__(self, tracker: str, run: Path, settings: object, warn: object) -> None:
            assert tracker == "wandb"
            assert json.dumps(settings)

        def after_step(self, progress: training.Progress) -> None:
            logged.append((progress.step, progress.metrics["train/loss"]))

    monkeypatch.setattr(training, "Track", Stand)
    run, prepared = begin(replace(config, track="wandb"))
    train_language(run, prepared, name="test", say=print)
    assert logged == [(int(m["step"]), m["train/loss"]) for m in read_metrics(run)]


def test_a_student_learns_from_a_run(config: LanguageRun, begin):
    run, prepared = begin(config)
    train_language(run, prepared, name="test", say=print)
    student = replace(config, distil=DistilConfig(teacher=str(run), alpha=0.5))
    taught, prepared = begin(student, "taught")
    train_language(taught, prepared, name="test", say=print)
    for line in read_metrics(taught):
        parts = [line[f"train/{name}"] for name in ("kl", "ce", "balance", "router_z")]
        # Sums of a few float32 numbers.
        assert line["train/loss"] == pytest.approx(sum(parts), rel=1e-6)


def test_metrics_that_lost_their_end_are_not_filled_up(config: LanguageRun, begin):
    run, prepared = begin(config)
    train_language(run, prepared, name="test", say=print)
    metrics = run / "metrics.jsonl"
    kept = metrics.read_bytes()[:-10]
    metrics.write_bytes(kept)
    longer = replace(prepared, config=replace(prepared.config, steps=5))
    train_language(run, longer, name="test", say=print)
    assert b"\0" not in metrics.read_bytes()
    # The half line of step 4 is gone; those before and behind it are whole.
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 5]


def test_an_old_run_stays_until_the_new_one_has_a_model(config: LanguageRun, begin, monkeypatch):
    run, prepared = begin(config)
    (run / "old").touch()

    def make_folder() -> None:
        create_run(run, prepared.config, recipe="new", command=[], overwrite=True)

    def no_memory(*_: object) -> None:
        raise RuntimeError("not enough memory")

    with monkeypatch.context() as patch:
        patch.setattr(training, "build_optimizer", no_memory)
        with pytest.raises(RuntimeError, match="memory"):
            train_language(run, prepared, name="test", say=print, make_folder=make_folder)
    assert (run / "old").exists()
    assert read_run(run)[1]["recipe"] == "test"
    train_language(run, prepared, name="test", say=print, make_folder=make_folder)
    assert not (run / "old").exists()
    assert read_run(run)[1]["recipe"] == "new"
    assert len(list_checkpoints(run)) == 2


@pytest.mark.parametrize("place", ["tokenizer", "run.json", "log.jsonl", "metrics.jsonl"])
def test_a_disk_that_fills_up_anywhere_is_told_with_the_way_on(
    config: LanguageRun, begin, monkeypatch, place: str
):
    run, prepared = begin(config)
    if place == "run.json":  # written again where the plan has changed
        prepared = replace(prepared, config=replace(prepared.config, steps=5))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner, name = {
        "tokenizer": (TextTokenizer, "save"),
        "run.json": (training, "write_run"),
        "log.jsonl": (training, "log_event"),
        "metrics.jsonl": (training.MetricsFile, "after_step"),
    }[place]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(CheckpointError) as caught:
            train_language(run, prepared, name="test", say=print)
    assert str(caught.value) == (
        f"{run}: could not be written (No space left on device); the checkpoints are intact: free "
        f"some space, then run: pellucid resume {run}"
    )
    # With space again the same folder goes on to the end.
    train_language(run, prepared, name="test", say=print)
    assert read_metrics(run)[-1]["step"] == prepared.config.steps


class StopAtTheEnd(training.Callback):
    """Asks for a stop while the last step's callbacks run."""

    def after_step(self, progress: Progress) -> None:
        if progress.step == progress.steps:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_asked_for_in_the_last_step_is_reported(config: LanguageRun, begin, monkeypatch):
    callbacks = training._callbacks
    run, prepared = begin(config)
    assert not train_language(run, prepared, name="test", say=print).stopping
    run, prepared = begin(config, "stopped")
    monkeypatch.setattr(training, "_callbacks", lambda *args: [*callbacks(*args), StopAtTheEnd()])
    progress = train_language(run, prepared, name="test", say=print)
    assert progress.step == progress.steps
    assert progress.stopping


def test_the_bar_is_closed_before_a_fault_is_told(config: LanguageRun, begin, monkeypatch):
    told: list[str] = []

    class Bar(training.ProgressLine):
        def close(self) -> None:
            told.append("closed")

    monkeypatch.setattr(training, "ProgressLine", Bar)
    run, prepared = begin(config)
    train_language(run, prepared, name="test", say=print)
    assert told == ["closed"]
    wild = replace(config, steps=50, optim=replace(config.optim, lr=1e30))
    run, prepared = begin(wild, "wild")
    try:
        train_language(run, prepared, name="test", say=print)
    except TrainingError:
        told.append("error")
    assert told == ["closed", "closed", "error"]


def test_units_are_counted_within_documents_where_the_model_keeps_to_them(
    config: LanguageRun, begin, monkeypatch
):
    """A host is not told where documents end: each gets a row of its own."""
    seen: list[object] = []
    count = training.live_share

    def watch(host: object, pools: object, batches: object, *args: object, **more: object) -> float:
        seen.append(batches)
        return count(host, pools, batches, *args, **more)

    monkeypatch.setattr(training, "live_share", watch)
    for mask in (False, True):
        data = replace(config.data, mask_documents=mask)
        run, prepared = begin(replace(config, data=data, evaluate_tokens=200), f"mask-{mask}")
        train_language(run, prepared, name="test", say=print)
        assert seen.pop() is seen.pop() is prepared.alone
        rows = [set(row.tolist()) - {PADDING} for b in prepared.alone for row in b.document]
        assert (max(map(len, rows)) == 1) == mask
        assert (prepared.alone is prepared.validation) == (not mask)
