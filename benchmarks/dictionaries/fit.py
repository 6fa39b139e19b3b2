"""One arm: fitted on one thread, kept, and scored with every inference it is asked for.

Rows are a pure function of (source, seed, step), so arms of one source and seed see the same rows
in the same order.
"""

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.dictionaries.arms import LM, Arm, build
from pellucid.core.unit import Site
from pellucid.data.activations import ActivationCache, Rows
from pellucid.data.worlds import named_worlds
from pellucid.dictionaries import Coder, settle
from pellucid.dictionaries.atoms import ExpanderAtoms, ExpanderAtomsConfig
from pellucid.dictionaries.certificate import certificate_figures
from pellucid.dictionaries.cost import dictionary_cost
from pellucid.ops.expander.mask import pruned_mask
from pellucid.recipes.dictionary import Fit, FitRun
from pellucid.recipes.fit_loop import fit_loop, fit_optimizer
from pellucid.recipes.folder import commit, machine
from pellucid.recipes.host import open_host
from pellucid.recipes.worlds import HELD_OUT, READS, score
from pellucid.train.checkpoint import weights
from pellucid.train.held_out import held_out_figures, redundancy_figures
from pellucid.train.splice import splice_losses

CHUNK = 1024
FIGURES = (
    "fvu",
    "ce_recovered",
    "l0",
    "dead_fraction",
    "dense_10",
    "redundancy_70",
    "redundancy_80",
    "redundancy_90",
    "random_redundancy_70",
    "mcc",
    "mcc_chance",
    "mcc_permuted",
    "f1",
    "uniqueness",
    "ce_clean",
    "ce_splice",
    "ce_zero",
    "ce_mean",
    "beta",
    "r_id",
    "r_omp",
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is fitted and scored, and where things are; ``cache`` is of one site of ``model``,
    ``work`` keeps the weights of every fit."""

    model: str
    cache: Path
    work: Path
    steps: int
    batch: int
    settle_rows: int
    score_rows: int
    windows: int


class Source(Protocol):
    """Rows to fit on, and figures of what was fitted to them."""

    site: Site
    width: int

    def rows(self, step: int, seed: int) -> Rows:
        """The rows of one step."""
        ...

    def first(self, seed: int) -> Tensor:
        """Rows to measure scales on."""
        ...

    def figures(self, coder: Coder, seed: int) -> Mapping[str, float]:
        """What a fitted dictionary is worth on rows it was not fitted to."""
        ...


class WorldSource:
    """A world with known features."""

    def __init__(self, name: str, setting: Setting) -> None:
        self._world, self._setting = named_worlds(name)[name].build(), setting
        self.site, self.width = Site.parse(READS), self._world.d

    def rows(self, step: int, seed: int) -> Rows:
        x = self._world.sample(self._setting.batch, seed=seed, step=step).x
        index = torch.arange(len(x))
        return Rows(x={self.site: x}, token=index, document=index, position=index)

    def first(self, seed: int) -> Tensor:
        return self._world.sample(self._setting.settle_rows, seed=seed, step=HELD_OUT - 1).x

    def figures(self, coder: Coder, seed: int) -> Mapping[str, float]:
        found = score(self._world, coder, rows=self._setting.score_rows, seed=seed)
        return {**found, "dead_fraction": found["silent"]}


class ModelSource:
    """The harvested site of a language model."""

    def __init__(self, setting: Setting) -> None:
        self._cache, self._setting = ActivationCache.open(setting.cache, verify=False), setting
        (self.site,) = self._cache.layout.sites
        self.width = self._cache.widths[self.site]

    def rows(self, step: int, seed: int) -> Rows:
        return _as_float(self._cache.batch(step, self._setting.batch, seed=seed))

    def first(self, seed: int) -> Tensor:
        rows = self._cache.batch(0, self._setting.settle_rows, seed=seed)
        return _as_float(rows).x[self.site]

    def figures(self, coder: Coder, seed: int) -> Mapping[str, float]:
        batches = islice(self._cache.validation(CHUNK), -(-self._setting.score_rows // CHUNK))
        found = held_out_figures(coder, map(_as_float, batches))
        twins = redundancy_figures(coder, found.fires, signed=coder.is_signed, seed=seed)
        host = open_host(self._setting.model).host
        losses = splice_losses(host, coder, self._cache.heldout(), windows=self._setting.windows)
        return {**found.figures(), "dead_fraction": found.dead, **twins, **losses.figures()}


def fit_arm(arm: Arm, setting: Setting) -> list[dict[str, Any]]:
    """Fit the arm on one thread, keep its weights, and return its records.

    The peak of memory is the whole process's up to the end of fitting, so a process should fit one
    arm only; ``base_mb`` is what it had taken before the dictionary was built.
    """
    torch.set_num_threads(1)
    source: Source = ModelSource(setting) if arm.source == LM else WorldSource(arm.source, setting)
    first = source.first(arm.seed)
    base = peak_mb()
    coder = build(arm, source.site, source.width)
    settle(coder, first, first)
    if arm.pruned is not None:
        _take_largest(coder, load_file(setting.work / f"{arm.pruned}.safetensors"))
    if arm.frozen is not None:
        part = coder.decoder if arm.frozen == "decoder" else coder.encoder
        assert part is not None
        part.requires_grad_(False)
    del first
    seconds = _train(coder, arm, setting, source)
    measured = {"seconds": seconds, "peak_mb": peak_mb(), "base_mb": base}
    setting.work.mkdir(parents=True, exist_ok=True)
    save_file(weights(coder), setting.work / f"{arm.name}.safetensors")
    coder.eval()
    records: list[dict[str, Any]] = []
    for inference in arm.inferences:
        coder.config = replace(arm.config, inference=inference)
        figures = {**source.figures(coder, arm.seed), **certificate_figures(coder)}
        known = {**_facts(arm, coder, setting), **measured, "inference": inference}
        figured = {name: figures.get(name) for name in FIGURES}
        records += [{**known, "matched_on": matched, **figured} for matched in arm.matched]
    return records


def _train(coder: Coder, arm: Arm, setting: Setting, source: Source) -> float:
    """Seconds that fitting took, reading of rows included."""
    fit = Fit(
        name=arm.dictionary,
        reads=str(source.site),
        writes=str(source.site),
        coder=arm.config,
        lr=arm.lr,
    )
    run = FitRun(
        source=arm.source, fits=(fit,), steps=setting.steps, batch=setting.batch, seed=arm.seed
    )
    optimizer = fit_optimizer(coder, fit, run)
    loop = fit_loop(coder, optimizer, fit, run, lambda step: [source.rows(step, arm.seed)], "cpu")
    began = perf_counter()
    progress = loop.start(0)
    while not progress.last:
        progress = loop.advance(progress, [])
    return perf_counter() - began


@torch.no_grad()
def _take_largest(coder: Coder, dense: Mapping[str, Tensor]) -> None:
    """Start from a fitted dense dictionary: its s largest entries per row, and its biases."""
    assert isinstance(coder.config.atoms, ExpanderAtomsConfig)
    table = dense["decoder.weight"]
    mask = pruned_mask(table, coder.config.atoms.nonzeros)
    decoder = ExpanderAtoms(mask, table.shape[1], stored=True)
    decoder.values.copy_(table.gather(1, mask.index.long()))
    coder.decoder = decoder
    coder.bias.copy_(dense["bias"])
    if coder.gate.bias is not None and "gate.bias" in dense:
        coder.gate.bias.copy_(dense["gate.bias"])


def _facts(arm: Arm, coder: Coder, setting: Setting) -> dict[str, Any]:
    config, cost = coder.config, dictionary_cost(coder)
    router, atoms = config.router, config.atoms
    revision, dirty = commit()
    return {
        "experiment": arm.experiment,
        "source": arm.source,
        "dictionary": arm.dictionary,
        "latents": cost.latents,
        "active_candidates": cost.active,
        "k": config.k or getattr(config.gate, "l0", None),
        "nonzeros": atoms.nonzeros if isinstance(atoms, ExpanderAtomsConfig) else None,
        "experts": router.experts if router else None,
        "active_experts": router.active if router else None,
        "balance": router.balance if router else None,
        "seed": arm.seed,
        "stored_values": cost.stored_values,
        "index_bytes": cost.index_bytes,
        "encoder_macs": cost.encoder_macs,
        "rows": setting.steps * setting.batch,
        "lr": arm.lr,
        "rate": arm.rate,
        "commit": revision,
        "dirty": dirty,
        "machine": machine(),
    }


def _as_float(rows: Rows) -> Rows:
    return replace(rows, x={site: tensor.float() for site, tensor in rows.x.items()})


def peak_mb() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
