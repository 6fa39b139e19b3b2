"""Dictionaries under matched conditions: one record per fit, comparison and inference.

    python -m benchmarks.dictionaries --data CORPUS --model RUN      every arm without a record
    python -m benchmarks.dictionaries ... --jobs 2                   two fits at a time

Sources are four worlds of superposition and one site of a language model on real text. Every family
of dictionaries gets the same learning-rate trials on every kind of source (a third of the steps,
seed 0, multiples of the usual rate for so many latents; the lowest FVU wins among those whose L0 is
no more than a quarter above the one aimed at; ``TRIALS``). Each arm
is fitted in a process of its own, on rows that are the same for all arms of one source and seed,
and recorded when it is done, so the command can be stopped and repeated at any time.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.dictionaries.arms import (
    LM,
    Arm,
    balance_arms,
    matched_arms,
    storage_arms,
    trained_arms,
    trial_arms,
)
from benchmarks.dictionaries.fit import Setting, fit_arm
from pellucid.cli.progress import note_progress, say
from pellucid.core.errors import TrainingError
from pellucid.data.activations import ActivationCache
from pellucid.data.disk import write_atomically
from pellucid.data.worlds import FORMS, named_worlds
from pellucid.recipes.harvesting import HarvestRequest, harvest_sites

RECORDS, TRIALS = "dictionaries.json", "trials-dictionaries.json"
RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
ALLOWED = 1.25  # times k: the L0 up to which a trial of a gate that fixes none is considered
TRIED = "flat"  # the world that stands for all worlds in the trials


def main() -> None:
    """Harvest, try the rates, and fit every arm that has no record yet."""
    args = _arguments()
    if LM in args.source:
        _harvest(args)
    sources = [TRIED if source in FORMS else source for source in args.source]
    trials = [arm for source in dict.fromkeys(sources) for arm in _trials(source, args)]
    _run_all(trials, args, TRIALS, steps=max(1, args.steps // 3))
    best = _best_rates(_read(args.results / TRIALS))
    arms = [replace(a, rate=best[_kind(a.source), a.family]) for a in _arms(args)]
    first = [arm for arm in arms if arm.pruned is None]
    _run_all(first, args, RECORDS, steps=args.steps)
    _run_all([arm for arm in arms if arm.pruned is not None], args, RECORDS, steps=args.steps)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--model", default="runs/dense", help="run whose site is read")
    parser.add_argument("--site", default="blocks.1:out")
    parser.add_argument("--source", choices=[LM, *FORMS], nargs="+", default=[LM, *FORMS])
    parser.add_argument("--latents", type=int, default=1024, help="of the language model's arms")
    parser.add_argument("--k", type=int, nargs="+", default=[32])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--settle", type=int, default=32_768, help="rows that scales rest on")
    parser.add_argument("--score", type=int, default=16_384, help="held-out rows")
    parser.add_argument("--windows", type=int, default=32, help="held-out windows for losses")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/dictionaries"))
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parents[2] / "docs" / "results"
    )
    return parser.parse_args()


def _harvest(args: argparse.Namespace) -> None:
    request = HarvestRequest(
        site=(args.site,),
        data=args.data,
        tokens=args.steps * args.batch,
        validation_tokens=args.score,
        dtype="bfloat16",
    )
    report = note_progress()
    harvest_sites(args.model, request, args.work / "cache", overwrite=False, report=report)


def _trials(source: str, args: argparse.Namespace) -> Iterable[Arm]:
    latents, k, _ = _size(source, args)
    return trial_arms(source, latents=latents, k=k[0], rates=RATES)


def _arms(args: argparse.Namespace) -> list[Arm]:
    """Every arm of every source asked for."""
    arms: list[Arm] = []
    for source in args.source:
        latents, every_k, width = _size(source, args)
        k = every_k[0]
        for one in every_k:
            arms += matched_arms(source, width=width, latents=latents, k=one, gates=one == k)
        if source == LM:
            arms += balance_arms(source, latents=latents, k=k)
            arms += storage_arms(source, width=width, latents=latents, k=k)
        if source in (LM, TRIED):
            arms += trained_arms(source, latents=latents, k=k)
    return arms


def _size(source: str, args: argparse.Namespace) -> tuple[int, list[int], int]:
    """Latents, every k, and width: a world has as many latents as features."""
    if source == LM:
        (width,) = ActivationCache.open(args.work / "cache", verify=False).widths.values()
        return args.latents, args.k, width
    world = named_worlds(source)[source]
    return world.features, [max(1, round(world.l0))], world.d


def _best_rates(trials: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """For every kind of source and family the rate of the best trial.

    A gate that does not fix its L0 would win by speaking more: trials far above the L0 aimed at
    count only where there is no other, the nearest first.
    """

    def worth(trial: dict[str, Any]) -> tuple[float, float]:
        return max(ALLOWED, trial["l0"] / trial["k"]), trial["fvu"]

    found: dict[tuple[str, str], dict[str, Any]] = {}
    for trial in trials:
        key = (_kind(trial["source"]), trial["dictionary"])
        if key not in found or worth(trial) < worth(found[key]):
            found[key] = trial
    return {key: trial["rate"] for key, trial in found.items()}


def _kind(source: str) -> str:
    return LM if source == LM else "world"


def _run_all(arms: list[Arm], args: argparse.Namespace, name: str, *, steps: int) -> None:
    """Fit every arm without a record, so many at a time, and record each at once."""
    path = args.results / name
    records = _read(path)
    rows = steps * args.batch
    done = {record["fit"] for record in records if record["rows"] == rows}
    todo = [arm for arm in arms if arm.name not in done]
    setting = Setting(
        model=args.model,
        cache=args.work / "cache",
        work=args.work / "weights",
        steps=steps,
        batch=args.batch,
        settle_rows=min(args.settle, steps * args.batch),
        score_rows=args.score,
        windows=args.windows,
    )
    # Read by every process that begins from here on; large pages as the commands use them.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Every fit begins in a process that has done nothing but import: its peak memory is its own.
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["benchmarks.dictionaries.fit"])
    with (
        ProcessPoolExecutor(args.jobs, mp_context=fresh, max_tasks_per_child=1) as pool,
        tqdm(total=len(todo), desc=name) as bar,
    ):
        waiting = {
            pool.submit(fit_arm, _planned(arm, steps, args.batch), setting): arm for arm in todo
        }
        for future in as_completed(waiting):
            arm = waiting[future]
            try:
                found = future.result()
            except TrainingError as error:
                say(f"{arm.name}: {error}")
                continue
            records += [{"fit": arm.name, **record} for record in found]
            _write(path, records)
            bar.update()


def _planned(arm: Arm, steps: int, batch: int) -> Arm:
    """The arm with the plan that its warm-ups and dead window follow."""
    return replace(arm, config=replace(arm.config, plan=steps, batch=batch))


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    """One record a line: hundreds of them stay readable, and a difference small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record) for record in sorted(records, key=_order))
    write_atomically(path, f"[\n{lines}\n]\n")


def _order(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(record[name]) for name in ("fit", "inference", "matched_on"))


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


if __name__ == "__main__":
    main()
