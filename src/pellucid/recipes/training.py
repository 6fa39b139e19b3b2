"""Put a language model's run together and train it: from a config, or from a checkpoint."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pellucid.core.config import to_dict
from pellucid.core.errors import ConfigError, RunError
from pellucid.core.host import Host
from pellucid.data.packing import Batch, Corpus, TrainOrder, evaluation_batches, prepare, reopen
from pellucid.data.tokenizer import load_tokenizer
from pellucid.models.hf_files import export_pretrained
from pellucid.models.transformer import Transformer
from pellucid.recipes.folder import log_event, read_run, write_run
from pellucid.recipes.language import LanguageRun
from pellucid.recipes.live import live_share
from pellucid.recipes.load import load_teacher
from pellucid.train.callbacks import Checkpoints, Evaluate, MetricsFile, ProgressLine
from pellucid.train.checkpoint import (
    Checkpoint,
    go_back,
    list_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    read_state,
    restore,
    save_checkpoint,
    sync,
    weights,
)
from pellucid.train.evaluate import evaluate
from pellucid.train.language import Distillation, Forward, LanguageModelling
from pellucid.train.loop import Callback, Loop, Progress
from pellucid.train.optim import build_optimizer, param_groups
from pellucid.train.stop import StopOnSignal
from pellucid.train.track import Track, check_tracker

# Named in an error message: enough to find the culprit, few enough to read.
DOCUMENTS_NAMED = 8

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a run needs before it has a folder: corpus, data order, and the teacher if any."""

    config: LanguageRun
    corpus: Corpus
    order: TrainOrder
    validation: Sequence[Batch]
    teacher: Host | None


def prepare_run(
    config: LanguageRun,
    progress: Callable[[str, int, int], None],
    *,
    resume: Path | None = None,
    checkpoint: str | None = None,
) -> Prepared:
    """Read, tokenise and check the data; nothing is written outside the cache folder.

    The vocabulary of a loaded tokenizer replaces the preset's. Whatever the machine or the teacher
    cannot do is an error here, before a run folder is made or replaced. A run that is resumed,
    from ``checkpoint`` or its newest, finds its tokens in the cache again, whatever has become of
    their source.
    """
    device = pick_device(config.device)
    if config.track is not None:
        check_tracker(config.track)
    corpus = None if resume is None else _trained_on(resume, checkpoint)
    if corpus is None:
        corpus = prepare(
            config.data, vocab_size=config.model.vocab_size, cache=cache_folder(), progress=progress
        )
    vocab = corpus.tokenizer.vocab_size
    if config.data.tokenizer == "train":
        vocab = max(vocab, config.model.vocab_size)
    config = _with_vocab(config, vocab)
    context = config.model.context
    order = TrainOrder(corpus.train, context=context, batch_size=config.batch, seed=config.seed)
    batches = evaluation_batches(
        corpus.validation,
        context=context,
        batch_size=config.batch,
        tokens_per_domain=config.evaluate_tokens,
    )
    return Prepared(
        config=config,
        corpus=corpus,
        order=order,
        validation=list(batches),
        teacher=_teacher(config, device),
    )


def train_language(
    run: Path, prepared: Prepared, *, name: str, say: Say, checkpoint: str | None = None
) -> Progress:
    """Train from the first step, or from the newest checkpoint if the folder has one.

    With ``checkpoint`` the run goes back to that one, and later ones are removed. Stops early,
    after a checkpoint, on SIGINT and SIGTERM.
    """
    config = prepared.config
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    model = Transformer(config.model).to(device)
    optimizer = build_optimizer(
        param_groups(model, model.unit_tables(), config.optim), config.optim
    )
    start = 0
    if list_checkpoints(run):
        start = _resume(run, model, optimizer, prepared, checkpoint)
    else:
        prepared.corpus.tokenizer.save(run)
        (run / "metrics.jsonl").unlink(missing_ok=True)
    stored, record = read_run(run)
    if stored != config:
        write_run(run, config, recipe=record["recipe"], command=record["command"])
    loop = _loop(prepared, model, optimizer, device)
    save = partial(_save, run, prepared, model, optimizer)
    if start == config.steps:
        export_pretrained(model, run, tokens_end=prepared.corpus.tokenizer.end_of_text)
        return Progress(step=start, steps=config.steps, tokens=start * config.tokens_per_step)
    callbacks = _callbacks(run, prepared, model, device, save, say, name, start)
    log_event(run, "start", {"step": start, "steps": config.steps, "device": device})
    with StopOnSignal() as stop:
        progress = loop.run(start, callbacks, stop.asked)
    log_event(run, "stop", {"step": progress.step, "early": progress.step < config.steps})
    return progress


