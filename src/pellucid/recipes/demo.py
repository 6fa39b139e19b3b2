"""The demonstration: a model of readable units and its dense twin, side by side, and the report.

Both arms share trunk, data, order, optimiser and seed, and cost the same forward FLOPs per token.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from pellucid.core.errors import RunError
from pellucid.data.packing import evaluation_batches
from pellucid.explore.activity import PoolActivity, measure_activity
from pellucid.explore.choose import choose_units
from pellucid.explore.collect import collect_records
from pellucid.models.cost import model_cost
from pellucid.models.transformer import Transformer
from pellucid.pools.dense import Dense, SwiGLU
from pellucid.recipes.folder import commit, create_run, machine, read_metrics
from pellucid.recipes.language import LanguageRun, recipe
from pellucid.recipes.load import load_run
from pellucid.recipes.report import ArmReport, Curve, language_report
from pellucid.recipes.training import Prepared, Say, prepare_run, train_language
from pellucid.report.render import check_packages, write_page
from pellucid.train.evaluate import evaluate
from pellucid.train.loop import Progress

ARMS = ("pools", "dense")
MARK = "demo.txt"  # a folder with this file was made by the demo, which may replace it
TEXT_BYTES = 8_000_000  # more than an arm reads, and read in seconds
REPORT_TOKENS = 16_384  # held-out tokens per domain behind the report's figures


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """The arms' figures and the report, or the arm in which a signal asked for a stop."""

    arms: tuple[ArmReport, ...] = ()
    report: Path | None = None
    stopped: str | None = None
    progress: Progress | None = None


def demo_config(arm: str, *, source: str, steps: int | None, seed: int) -> LanguageRun:
    """One arm of the demonstration."""
    base = recipe(f"{arm}-demo")
    return replace(
        base,
        data=replace(base.data, source=source, max_bytes=TEXT_BYTES),
        steps=base.steps if steps is None else steps,
        seed=seed,
    )


def clear_demo(folder: Path) -> None:
    """Remove what an earlier demo left in ``folder``; anything else there is a ``RunError``."""
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (folder / MARK).is_file():
        raise RunError(f"{folder}: holds something that is not a demo; choose another --run")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).write_text("Made by pellucid demo, which replaces it when run again.\n")


def run_demo(
    folder: Path,
    *,
    source: str,
    steps: int | None,
    seed: int,
    progress: Callable[[str, int, int], None],
    say: Say,
) -> DemoResult:
    """Train both arms into ``folder`` and write ``report.html`` there."""
    check_packages()
    configs = {arm: demo_config(arm, source=source, steps=steps, seed=seed) for arm in ARMS}
    prepared = {arm: prepare_run(config, progress) for arm, config in configs.items()}
    clear_demo(folder)
    for arm in ARMS:
        run = folder / arm
        config = prepared[arm].config
        create_run(run, config, recipe=f"{arm}-demo", command=["pellucid", "demo"], overwrite=False)
        done = train_language(run, prepared[arm], name=arm, say=say)
        if done.stopping:
            return DemoResult(stopped=arm, progress=done)
    say("reading the units on held-out text")
    arms = tuple(arm_report(folder / arm, arm, prepared[arm]) for arm in ARMS)
    path = folder / "report.html"
    write_report(arms, prepared[ARMS[0]], path)
    return DemoResult(arms=arms, report=path)


def arm_report(run: Path, name: str, prepared: Prepared) -> ArmReport:
    """All that the report says about one finished run."""
    loaded = load_run(run)
    model, config, corpus = loaded.model, loaded.config, prepared.corpus
    batches_of = partial(
        evaluation_batches,
        corpus.validation,
        context=config.model.context,
        batch_size=config.batch,
        tokens_per_domain=REPORT_TOKENS,
    )
    result = evaluate(
        model,
        batches_of(),
        corpus.validation,
        corpus.domains,
        mask_documents=config.data.mask_documents,
    )
    # A document a row: what units do in one must not come from the one before it.
    batches = list(batches_of(separate=True))
    metrics = read_metrics(run)
    pools = [p for p in model.pools().values() if not isinstance(p, Dense | SwiGLU)]
    activity = measure_activity(model, pools, batches, corpus.validation, corpus.domains)
    chosen = choose_units(activity)
    records = collect_records(
        model, pools, batches, corpus, activity, chosen, unembedding=model.unembedding()
    )
    return ArmReport(
        name=name,
        train_loss=_curve(metrics, "train/ce"),
        val_bpb=_curve(metrics, "val/bits_per_byte"),
        bpb=result.bits_per_byte,
        bpb_by_domain=result.by_domain,
        facts=_facts(config, model, metrics, activity),
        activity=activity,
        selective=tuple(r for r, c in zip(records, chosen) if not c.control),
        controls=tuple(r for r, c in zip(records, chosen) if c.control),
    )


def write_report(arms: Sequence[ArmReport], prepared: Prepared, path: Path) -> None:
    """One self-contained HTML page about the arms."""
    config, corpus = prepared.config, prepared.corpus
    revision, dirty = commit()
    facts = (
        ("text", f"{config.data.source}, {len(corpus.domains)} domains"),
        ("tokens an arm", f"{config.steps * config.tokens_per_step:,}"),
        ("seed", str(config.seed)),
        ("machine", machine()),
        ("commit", f"{(revision or 'unknown')[:12]}{' with changes' if dirty else ''}"),
    )
    write_page(language_report(arms, facts=facts), path)


def _curve(metrics: Sequence[Mapping[str, float]], name: str) -> Curve:
    found = [(int(m["tokens"]), m[name]) for m in metrics if name in m]
    return Curve(tokens=tuple(t for t, _ in found), values=tuple(v for _, v in found))


def _facts(
    config: LanguageRun,
    model: Transformer,
    metrics: Sequence[Mapping[str, float]],
    activity: Sequence[PoolActivity],
) -> dict[str, str]:
    cost = model_cost(config.model)
    speed = median(m["time/tokens_per_second"] for m in metrics)
    units = sum(pool.spec.num_units for pool in model.pools().values())
    live = sum(a.live_share * a.spec.num_units for a in activity) / units if activity else 1.0
    return {
        "parameters": f"{cost.total / 1e6:.2f} M",
        "active": f"{cost.active / 1e6:.2f} M",
        "forward MFLOP a token": f"{cost.forward / 1e6:.2f}",
        "tokens per second": f"{speed:,.0f}",
        "units": f"{units:,}",
        "live units": f"{live:.1%}",
    }
