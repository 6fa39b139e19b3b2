"""The reference comparison of slots at ``tiny``: one record per finished run.

    python -m benchmarks.lm_tiny --data CORPUS                    every arm that has no record yet
    python -m benchmarks.lm_tiny --data CORPUS --arm pools-k12    one arm
    python -m benchmarks.lm_tiny --data CORPUS --speed            time every recorded arm
    python -m benchmarks.lm_tiny --data CORPUS --measure          measure the recorded runs again

All arms share trunk, data order, optimiser, precision and forward FLOPs per token; each arm's free
size is solved for that budget. Every arm gets the same short learning-rate trials (``--trial``
steps at each rate of ``RATES``, seed 0; outcomes are kept in ``TRIALS``), and the best rate on
validation text is used. Records go into ``RECORDS`` in the results folder. Runs resume from their
checkpoints, so the command can be stopped and repeated at any time. A rate at which training ends
in a value that is not finite counts as the worst. The validation pass behind the figures scores
whole documents of every domain; what units do is counted with a document a row. ``commit`` is that
of the training, ``measured`` that of the figures. Runs may share a machine; speed is therefore
timed apart, arm after arm on an idle one.

The slots of ``dense``, ``swiglu`` and MONET run in bfloat16 under ``--precision bf16`` like the
trunk, while those that gather rows of a table (top-k MLP, PEER, pools, pooled PEER) compute in the
table's float32. The arm ``dense-fp32`` tells what that is worth.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from pellucid.cli.progress import note_progress, say
from pellucid.core.errors import TrainingError
from pellucid.data.disk import write_atomically
from pellucid.data.packing import Batch, evaluation_batches
from pellucid.explore.activity import PoolActivity, measure_activity
from pellucid.models.cost import model_cost
from pellucid.models.presets import match, preset, slot, with_slots
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.pools.pooled_peer import PooledPeerConfig
from pellucid.pools.topk_mlp import TopKMLPConfig
from pellucid.recipes.folder import commit, create_run, is_run, read_metrics, read_run
from pellucid.recipes.language import LanguageRun, recipe
from pellucid.recipes.load import load_run
from pellucid.recipes.prepare import Prepared, prepare_run
from pellucid.recipes.training import train_language
from pellucid.train.evaluate import evaluate

RECORDS, TRIALS = "lm-tiny.json", "trials-tiny.json"
RATES = (7.5e-4, 1.5e-3, 3e-3)
WIDTH = 128
WARM, TIMED = 4, 12  # steps of a timing
MEASURED_ROWS = 16  # sequences of a measuring pass at a time
ARMS = {
    "pools-k12": ("pools", 12, 3),
    "dense": ("dense", None, 3),
    "pools-k32": ("pools", 32, 3),
    "topk-mlp": ("topk-mlp", 12, 1),
    "pooled-peer": ("pooled-peer", 12, 1),
    "peer": ("peer", None, 1),
    "monet-hd": ("monet-hd", None, 1),
    "monet-vd": ("monet-vd", None, 1),
    "dense-fp32": ("dense", None, 1),
}
FP32 = ("dense-fp32",)  # every other arm trains in bf16


def arm_config(arm: str, source: str, seed: int, lr: float, steps: int) -> LanguageRun:
    """One arm's run: the tiny recipe with the arm's slot at the common FLOP budget."""
    architecture, k, _ = ARMS[arm]
    base = recipe(f"{architecture}-tiny")
    budget = slot("pools", WIDTH).cost(WIDTH).forward
    pool = slot(architecture, WIDTH)
    if isinstance(pool, HierarchyConfig | TopKMLPConfig | PooledPeerConfig) and k is not None:
        pool = match(replace(pool.with_size(k), k=k), WIDTH, budget)
    return replace(
        base,
        model=with_slots(preset(architecture, "tiny"), pool),
        data=replace(base.data, source=source),
        optim=replace(base.optim, lr=lr),
        steps=steps,
        seed=seed,
        precision="fp32" if arm in FP32 else "bf16",
        evaluate_every=steps if steps < 500 else 500,
        checkpoint_every=200,
    )


def main() -> None:
    """Run every arm that has no record yet, in the order of ``ARMS``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--arm", choices=list(ARMS), action="append")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--trial", type=int, default=256)
    parser.add_argument("--validation", type=int, default=16_384, help="tokens per domain, scored")
    parser.add_argument("--units", type=int, default=65_536, help="tokens per domain, for units")
    parser.add_argument("--runs", type=Path, default=Path("runs/lm-tiny"))
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parent.parent / "docs" / "results",
        help="folder of the records; one of its own for each of two runs at a time",
    )
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    # Now, as long as the checkout is what was imported: it may move on while a pass runs.
    args.measured = commit()[0]
    if args.speed:
        _record_speeds(args)
        return
    if args.measure:
        _measure_again(args)
        return
    for arm in args.arm or list(ARMS):
        for seed in args.seed or range(ARMS[arm][2]):
            if not _recorded(args.results / RECORDS, arm, seed):
                _run_arm(arm, seed, args)


