"""What a language model's run needs before it has a folder, and whether this machine can do it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from pellucid.core.errors import ConfigError
from pellucid.data.packing import Batch, Corpus, TrainOrder, evaluation_batches, prepare, reopen
from pellucid.data.text import one_line
from pellucid.data.tokenizer import load_tokenizer
from pellucid.recipes.language import LanguageRun
from pellucid.recipes.teacher import check_vocabulary, load_teacher
from pellucid.train.checkpoint import list_checkpoints, read_state
from pellucid.train.language import Teacher
from pellucid.train.track import check_tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Corpus, data order, evaluation batches, and the teacher if any.

    ``validation`` is scored. On ``alone`` units are counted: a document a row where the model keeps
    to one document, since a host is not told where they end, else the same batches.
    """

    config: LanguageRun
    corpus: Corpus
    order: TrainOrder
    validation: Sequence[Batch]
    alone: Sequence[Batch]
    teacher: Teacher | None


def prepare_run(
    config: LanguageRun,
    progress: Callable[[str, int, int], None],
    *,
    resume: Path | None = None,
    checkpoint: str | None = None,
) -> Prepared:
    """Read, tokenise and check the data; nothing is written outside the cache folder.

    The vocabulary of a loaded tokenizer replaces the preset's. Whatever the device or the teacher
    cannot do is an error here, before a run folder is made or replaced. A run that is resumed,
    from ``checkpoint`` or its newest, finds its tokens in the cache again, whatever has become of
    their source, and reads it with the tokenizer it saved.
    """
    device = pick_device(config.device)
    touch(device)
    if config.track is not None:
        check_tracker(config.track)
    corpus = _corpus(config, progress, resume, checkpoint)
    vocab = corpus.tokenizer.vocab_size
    if config.data.tokenizer == "train":
        vocab = max(vocab, config.model.vocab_size)
    config = replace(config, model=replace(config.model, vocab_size=vocab))
    context = config.model.context
    order = TrainOrder(corpus.train, context=context, batch_size=config.batch, seed=config.seed)
    batches = partial(
        evaluation_batches,
        corpus.validation,
        context=context,
        batch_size=config.batch,
        tokens_per_domain=config.evaluate_tokens,
    )
    validation = list(batches())
    return Prepared(
        config=config,
        corpus=corpus,
        order=order,
        validation=validation,
        alone=list(batches(separate=True)) if config.data.mask_documents else validation,
        teacher=_teacher(config, corpus, device),
    )


def pick_device(device: str) -> str:
    """``auto`` is CUDA where there is one, else the CPU; what is not there is an error."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device: {device} is not available here; use cpu or auto")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected auto, cpu or cuda, found {device!r}")
    return device


def touch(device: str) -> None:
    """Put one number on a device: a number that it does not have is a ``ConfigError``."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        raise ConfigError(
            f"device: {device} cannot be used: {one_line(error)}; use cpu or auto"
        ) from None


def cache_folder() -> Path:
    """$PELLUCID_CACHE, or ``pellucid`` in the user's cache folder."""
    if "PELLUCID_CACHE" in os.environ:
        return Path(os.environ["PELLUCID_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pellucid"


def _corpus(
    config: LanguageRun,
    progress: Callable[[str, int, int], None],
    resume: Path | None,
    checkpoint: str | None,
) -> Corpus:
    tokenizer = None
    if resume is not None and list_checkpoints(resume):
        tokenizer = load_tokenizer(resume)
        trained_on = read_state(resume, checkpoint)["corpus"]
        corpus = reopen(cache_folder(), trained_on, tokenizer)
        if corpus is not None:
            return corpus
    return prepare(
        config.data,
        vocab_size=config.model.vocab_size,
        cache=cache_folder(),
        tokenizer=tokenizer,
        progress=progress,
    )


def _teacher(config: LanguageRun, corpus: Corpus, device: str) -> Teacher | None:
    name = config.distil.teacher
    if name is None:
        return None
    teacher = load_teacher(
        name, device, tokenizer=corpus.tokenizer, mask_documents=config.data.mask_documents
    )
    check_vocabulary(name, teacher, config.model.vocab_size, device)
    return teacher
