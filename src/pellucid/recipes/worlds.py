"""Fit dictionaries to a world whose features are known, and score what they recover.

MCC, uniqueness and F1 as in ``stats/recovery.py``, beside the MCC of as many random directions and
of the fitted dictionary with its writes permuted against its reads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from pellucid.core.unit import Site
from pellucid.data.activations import Rows
from pellucid.data.worlds import World, WorldConfig
from pellucid.dictionaries import Coder, CoderConfig, build_coder, settle
from pellucid.recipes.dictionary import Fit, FitRun, plan_fits
from pellucid.recipes.fit_loop import fit_loop, fit_optimizer
from pellucid.stats.reconstruction import FVU
from pellucid.stats.recovery import DetectorCounts, Matching, chance_mcc, match_directions
from pellucid.stats.redundancy import redundancy

READS, WRITES = "world:in", "world:out"
HELD_OUT = 1 << 20  # steps of the sampler beyond any training step
CHUNK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One dictionary on one world: figures by name."""

    world: str
    dictionary: str
    figures: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldFit:
    """Dictionaries to be fitted to one world, each built once so that none fails behind others."""

    name: str
    world: World
    run: FitRun


def plan_world(
    name: str,
    world: WorldConfig,
    dictionaries: Sequence[tuple[str, CoderConfig]],
    *,
    tokens: int,
    batch: int,
    seed: int = 0,
) -> WorldFit:
    """Fits of the same rows. A world that writes elsewhere than it reads takes transcoders.

    Errors: a ``ConfigError`` for a dictionary that cannot be built on this world.
    """
    built = world.build()
    writes = READS if built.reads is None else WRITES
    steps = max(1, tokens // batch)
    chosen = [(label, config, READS, writes) for label, config in dictionaries]
    run = FitRun(
        source=name,
        fits=plan_fits(chosen, steps=steps, batch=batch),
        steps=steps,
        batch=batch,
        seed=seed,
    )
    for fit in run.fits:
        _build(built, fit, run)
    return WorldFit(name=name, world=built, run=run)


def recover(
    planned: WorldFit,
    *,
    rows: int = 32_768,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[Recovery]:
    """Fit the dictionaries one by one and score each on ``rows`` rows that none was fitted to."""
    run = planned.run
    for fit in run.fits:
        began = perf_counter()
        task = f"{planned.name}: {fit.name}"
        coder = _fit(planned.world, fit, run, lambda step, task=task: report(task, step, run.steps))
        seconds = perf_counter() - began
        found = score(planned.world, coder, rows=rows, seed=run.seed)
        yield Recovery(
            world=planned.name, dictionary=fit.name, figures={**found, "seconds": seconds}
        )


@torch.no_grad()
def score(world: World, coder: Coder, *, rows: int, seed: int) -> dict[str, float]:
    """Reconstruction and recovery of a dictionary on rows it was not fitted to."""
    coder.eval()
    matching = _match(world, coder, torch.arange(coder.spec.num_units))
    counts, error = DetectorCounts(matching.latent), FVU()
    fires = torch.zeros(coder.spec.num_units, dtype=torch.long)
    active = 0
    for step in range(-(-rows // CHUNK)):
        sample = world.sample(CHUNK, seed=seed, step=HELD_OUT + step)
        code = coder.activate(sample.x)
        counts.update(sample.truth, code)
        error.update(sample.y, coder.rest(sample.x) + coder.decode(code))
        on = code.value != 0
        fires += torch.bincount(code.unit[on], minlength=len(fires))
        active += int(on.sum())
    order = torch.randperm(len(fires), generator=torch.Generator().manual_seed(seed))
    writes = coder.write(torch.arange(len(fires)))
    twins = redundancy(writes, signed=coder.is_signed, live=fires > 0, limit=CHUNK, seed=seed)
    return {
        "fvu": error.value,
        "l0": active / error.rows,
        "silent": (fires == 0).double().mean().item(),
        "mcc": matching.mcc,
        "mcc_chance": chance_mcc(world.directions, len(fires), true_read=world.reads, seed=seed),
        "mcc_permuted": _match(world, coder, order).mcc,
        "f1": counts.mean_f1,
        "uniqueness": matching.uniqueness,
        **twins.figures(),
    }


def _match(world: World, coder: Coder, order: torch.Tensor) -> Matching:
    """Features matched to latents that read along their own row and write another's."""
    unit = torch.arange(len(order))
    if world.reads is None:
        # Permuted, an SAE is judged by both directions, or nothing would change.
        read = None if bool((order == unit).all()) else world.directions
    else:
        read = world.reads
    return match_directions(
        world.directions,
        coder.write(order),
        true_read=read,
        learned_read=None if read is None else coder.read(unit),
    )


def _fit(world: World, fit: Fit, run: FitRun, report: Callable[[int], None]) -> Coder:
    coder = _build(world, fit, run)
    reads, writes = coder.spec.reads, coder.spec.writes
    first = world.sample(run.settle_rows, seed=run.seed, step=HELD_OUT - 1)
    settle(coder, first.x, first.y)
    optimizer = fit_optimizer(coder, fit, run)

    def batches(step: int) -> list[Rows]:
        sample = world.sample(run.batch, seed=run.seed, step=step)
        index = torch.arange(run.batch)
        x = {writes: sample.y, reads: sample.x}
        return [Rows(x=x, token=index, document=index, position=index)]

    loop = fit_loop(coder, optimizer, fit, run, batches, "cpu")
    progress = loop.start(0)
    while not progress.last:
        progress = loop.advance(progress, [])
        report(progress.step)
    return coder


def _build(world: World, fit: Fit, run: FitRun) -> Coder:
    return build_coder(
        fit.coder,
        name=fit.name,
        reads=Site.parse(fit.reads),
        writes=Site.parse(fit.writes),
        d_in=world.d,
        d_out=world.d,
        seed=run.seed,
    )