def _run_arm(arm: str, seed: int, args: argparse.Namespace) -> None:
    lr = _best_rate(arm, args)
    config = arm_config(arm, args.data, seed, lr, args.steps)
    run = args.runs / f"{arm}-seed{seed}"
    prepared = _train(run, config, arm)
    record = _measure(run, prepared, arm, args)
    records = args.results / RECORDS
    _write(records, [*_read(records), record])
    say(f"{arm} seed {seed}: {record['val_bpb']:.4f} bits per byte, recorded")


def _measure_again(args: argparse.Namespace) -> None:
    """Every record anew from its run; speeds are kept."""
    path = args.results / RECORDS
    found: list[dict[str, Any]] = []
    for old in _read(path):
        run = args.runs / f"{old['arm']}-seed{old['seed']}"
        prepared = prepare_run(read_run(run)[0], note_progress())
        new = _measure(run, prepared, old["arm"], args)
        found.append({**new, "tokens_per_second": old["tokens_per_second"]})
        say(f"{old['arm']} seed {old['seed']}: measured again")
    _write(path, found)


def _best_rate(arm: str, args: argparse.Namespace) -> float:
    """The rate with the lowest validation bits per byte after a short run of its own schedule."""
    scores = {lr: _trial(arm, lr, args) for lr in RATES}
    say(f"{arm}: " + ", ".join(f"lr {lr:g} {score}" for lr, score in scores.items()))
    return min(RATES, key=lambda lr: _or_worst(scores[lr]))


def _or_worst(score: float | None) -> float:
    return math.inf if score is None else score


def _trial(arm: str, lr: float, args: argparse.Namespace) -> float | None:
    """The outcome of one trial, from ``TRIALS`` if it was run before; ``None`` if it diverged."""
    config = arm_config(arm, args.data, 0, lr, args.trial)
    tokens = config.steps * config.tokens_per_step
    known = _read(args.results / TRIALS)
    for trial in known:
        if (trial["arm"], trial["lr"], trial["tokens"]) == (arm, lr, tokens):
            return trial["val_bpb"]
    run = args.runs / "trials" / f"{arm}-{lr:g}"
    try:
        _train(run, config, f"{arm} lr {lr:g}")
        last = [m for m in read_metrics(run) if "val/bits_per_byte" in m][-1]
    except TrainingError as error:
        say(str(error))
        last = {}
    record = {
        "arm": arm,
        "lr": lr,
        "tokens": tokens,
        "seed": 0,
        "val_bpb": last.get("val/bits_per_byte"),
        "live_units": last.get("val/live_units"),
        **_origin(run),
    }
    _write(args.results / TRIALS, [*known, record])
    return record["val_bpb"]


def _train(run: Path, config: LanguageRun, name: str) -> Prepared:
    prepared = prepare_run(config, note_progress())
    if not is_run(run):
        create_run(
            run, prepared.config, recipe=name, command=["benchmarks.lm_tiny"], overwrite=False
        )
    elif read_run(run)[0] != prepared.config:
        raise SystemExit(f"{run}: made with another config; remove it")
    progress = train_language(run, prepared, name=name, say=say)
    if progress.stopping:
        raise SystemExit("stopped after a checkpoint; the same command goes on")
    return prepared


