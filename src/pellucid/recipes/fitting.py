"""Fit many dictionaries in one pass over the activations, and score them.

Every dictionary has its own optimiser, checkpoints and metrics; all of them take a step on the same
rows before the next rows are read, so that comparisons are paired. A run that is killed goes on
with each dictionary where its own newest checkpoint stands.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from pellucid.core.errors import PellucidError
from pellucid.core.host import Host
from pellucid.core.unit import Site
from pellucid.data.activations import ActivationCache, ActivationSource, ActivationStream, Rows
from pellucid.data.disk import sync
from pellucid.dictionaries import Coder, settle
from pellucid.dictionaries.certificate import certificate_figures
from pellucid.recipes.dictionary import Fit, FitRun
from pellucid.recipes.fit_folder import DictionaryRecord, read_record, with_figures, write_record
from pellucid.recipes.fit_loop import fit_loop, fit_optimizer
from pellucid.recipes.folder import cut_metrics
from pellucid.recipes.harvesting import held_out_rows, text_of
from pellucid.recipes.host import OpenHost, open_host
from pellucid.recipes.prepare import pick_device
from pellucid.train.callbacks import Checkpoints, Evaluate, MetricsFile, ProgressLine
from pellucid.train.checkpoint import (
    Checkpoint,
    explaining_full_disk,
    list_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore,
    save_checkpoint,
    weights,
)
from pellucid.train.held_out import held_out_figures, redundancy_figures
from pellucid.train.loop import Callback, Loop, Progress
from pellucid.train.splice import splice_losses
from pellucid.train.stop import StopOnSignal

Report = Callable[[str, int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFit:
    """A run's activations, and the model behind them if it is loaded already."""

    config: FitRun
    source: ActivationSource
    opened: OpenHost | None


def prepare_fit(config: FitRun, report: Report, *, opened: OpenHost | None = None) -> PreparedFit:
    """Open the cache, or the model to stream from; whatever cannot be fitted is an error here."""
    device = pick_device(config.device)
    if config.harvest is None:
        source: ActivationSource = ActivationCache.open(Path(config.source))
    else:
        assert config.data is not None
        opened = opened or open_host(config.source, device=device)
        corpus = text_of(config.data, opened, report)
        rows = min(config.harvest.validation_tokens, held_out_rows(corpus))
        config = replace(config, harvest=replace(config.harvest, validation_tokens=rows))
        assert config.harvest is not None
        source = ActivationStream(
            opened.host, corpus, config.harvest, model=opened.identity, device=device
        )
    source.expect(sites=config.sites)
    for fit in config.fits:
        _record(fit, config, source).build()
    return PreparedFit(config=config, source=source, opened=opened)


def fit_dictionaries(run: Path, prepared: PreparedFit, *, say: Say) -> bool:
    """Fit from the start, or from each dictionary's newest checkpoint; whether all are finished.

    SIGINT and SIGTERM stop it after a checkpoint.
    """
    config = prepared.config
    shared = _SharedRows(prepared.source, config)
    with explaining_full_disk(run):
        fits = [_Fitting.start(run / fit.name, fit, prepared, shared) for fit in config.fits]
        shared.forget_first()
        try:
            _take_turns(fits)
        finally:
            for fit in fits:
                fit.line.close()
        if any(fit.progress.step < config.steps for fit in fits):
            return False
        _finish(prepared, fits, say)
    return True


def _take_turns(fits: "list[_Fitting]") -> None:
    """One step each on the same rows, those that lie behind first, until all are at their end."""
    with StopOnSignal() as stop:
        while going := [fit for fit in fits if not fit.progress.last]:
            step = min(fit.progress.step for fit in going)
            for fit in going:
                if fit.progress.step == step:
                    fit.advance(stop.asked)