def pick_device(device: str) -> str:
    """``auto`` is CUDA where there is one, else the CPU; what is not there is an error."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device: {device} is not available here; use cpu or auto")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected auto, cpu or cuda, found {device!r}")
    return device


def cache_folder() -> Path:
    """$PELLUCID_CACHE, or ``pellucid`` in the user's cache folder."""
    if "PELLUCID_CACHE" in os.environ:
        return Path(os.environ["PELLUCID_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pellucid"


def _trained_on(run: Path, checkpoint: str | None) -> Corpus | None:
    """The tokenised text behind a run's checkpoint, where the cache still holds it."""
    if not list_checkpoints(run):
        return None
    return reopen(cache_folder(), read_state(run, checkpoint)["corpus"], load_tokenizer(run))


def _with_vocab(config: LanguageRun, vocab: int) -> LanguageRun:
    return replace(config, model=replace(config.model, vocab_size=vocab))


def _teacher(config: LanguageRun, device: str) -> Host | None:
    if config.distil.teacher is None:
        return None
    teacher = load_teacher(config.distil.teacher, device)
    one_token = torch.zeros(1, 1, dtype=torch.long, device=device)
    vocab = teacher.run(one_token).logits.shape[-1]
    if vocab != config.model.vocab_size:
        raise ConfigError(
            f"distil.teacher {config.distil.teacher!r}: expected logits over "
            f"{config.model.vocab_size} tokens, found {vocab}; give its tokenizer as data.tokenizer"
        )
    return teacher


def _loop(
    prepared: Prepared, model: Transformer, optimizer: torch.optim.Optimizer, device: str
) -> Loop[Batch]:
    config = prepared.config
    forward: Forward = model.forward_with_parts
    if config.compile:
        forward = torch.compile(forward)
    objective = LanguageModelling(
        forward=forward,
        groups=param_groups(model, model.unit_tables(), config.optim),
        after=model.after_step,
        mask_documents=config.data.mask_documents,
    )
    if prepared.teacher is not None:
        objective = Distillation(
            student=objective,
            teacher=prepared.teacher,
            alpha=config.distil.alpha,
            temperature=config.distil.temperature,
        )

    def batches(step: int) -> list[Batch]:
        first = step * config.accumulate
        return [
            _move(prepared.order.batch(first + micro), device) for micro in range(config.accumulate)
        ]

    return Loop(
        objective=objective,
        optimizer=optimizer,
        batches=batches,
        name_batch=partial(_name_documents, prepared.corpus),
        tokens_per_step=config.tokens_per_step,
        steps=config.steps,
        optim=config.optim,
        schedule=config.schedule,
        precision=config.precision,
        device=device.partition(":")[0],
    )


def _move(batch: Batch, device: str) -> Batch:
    return Batch(batch.tokens.to(device), batch.targets.to(device), batch.document.to(device))


def _callbacks(
    run: Path,
    prepared: Prepared,
    model: Transformer,
    device: str,
    save: Callable[[int], None],
    say: Say,
    name: str,
    start: int,
) -> list[Callback]:
    config = prepared.config
    figures = partial(_figures, prepared, model, device)
    callbacks: list[Callback] = [
        Evaluate(figures=figures, every=config.evaluate_every),
        MetricsFile(path=run / "metrics.jsonl", every=config.log_every),
        Checkpoints(save=save, every=config.checkpoint_every),
        ProgressLine(name, config.steps, start),
    ]
    if config.track is not None:
        callbacks.append(Track(config.track, run, to_dict(config), say))
    return callbacks


def _figures(prepared: Prepared, model: Transformer, device: str) -> Mapping[str, float]:
    """Bits per byte, pooled and per domain, and the share of live units, on validation text."""
    config, corpus = prepared.config, prepared.corpus
    model.eval()

    def forward(tokens: Tensor, documents: Tensor | None) -> Tensor:
        kind = device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=config.precision == "bf16"):
            return model(tokens, documents)

    result = evaluate(
        forward,
        prepared.validation,
        corpus.validation,
        corpus.domains,
        mask_documents=config.data.mask_documents,
        device=device,
    )
    live = live_share(model, model.pools(), prepared.validation, device)
    model.train()
    return {
        "val/bits_per_byte": result.bits_per_byte,
        **{f"val/bits_per_byte/{name}": value for name, value in result.by_domain.items()},
        "val/live_units": live,
    }


def _save(
    run: Path,
    prepared: Prepared,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        sync(metrics)
    checkpoint = Checkpoint(
        model=weights(model),
        optimizer=optimizer_tensors(model, optimizer),
        state={
            "tokens": step * prepared.config.tokens_per_step,
            "corpus": prepared.corpus.identity,
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        },
    )
    save_checkpoint(run, step, checkpoint, keep=prepared.config.keep_checkpoints)
    export_pretrained(model, run, tokens_end=prepared.corpus.tokenizer.end_of_text)


def _resume(
    run: Path,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    prepared: Prepared,
    name: str | None,
) -> int:
    checkpoint = load_checkpoint(run, name)
    state = checkpoint.state
    if state["corpus"] != prepared.corpus.identity:
        raise RunError(
            f"{run}: the text in {prepared.config.data.source} is no longer what this run was "
            "trained on; bring it back, or start a new run"
        )
    restore(model, optimizer, checkpoint)
    # Nothing is changed on disk until here, where it is known that the run can go on.
    if name is not None:
        go_back(run, name)
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        # Lines written after the checkpoint belong to steps that will be repeated.
        os.truncate(metrics, state["metrics_bytes"])
    return int(state["step"])


def _name_documents(corpus: Corpus, batch: Batch) -> str:
    found: list[int] = batch.document.unique().tolist()
    named = ", ".join(corpus.train.ids[index] for index in found[:DOCUMENTS_NAMED])
    more = f" and {len(found) - DOCUMENTS_NAMED} more" if len(found) > DOCUMENTS_NAMED else ""
    return f"documents {named}{more}"
