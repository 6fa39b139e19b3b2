"""Put a language model's run together and train it: from a config, or from a checkpoint."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pellucid.core.config import to_dict
from pellucid.core.errors import RunError
from pellucid.data.disk import sync
from pellucid.data.packing import Batch, Corpus
from pellucid.models.hf_files import export_pretrained
from pellucid.models.transformer import Transformer
from pellucid.recipes.folder import cut_metrics, log_event, read_run, write_run
from pellucid.recipes.live import live_share
from pellucid.recipes.prepare import Prepared, cache_folder, pick_device, prepare_run
from pellucid.train.callbacks import Checkpoints, Evaluate, MetricsFile, ProgressLine
from pellucid.train.checkpoint import (
    Checkpoint,
    explaining_full_disk,
    go_back,
    list_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore,
    save_checkpoint,
    weights,
)
from pellucid.train.evaluate import evaluate
from pellucid.train.language import Distillation, Forward, LanguageModelling
from pellucid.train.loop import Callback, Loop, Progress
from pellucid.train.objective import Objective
from pellucid.train.optim import build_optimizer, param_groups
from pellucid.train.stop import StopOnSignal
from pellucid.train.track import Track

__all__ = ["Prepared", "Say", "cache_folder", "pick_device", "prepare_run", "train_language"]

# Named in an error message: enough to find the culprit, few enough to read.
DOCUMENTS_NAMED = 8

Say = Callable[[str], None]


def train_language(
    run: Path,
    prepared: Prepared,
    *,
    name: str,
    say: Say,
    checkpoint: str | None = None,
    make_folder: Callable[[], None] | None = None,
) -> Progress:
    """Train from the first step, or from the newest checkpoint if the folder has one.

    With ``checkpoint`` the run goes back to that one, and later ones are removed. ``make_folder``
    is called once there is a model: a run that it replaces survives one that cannot be built.
    Stops early, after a checkpoint, on SIGINT and SIGTERM; ``stopping`` says whether that was
    asked, be it in the last step. Errors: a ``CheckpointError`` for a full disk.
    """
    config = prepared.config
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    model = Transformer(config.model).to(device)
    objective = _objective(prepared, model)
    optimizer = build_optimizer(objective.param_groups(), config.optim)
    if make_folder is not None:
        make_folder()
    with explaining_full_disk(run):
        start = _begin(run, prepared, model, optimizer, checkpoint)
        if start >= config.steps:
            export_pretrained(model, run, tokens_end=prepared.corpus.tokenizer.end_of_text)
            return Progress(step=start, steps=config.steps, tokens=start * config.tokens_per_step)
        loop = _loop(prepared, objective, optimizer, device)
        line = ProgressLine(name, config.steps, start)
        callbacks = _callbacks(run, prepared, model, optimizer, device, line, say)
        log_event(run, "start", {"step": start, "steps": config.steps, "device": device})
        try:
            with StopOnSignal() as stop:
                progress = loop.run(start, callbacks, stop.asked)
        finally:
            line.close()
        progress.stopping = stop.asked()
        log_event(run, "stop", {"step": progress.step, "early": progress.step < config.steps})
    return progress


def _begin(
    run: Path,
    prepared: Prepared,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    checkpoint: str | None,
) -> int:
    """The step to go on from, and what the folder must hold before it is taken."""
    start = 0
    if list_checkpoints(run):
        start = _resume(run, model, optimizer, prepared, checkpoint)
    else:
        prepared.corpus.tokenizer.save(run)
        (run / "metrics.jsonl").unlink(missing_ok=True)
    stored, record = read_run(run)
    if stored != prepared.config:
        write_run(run, prepared.config, recipe=record["recipe"], command=record["command"])
    return start


def _objective(prepared: Prepared, model: Transformer) -> Objective[Batch]:
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
    if prepared.teacher is None:
        return objective
    return Distillation(
        student=objective,
        teacher=prepared.teacher,
        alpha=config.distil.alpha,
        temperature=config.distil.temperature,
    )


def _loop(
    prepared: Prepared,
    objective: Objective[Batch],
    optimizer: torch.optim.Optimizer,
    device: str,
) -> Loop[Batch]:
    config = prepared.config

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
    optimizer: torch.optim.Optimizer,
    device: str,
    line: ProgressLine,
    say: Say,
) -> list[Callback]:
    config = prepared.config
    callbacks: list[Callback] = [
        Evaluate(figures=partial(_figures, prepared, model, device), every=config.evaluate_every),
        MetricsFile(path=run / "metrics.jsonl", every=config.log_every),
        Checkpoints(
            save=partial(_save, run, prepared, model, optimizer), every=config.checkpoint_every
        ),
        line,
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
    live = live_share(
        model,
        model.pools(),
        prepared.alone,
        device,
        end_of_text=corpus.tokenizer.end_of_text,
    )
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
    # Lines written after the checkpoint belong to steps that will be repeated.
    cut_metrics(run, state["metrics_bytes"])
    return int(state["step"])


def _name_documents(corpus: Corpus, batch: Batch) -> str:
    found: list[int] = batch.document.unique().tolist()
    named = ", ".join(corpus.train.ids[index] for index in found[:DOCUMENTS_NAMED])
    more = f" and {len(found) - DOCUMENTS_NAMED} more" if len(found) > DOCUMENTS_NAMED else ""
    return f"documents {named}{more}"