class _SharedRows:
    """The rows of one step, read once for all dictionaries."""

    def __init__(self, source: ActivationSource, config: FitRun) -> None:
        self._source, self._config = source, config
        self._device = pick_device(config.device)
        self._step, self._rows = -1, None
        self._first: dict[Site, Tensor] | None = None

    def __call__(self, step: int) -> list[Rows]:
        if step != self._step or self._rows is None:
            config = self._config
            rows = self._source.batch(step, config.batch, seed=config.seed, sites=config.sites)
            x = {site: tensor.to(self._device).float() for site, tensor in rows.x.items()}
            self._step, self._rows = step, replace(rows, x=x)
        return [self._rows]

    def first(self) -> dict[Site, Tensor]:
        """Rows of the first steps at every site, to measure scales on; gathered once for all."""
        if self._first is None:
            config = self._config
            steps = max(1, min(config.settle_rows, self._source.rows) // config.batch)
            parts = [self(step)[0] for step in range(steps)]
            self._first = {s: torch.cat([part.x[s] for part in parts]) for s in config.sites}
        return self._first

    def forget_first(self) -> None:
        """Give the memory of those rows back, when every dictionary has begun."""
        self._first = None


@dataclass
class _Fitting:
    """One dictionary on its way."""

    folder: Path
    coder: Coder
    loop: Loop[Rows]
    callbacks: list[Callback]
    line: ProgressLine
    progress: Progress

    @classmethod
    def start(
        cls, folder: Path, fit: Fit, prepared: PreparedFit, shared: _SharedRows
    ) -> "_Fitting":
        config, device = prepared.config, pick_device(prepared.config.device)
        coder = _record(fit, config, prepared.source).build().to(device)
        optimizer = fit_optimizer(coder, fit, config)
        begun = 0
        if list_checkpoints(folder):
            prepared.source.expect(model=read_record(folder).model)
            begun = _resume(folder, coder, optimizer)
        else:
            rows = shared.first()
            settle(coder, rows[coder.spec.reads], rows[coder.spec.writes])
            write_record(folder, _record(fit, config, prepared.source))
            (folder / "metrics.jsonl").unlink(missing_ok=True)
        loop = fit_loop(coder, optimizer, fit, config, shared, device)
        figures = partial(_figures, coder, prepared, config.evaluate_rows, device)
        line = ProgressLine(fit.name, config.steps, begun)
        callbacks: list[Callback] = [
            Evaluate(figures=figures, every=config.evaluate_every),
            MetricsFile(path=folder / "metrics.jsonl", every=config.log_every),
            Checkpoints(
                save=partial(_save, folder, coder, optimizer, config), every=config.checkpoint_every
            ),
            line,
        ]
        return cls(folder, coder, loop, callbacks, line, loop.start(begun))

    def advance(self, stop: Callable[[], bool]) -> None:
        self.progress = self.loop.advance(self.progress, self.callbacks, stop)


def _record(fit: Fit, config: FitRun, source: ActivationSource) -> DictionaryRecord:
    widths = source.widths
    return DictionaryRecord(
        name=fit.name,
        reads=fit.reads,
        writes=fit.writes,
        d_in=widths[Site.parse(fit.reads)],
        d_out=widths[Site.parse(fit.writes)],
        seed=config.seed,
        coder=fit.coder,
        model=dict(source.origin.model),
    )


def _held_out(prepared: PreparedFit, coder: Coder, rows: int | None) -> Iterator[Rows]:
    sites = tuple(dict.fromkeys((coder.spec.reads, coder.spec.writes)))
    size = min(prepared.config.batch, rows or prepared.config.batch)
    batches = prepared.source.validation(size, sites=sites)
    return batches if rows is None else islice(batches, -(-rows // size))


def _figures(
    coder: Coder, prepared: PreparedFit, rows: int | None, device: str
) -> Mapping[str, float]:
    """Held-out figures by name; ``dead`` is over the training window, ``silent`` over the rows."""
    found = held_out_figures(coder, _held_out(prepared, coder, rows), device)
    twins = redundancy_figures(coder, found.fires, signed=coder.is_signed)
    figures = {**found.figures(), **twins, **_routing(coder, found.fires)}
    figures["silent"] = figures.pop("dead")
    figures["dead"] = coder.dead().double().mean().item()
    return {f"val/{name}": value for name, value in figures.items()}


def _routing(coder: Coder, fires: Tensor) -> dict[str, float]:
    """How evenly latents of the experts fire, and the share of dead latents in the worst expert."""
    name, experts = coder.spec.axes[0]
    if name != "expert":
        return {}
    by_expert = fires.view(experts, -1).double()
    load = by_expert.sum(1) / by_expert.sum().clamp_min(1)
    return {
        "load_max_over_mean": (load.max() * experts).item(),
        "load_entropy": -torch.special.xlogy(load, load).sum().item(),
        "dead_in_worst_expert": (by_expert == 0).double().mean(1).max().item(),
    }


def _save(
    folder: Path, coder: Coder, optimizer: torch.optim.Optimizer, config: FitRun, step: int
) -> None:
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        sync(metrics)
    checkpoint = Checkpoint(
        model=weights(coder),
        optimizer=optimizer_tensors(coder, optimizer),
        state={"metrics_bytes": metrics.stat().st_size if metrics.exists() else 0},
    )
    save_checkpoint(folder, step, checkpoint, keep=config.keep_checkpoints)


def _resume(folder: Path, coder: Coder, optimizer: torch.optim.Optimizer) -> int:
    checkpoint = load_checkpoint(folder)
    restore(coder, optimizer, checkpoint)
    # Lines written after the checkpoint belong to steps that will be repeated.
    cut_metrics(folder, checkpoint.state["metrics_bytes"])
    return int(checkpoint.state["step"])


def _finish(prepared: PreparedFit, fits: list[_Fitting], say: Say) -> None:
    """Score every dictionary on all held-out rows and, where the model is there, in the model."""
    device = pick_device(prepared.config.device)
    host, reason = _host(prepared, device)
    if host is None:
        say(f"cross-entropy recovered is not measured: {reason}")
    for fit in fits:
        coder = fit.coder.eval()
        figures = dict(_figures(coder, prepared, None, device))
        found = {name.removeprefix("val/"): value for name, value in figures.items()}
        found |= certificate_figures(fit.coder)
        missing: dict[str, str] = {}
        if host is None:
            missing["ce_recovered"] = reason
        else:
            losses = splice_losses(
                host,
                coder,
                prepared.source.heldout(),
                windows=prepared.config.splice_windows,
                device=device,
            )
            found |= losses.figures()
            if losses.recovered is None:
                missing["ce_recovered"] = "zeroing this site costs less than .01 nat"
        write_record(fit.folder, with_figures(read_record(fit.folder), found, missing))


def _host(prepared: PreparedFit, device: str) -> tuple[Host | None, str]:
    """The model behind the activations, or why it is not there."""
    if prepared.opened is not None:
        return prepared.opened.host, ""
    model = prepared.source.origin.model
    try:
        opened = open_host(model["name"], device=device)
    except (PellucidError, KeyError) as error:
        return None, f"the model cannot be opened: {error}"
    if opened.identity["weights"] != model.get("weights"):
        return None, f"{model['name']} no longer has the weights that were harvested"
    return opened.host, ""
