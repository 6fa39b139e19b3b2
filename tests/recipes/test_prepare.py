"""What a run needs before it has a folder: devices, caches, text, and what is refused."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pellucid.core.errors import ConfigError, DataError, MissingExtra
from pellucid.recipes import prepare
from pellucid.recipes.folder import create_run
from pellucid.recipes.language import DistilConfig, LanguageRun
from pellucid.recipes.prepare import cache_folder, pick_device, prepare_run, touch
from pellucid.recipes.training import train_language


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to hear of."""


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
    monkeypatch.setattr(prepare, "prepare", lambda *_, **__: pytest.fail("read the data"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="--track trackio needs the package trackio"):
        prepare_run(replace(config, track="trackio"), quiet)
    with pytest.raises(ConfigError, match="device: expected auto, cpu or cuda, found 'abacus'"):
        prepare_run(replace(config, device="abacus"), quiet)


def test_a_context_longer_than_the_corpus(config: LanguageRun):
    long = replace(config, model=replace(config.model, context=10_000))
    with pytest.raises(DataError, match="context = 10000 is longer than the corpus"):
        prepare_run(long, quiet)


def test_a_device_that_is_not_there_shows_before_the_data_is_read(config: LanguageRun, monkeypatch):
    """The number of a device is known only once something is put on it."""
    touch("cpu")
    monkeypatch.setattr(prepare, "prepare", lambda *_, **__: pytest.fail("read the data"))
    with pytest.raises(ConfigError) as caught:
        prepare_run(replace(config, device="cpu:x"), quiet)
    text = str(caught.value)
    assert text.startswith("device: cpu:x cannot be used: Invalid device string: 'cpu:x'")
    assert text.endswith("; use cpu or auto")
    assert "\n" not in text


@pytest.fixture
def run(config: LanguageRun, tmp_path: Path) -> Path:
    """A finished run of four steps."""
    prepared = prepare_run(config, quiet)
    path = tmp_path / "run"
    create_run(path, prepared.config, recipe="test", command=[], overwrite=False)
    train_language(path, prepared, name="test", say=print)
    return path


def test_a_resumed_run_reads_with_the_tokenizer_it_saved(
    config: LanguageRun, run: Path, tmp_path: Path, monkeypatch
):
    """Neither the cache nor the file that the tokenizer once came from is there any more."""
    shutil.copytree(run, tmp_path / "tokenizer")
    named = replace(config, data=replace(config.data, tokenizer=str(tmp_path / "tokenizer")))
    before = prepare_run(named, quiet)
    shutil.rmtree(tmp_path / "tokenizer")
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "another cache"))
    with pytest.raises(DataError, match="no such tokenizer"):
        prepare_run(named, quiet)
    assert prepare_run(named, quiet, resume=run).corpus.identity == before.corpus.identity


def test_a_teacher_must_know_the_tokenizer_and_the_vocabulary(
    config: LanguageRun, run: Path, tmp_path: Path
):
    student = replace(config, distil=DistilConfig(teacher=str(run)))
    assert prepare_run(student, quiet).teacher is not None
    # Another vocabulary is another tokenizer, trained on the same text.
    other = replace(student, model=replace(student.model, vocab_size=262))
    with pytest.raises(ConfigError, match="was trained with another tokenizer than data"):
        prepare_run(other, quiet)
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(
        tmp_path / "gpt2"
    )
    narrow = replace(student, distil=DistilConfig(teacher=str(tmp_path / "gpt2")))
    vocab = config.model.vocab_size
    with pytest.raises(ConfigError, match=f"expected logits over {vocab} tokens, found 50"):
        prepare_run(narrow, quiet)


def test_only_a_run_teaches_within_documents(config: LanguageRun, tmp_path: Path):
    masked = replace(
        config,
        data=replace(config.data, mask_documents=True),
        distil=DistilConfig(teacher=str(tmp_path)),
    )
    with pytest.raises(ConfigError, match="cannot keep attention within a document"):
        prepare_run(masked, quiet)
