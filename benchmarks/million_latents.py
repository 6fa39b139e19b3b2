"""An expander of a million latents at width 512, fitted for some steps: time, memory, error.

    python -m benchmarks.million_latents        docs/results/million-latents.json, one record

Rows are those of a world of sparse directions. What is shown is that such a dictionary is an
ordinary case on a small machine; so few steps teach it little.
"""

import argparse
import json
import os
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.dictionaries.fit import peak_mb
from pellucid.cli.progress import say
from pellucid.core.unit import Site
from pellucid.data.activations import Rows
from pellucid.data.disk import write_atomically
from pellucid.data.worlds.superposition import SuperpositionConfig
from pellucid.dictionaries import Coder, build_coder, settle
from pellucid.recipes.dictionary import FitRun, choose_dictionary, plan_fits
from pellucid.recipes.fit_loop import fit_loop, fit_optimizer
from pellucid.recipes.folder import commit, machine
from pellucid.stats.reconstruction import FVU

SITE = "world:in"
HELD_OUT = 1 << 20  # steps of the sampler beyond any training step


def main() -> None:
    """Fit, and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--latents", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parents[1] / "docs" / "results" / "million-latents.json",
    )
    args = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch.set_num_threads(args.threads)
    record = fit(args)
    write_atomically(args.out, json.dumps([record], indent=1) + "\n")
    say(
        f"{args.latents:,} latents: {record['seconds_per_step']:.2f} s a step, "
        f"{record['peak_mb']:.0f} MB at the peak"
    )


def fit(args: argparse.Namespace) -> dict[str, object]:
    """The record of a fit."""
    features = 16 * args.width
    world = SuperpositionConfig(
        d=args.width, features=features, l0=float(args.k), support=7
    ).build()
    site = Site.parse(SITE)

    def rows(step: int) -> list[Rows]:
        x = world.sample(args.batch, seed=0, step=step).x
        index = torch.arange(len(x))
        return [Rows(x={site: x}, token=index, document=index, position=index)]

    name, config = choose_dictionary("expander", latents=args.latents, k=args.k)
    fits = plan_fits([(name, config, SITE, SITE)], steps=args.steps, batch=args.batch)
    run = FitRun(source="world", fits=fits, steps=args.steps, batch=args.batch)
    base = peak_mb()
    coder = build_coder(
        fits[0].coder, name=name, reads=site, writes=site, d_in=args.width, d_out=args.width
    )
    first = world.sample(4096, seed=0, step=HELD_OUT).x
    settle(coder, first, first)
    optimizer = fit_optimizer(coder, fits[0], run)
    loop = fit_loop(coder, optimizer, fits[0], run, rows, "cpu")
    held_out = world.sample(1024, seed=0, step=HELD_OUT + 1).x
    start = score(coder, held_out, args.batch)
    progress, seconds = loop.start(0), []
    while not progress.last:
        began = perf_counter()
        progress = loop.advance(progress, [])
        seconds.append(perf_counter() - began)
    peak = peak_mb()
    states = [s for state in optimizer.state.values() for s in state.values()]
    held = [*coder.parameters(), *coder.buffers(), *states]
    revision, dirty = commit()
    return {
        "dictionary": "expander",
        "latents": args.latents,
        "width": args.width,
        "nonzeros": coder.decoder.table().shape[1],
        "k": args.k,
        "batch": args.batch,
        "steps": args.steps,
        "seed": 0,
        "seconds_per_step": median(seconds[len(seconds) // 4 :]),
        "peak_mb": peak,
        "base_mb": base,
        "held_mb": sum(t.numel() * t.element_size() for t in held) / 2**20,
        "dense_values_mb": args.latents * args.width * 4 / 2**20,
        "fvu_start": start,
        "fvu": score(coder, held_out, args.batch),
        "commit": revision,
        "dirty": dirty,
        "machine": machine(),
    }


@torch.no_grad()
def score(coder: Coder, rows: Tensor, batch: int) -> float:
    """FVU of the rows."""
    error = FVU()
    for part in rows.split(batch):
        error.update(part, coder(part))
    return error.value


if __name__ == "__main__":
    main()
