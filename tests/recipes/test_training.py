"""A run put together: data, devices, caches, callbacks, and what a resumed run does again."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pellucid.core.errors import ConfigError, DataError, MissingExtra, RunError, TrainingError
from pellucid.data.packing import Batch
from pellucid.recipes import training
from pellucid.recipes.folder import create_run, read_metrics, read_run
from pellucid.recipes.language import DistilConfig, LanguageRun
from pellucid.recipes.load import load_run
from pellucid.recipes.training import (
    Prepared,
    cache_folder,
    pick_device,
    prepare_run,
    train_language,
)
from pellucid.train.checkpoint import list_checkpoints, load_checkpoint


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


def test_preparing_writes_to_the_cache_only(config: LanguageRun, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    heard: list[str] = []
    prepared = prepare_run(config, lambda what, *_: heard.append(what))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert {"training the tokenizer", "tokenising"} <= set(heard)
    assert prepared.corpus.domains == ("even", "odd")
    assert prepared.teacher is None
    heard.clear()
    prepare_run(config, lambda what, *_: heard.append(what))
    assert heard == []


def test_a_small_corpus_does_not_shrink_the_embedding(config: LanguageRun):
    # Eight-letter words give few merges: the tokenizer stays below the vocabulary asked for.
    wide = replace(config, model=replace(config.model, vocab_size=5000))
    prepared = prepare_run(wide, quiet)
    assert prepared.corpus.tokenizer.vocab_size < 5000
    assert prepared.config.model.vocab_size == 5000


def test_a_loaded_tokenizer_decides_the_vocabulary(config: LanguageRun, tmp_path: Path):
    tokenizer = prepare_run(config, quiet).corpus.tokenizer
    tokenizer.save(tmp_path)
    data = replace(config.data, tokenizer=str(tmp_path))
    wide = replace(config, data=data, model=replace(config.model, vocab_size=5000))
    assert prepare_run(wide, quiet).config.model.vocab_size == tokenizer.vocab_size


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
    groups = training.param_groups(model, model.unit_tables(), prepared.config.optim)
    return model, training.build_optimizer(groups, prepared.config.optim)


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


@pytest.mark.parametrize("available", [True, False])
def test_devices(available: bool, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if available else "cpu")
    with pytest.raises(ConfigError, match="device: expected auto, cpu or cuda, found 'tpu'"):
        pick_device("tpu")
    if available:
        assert pick_device("cuda:1") == "cuda:1"
    else:
        with pytest.raises(
            ConfigError, match="device: cuda is not available here; use cpu or auto"
        ):
            pick_device("cuda")


def test_where_the_cache_is(monkeypatch, tmp_path: Path):
    assert cache_folder() == Path(os.environ["PELLUCID_CACHE"])
    monkeypatch.delenv("PELLUCID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pellucid"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "pellucid"


def test_what_the_machine_cannot_do_shows_before_the_data_is_read(config: LanguageRun, monkeypatch):
    monkeypatch.setattr(training, "prepare", lambda *_, **__: pytest.fail("read the data"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="--track trackio needs the package trackio"):
        prepare_run(replace(config, track="trackio"), quiet)
    with pytest.raises(ConfigError, match="device: expected auto, cpu or cuda, found 'abacus'"):
        prepare_run(replace(config, device="abacus"), quiet)


def test_a_context_longer_than_the_corpus(config: LanguageRun):
    long = replace(config, model=replace(config.model, context=10_000))
    with pytest.raises(DataError, match="context = 10000 is longer than the corpus"):
        prepare_run(long, quiet)


def test_a_teacher_is_loaded_and_must_know_the_vocabulary(config: LanguageRun, begin):
    run, prepared = begin(config)
    train_language(run, prepared, name="test", say=print)
    student = replace(config, distil=DistilConfig(teacher=str(run), alpha=0.5))
    taught, prepared = begin(student, "taught")
    train_language(taught, prepared, name="test", say=print)
    for line in read_metrics(taught):
        parts = [line[f"train/{name}"] for name in ("kl", "ce", "balance", "router_z")]
        # Sums of a few float32 numbers.
        assert line["train/loss"] == pytest.approx(sum(parts), rel=1e-6)
    other = replace(student, model=replace(student.model, vocab_size=300))
    message = rf"expected logits over 300 tokens, found {config.model.vocab_size}"
    with pytest.raises(ConfigError, match=message):
        prepare_run(other, quiet)


def test_a_tracker_sees_every_step(config: LanguageRun, begin, monkeypatch):
    logged: list[tuple[int, float]] = []
    monkeypatch.setattr(training, "check_tracker", lambda _: None)

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