def _measure(run: Path, prepared: Prepared, arm: str, args: argparse.Namespace) -> dict[str, Any]:
    config, corpus = prepared.config, prepared.corpus
    model = load_run(run).model

    def batches(tokens: int, *, separate: bool) -> Iterator[Batch]:
        return evaluation_batches(
            corpus.validation,
            context=config.model.context,
            batch_size=MEASURED_ROWS,
            tokens_per_domain=tokens,
            separate=separate,
        )

    scored = batches(args.validation, separate=False)
    scores = evaluate(model, scored, corpus.validation, corpus.domains)
    pools = list(model.pools().values())
    alone = batches(args.units, separate=True)
    activity = measure_activity(model, pools, alone, corpus.validation, corpus.domains)
    cost = model_cost(config.model)
    return {
        "slot": ARMS[arm][0],
        "preset": "tiny",
        "arm": arm,
        "k": ARMS[arm][1],
        "free_size": config.model.slot(0).free_size,
        "seed": config.seed,
        "tokens": config.steps * config.tokens_per_step,
        "val_bpb": scores.bits_per_byte,
        "val_bpb_by_domain": scores.by_domain,
        "val_tokens": scores.tokens,
        "tokens_per_second": None,
        "params_total": cost.total,
        "params_active": cost.active,
        "forward_flops_per_token": cost.forward,
        "train_flops_per_token": cost.training,
        "l0": sum(a.l0 for a in activity) / len(activity),
        "effective_l0": sum(a.effective_l0 for a in activity) / len(activity),
        "dead_fraction": sum(a.dead_fraction for a in activity) / len(activity),
        **_specialisation(activity),
        "by_layer": [_layer(a) for a in activity],
        "unit_tokens": int(activity[0].tokens.sum()),
        "lr": config.optim.lr,
        "precision": config.precision,
        **_origin(run),
        "measured": args.measured,
    }


def _record_speeds(args: argparse.Namespace) -> None:
    """Median tokens per second of ``TIMED`` training steps after ``WARM`` more, for every arm."""
    speeds: dict[str, float] = {}
    records = _read(args.results / RECORDS)
    for arm in dict.fromkeys(r["arm"] for r in records):
        config = arm_config(arm, args.data, 0, 1e-3, WARM + TIMED)
        config = replace(config, log_every=1, evaluate_every=WARM + TIMED + 1)
        run = args.runs / "speed" / arm
        shutil.rmtree(run, ignore_errors=True)
        _train(run, config, arm)
        steps = read_metrics(run)[WARM:]
        speeds[arm] = median(m["time/tokens_per_second"] for m in steps)
        say(f"{arm}: {speeds[arm]:,.0f} tokens per second")
    timed = [{**r, "tokens_per_second": speeds[r["arm"]]} for r in records]
    _write(args.results / RECORDS, timed)


def _layer(activity: PoolActivity) -> dict[str, Any]:
    record: dict[str, Any] = {
        "pool": activity.spec.name,
        "l0": activity.l0,
        "dead_fraction": activity.dead_fraction,
    }
    if activity.map is not None:
        for name in ("nmi", "nmi_given_token"):
            figure = getattr(activity.map, name)
            record |= {
                name: figure.value,
                f"{name}_null_mean": figure.null_mean,
                f"{name}_null_std": figure.null_std,
            }
    return record


def _specialisation(activity: tuple[PoolActivity, ...]) -> Mapping[str, float | None]:
    """The figures of the layer, from the second one up, that has least of them."""
    found: dict[str, float | None] = {}
    layers = [_layer(a) for a in activity[1:]]
    for name in ("nmi", "nmi_given_token"):
        fields = (name, f"{name}_null_mean", f"{name}_null_std")
        known = [layer for layer in layers if name in layer]
        lowest = min(known, key=lambda layer: layer[fields[0]] - layer[fields[1]], default={})
        found |= {field: lowest.get(field) for field in fields}
    return found


def _origin(run: Path) -> dict[str, Any]:
    """The commit and machine that a run was begun with."""
    environment = json.loads((run / "environment.json").read_text())
    return {name: environment[name] for name in ("commit", "dirty", "machine")}


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    write_atomically(path, json.dumps(records, indent=1) + "\n")


def _recorded(records: Path, arm: str, seed: int) -> bool:
    return any(r["arm"] == arm and r["seed"] == seed for r in _read(records))


if __name__ == "__main__":
    main()
