"""The page about trained language models: what they cost, and what their pools know of domains.

It is written for a reader who doubts. Every figure that chance could make stands beside what
chance does make: information beside its permutation null, a map beside the same map with domain
labels dealt anew, selective units beside random ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pellucid.core.unit import UnitRecord
from pellucid.explore.activity import DomainMap, PoolActivity
from pellucid.report.page import (
    DotChart,
    HeatMap,
    LineChart,
    Note,
    Page,
    Row,
    Section,
    Series,
    Table,
    UnitCard,
)
from pellucid.stats.specialisation import AgainstNull

MAX_POINTS = 200  # of a curve; more are averaged in equal buckets
MAX_COLUMNS = 64  # of a domain map; beyond, the most used grains are shown
CLEAR = 20  # null standard deviations from which information is called clear


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A figure over training tokens."""

    tokens: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReport:
    """One trained model. Losses are nats per token, ``bpb`` validation bits per byte.

    ``facts`` become columns of the summary table, formatted, with their units in the name.
    ``activity``, ``selective`` and ``controls`` come from ``explore``.
    """

    name: str
    train_loss: Curve
    val_bpb: Curve
    bpb: float
    bpb_by_domain: Mapping[str, float]
    facts: Mapping[str, str] = field(default_factory=dict)
    activity: tuple[PoolActivity, ...] = ()
    selective: tuple[UnitRecord, ...] = ()
    controls: tuple[UnitRecord, ...] = ()


def language_report(
    arms: Sequence[ArmReport],
    *,
    title: str = "Pools and their dense twin",
    facts: Sequence[tuple[str, str]] = (),
) -> Page:
    """The page about ``arms``, trained on the same batches in the same order.

    The last arm is what the others are compared with.
    """
    sections = [_summary(arms), _curves(arms), _domains(arms)]
    for arm in arms:
        if arm.activity:
            sections.append(_activity(arm))
        if any(pool.map for pool in arm.activity):
            sections.append(_specialisation(arm))
        if arm.selective:
            sections.append(_units(arm))
    return Page(title=title, lead=_lead(arms), facts=tuple(facts), sections=tuple(sections))


def _lead(arms: Sequence[ArmReport]) -> str:
    base = arms[-1]
    said = f"{base.name} ends at {base.bpb:.3f} bits per byte of held-out text"
    for arm in arms[:-1]:
        said += f", {arm.name} at {arm.bpb:.3f} ({_percent(arm.bpb / base.bpb - 1)})"
    return (
        f"{said}. Lower is better. One run an arm shows no spread between seeds, so small "
        "differences may be luck."
    )


def _summary(arms: Sequence[ArmReport]) -> Section:
    base = arms[-1]
    names = list(dict.fromkeys(name for arm in arms for name in arm.facts))
    rows = tuple(
        (
            arm.name,
            f"{arm.bpb:.3f}",
            *([] if len(arms) == 1 else [_against(arm, base)]),
            *(arm.facts.get(name, "") for name in names),
        )
        for arm in arms
    )
    against = [] if len(arms) == 1 else [f"against {base.name}"]
    columns = ("arm", "bits per byte", *against, *names)
    table = Table(caption="The arms at the end of training", columns=columns, rows=rows)
    return Section(title="Summary", intro=(), blocks=(table,))


def _curves(arms: Sequence[ArmReport]) -> Section:
    losses = [_thinned(arm.train_loss) for arm in arms]
    series = tuple(Series(name=arm.name, x=x, y=y) for arm, (x, y) in zip(arms, losses) if len(x))
    train = LineChart(
        caption="Training loss",
        x_label="tokens",
        y_label="nats per token",
        series=series,
        y_range=_below_the_start(series),
    )
    validation = LineChart(
        caption="Validation",
        x_label="tokens",
        y_label="bits per byte",
        series=tuple(
            Series(name=arm.name, x=tuple(map(float, arm.val_bpb.tokens)), y=arm.val_bpb.values)
            for arm in arms
        ),
    )
    return Section(
        title="Learning",
        intro=("Every arm saw the same batches in the same order.",),
        blocks=(Row(blocks=(train, validation)),),
    )


def _domains(arms: Sequence[ArmReport]) -> Section:
    base = arms[-1]
    names = sorted(base.bpb_by_domain)
    nothing = math.nan
    chart = DotChart(
        caption="Validation bits per byte by domain",
        x_label="bits per byte, lower is better",
        categories=tuple(names),
        series=tuple(
            Series(name=arm.name, y=tuple(arm.bpb_by_domain.get(n, nothing) for n in names))
            for arm in arms
        ),
    )
    others = arms[:-1]
    rows = tuple(
        (
            name,
            *(f"{arm.bpb_by_domain.get(name, nothing):.3f}" for arm in arms),
            *(
                _percent(arm.bpb_by_domain.get(name, nothing) / base.bpb_by_domain[name] - 1)
                for arm in others
            ),
        )
        for name in names
    )
    columns = ("domain", *(a.name for a in arms), *(f"{a.name}, difference" for a in others))
    table = Table(caption="The same in figures", columns=columns, rows=rows)
    return Section(title="Domains", intro=(), blocks=(Row(blocks=(chart, table)),))


def _activity(arm: ArmReport) -> Section:
    rows = tuple(
        (
            pool.spec.name,
            f"{pool.spec.num_units:,}",
            f"{pool.l0:.1f}",
            f"{pool.effective_l0:.1f}",
            f"{100 * pool.live_share:.1f} %",
            f"{100 * pool.dead_fraction:.1f} %",
        )
        for pool in arm.activity
    )
    tokens = int(arm.activity[0].tokens.sum())
    table = Table(
        caption=f"Units of {arm.name} over {tokens:,} held-out tokens",
        columns=("layer", "units", "active a token", "holding 90 % of mass", "live", "dead"),
        rows=rows,
    )
    intro = (
        "A unit is active where gate · activation is not 0, and dead if it never was. Mass is "
        "|gate · activation| · ‖write‖."
    )
    return Section(title=f"Activity: {arm.name}", intro=(intro,), blocks=(table,))


def _specialisation(arm: ArmReport) -> Section:
    mapped = [(pool, pool.map) for pool in arm.activity if pool.map is not None]
    table = Table(
        caption="Normalised information about the domain, beside its permutation null",
        columns=(
            "layer",
            "pool and domain",
            "null",
            "above null",
            "given the token",
            "null",
            "above null",
            "in null deviations",
        ),
        rows=tuple(
            (
                pool.spec.name,
                *_figures(found.nmi),
                *_figures(found.nmi_given_token),
                f"{found.nmi_given_token.z:.0f}",
            )
            for pool, found in mapped
        ),
    )
    intro = (
        "The first figure is large as soon as pools follow words and words follow domains. The "
        "second asks what a pool knows of the domain once the token is known; a router that looks "
        "the token up in a table scores 0 there. Nulls permute the domain labels over documents, "
        "pieces of one file together. Every document was read by itself.",
        "Each map shows how often a token of a domain uses a pool. Columns are sorted by the "
        "domain that uses them most, which draws a diagonal even through noise: compare with the "
        "map on its right, sorted in the same way after the labels were dealt anew.",
    )
    maps = tuple(Row(blocks=_maps(pool, found)) for pool, found in mapped)
    return Section(
        title=f"Which pool for which domain: {arm.name}",
        intro=intro,
        blocks=(table, Note(text=_verdict(mapped)), *maps),
    )


def _verdict(mapped: Sequence[tuple[PoolActivity, DomainMap]]) -> str:
    """What the conditional figure allows to say, layer by layer."""
    clear = [pool.spec.name for pool, found in mapped if found.nmi_given_token.z >= CLEAR]
    weakest = min((found.nmi_given_token.lift for _, found in mapped), default=0.0)
    if len(clear) == len(mapped):
        return (
            f"In every layer the domain adds to the token: the figure given the token lies at "
            f"least {CLEAR} null deviations above its null, and {weakest:.2f} above it where it "
            "is lowest."
        )
    rest = ", ".join(pool.spec.name for pool, _ in mapped if pool.spec.name not in clear)
    return (
        f"In {rest} the figure given the token is less than {CLEAR} null deviations above its "
        "null. What the maps show there may be the words of each domain and nothing more."
    )


def _maps(pool: PoolActivity, found: DomainMap) -> tuple[HeatMap, HeatMap]:
    axes = ", ".join(name for name, _ in pool.spec.axes[:-1])
    maximum = float(found.used.max())
    count = found.used.shape[1]
    shown = found.used.sum(0).topk(min(count, MAX_COLUMNS)).indices
    most = f"The {len(shown)} most used of {count:,}. " if count > len(shown) else ""

    def heat_map(caption: str, used: Sequence[Sequence[float]], line: str) -> HeatMap:
        columns = sorted(range(len(shown)), key=lambda c: _peak(used, c))
        return HeatMap(
            caption=caption,
            rows=pool.domains,
            columns=tuple(str(int(shown[c])) for c in columns),
            values=tuple(tuple(row[c] for c in columns) for row in used),
            row_axis="domain",
            column_axis=axes,
            annotations=(most + line,),
            maximum=maximum,
        )

    return (
        heat_map(
            f"{pool.spec.name}: share of the domain's tokens that use the {axes}",
            found.used[:, shown].tolist(),
            f"NMI {_beside(found.nmi)}; given the token {_beside(found.nmi_given_token)}",
        ),
        heat_map(
            "The same with domain labels permuted over documents",
            found.used_permuted[:, shown].tolist(),
            "What chance draws from these documents",
        ),
    )


def _peak(used: Sequence[Sequence[float]], column: int) -> tuple[int, float]:
    """Where a column is largest, then how large, largest first."""
    value, row = max((values[column], -row) for row, values in enumerate(used))
    return -row, -value


def _units(arm: ArmReport) -> Section:
    cards = [UnitCard(record=record, control=False) for record in arm.selective]
    step = max(len(cards) // max(len(arm.controls), 1), 1)
    for i, record in enumerate(arm.controls):
        cards.insert(min(i * (step + 1) + 1, len(cards)), UnitCard(record=record, control=True))
    intro = (
        f"The {len(arm.selective)} units that say most about the domain by firing, no two from "
        "one pool or for one domain as long as others are left, and, framed by dashes, "
        f"{len(arm.controls)} drawn at random from all that fire often enough, in several "
        "documents. A reading that fits the controls as well explains nothing.",
        "Units were chosen on one half of the held-out documents; counts, domains, selectivity "
        "and contexts come from the other half. Contexts are the strongest firings, one per "
        "document; orange shades a positive, blue a negative value, the strongest is outlined. "
        "Selectivity is 1 for a unit that fires in one domain only and 0 for one that fires at "
        "the same rate in all.",
    )
    unseen = Note(
        text="Each domain's held-out text is of one file, on which units were chosen: there is no "
        "other half to show them on. Give several files a domain."
    )
    shown = any(record.tokens for record in arm.selective)
    return Section(
        title=f"{len(arm.selective)} selective units and {len(arm.controls)} controls: {arm.name}",
        intro=intro,
        blocks=(*(() if shown else (unseen,)), Row(blocks=tuple(cards))),
    )


def _figures(found: AgainstNull) -> tuple[str, str, str]:
    null = f"{found.null_mean:.3f} ± {found.null_std:.4f}"
    return f"{found.value:.3f}", null, f"{found.lift:.3f}"


def _beside(found: AgainstNull) -> str:
    return f"{found.value:.3f} (null {found.null_mean:.3f} ± {found.null_std:.4f})"


def _against(arm: ArmReport, base: ArmReport) -> str:
    return "" if arm is base else _percent(arm.bpb / base.bpb - 1)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:+.1f} %".replace("-", "−")


def _thinned(curve: Curve) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The curve in at most ``MAX_POINTS`` buckets, each at its mean."""
    size = math.ceil(len(curve.tokens) / MAX_POINTS) or 1
    starts = range(0, len(curve.tokens), size)

    return (
        tuple(fmean(curve.tokens[i : i + size]) for i in starts),
        tuple(fmean(curve.values[i : i + size]) for i in starts),
    )


def _below_the_start(series: Sequence[Series]) -> tuple[float, float] | None:
    """A y range that leaves out the fall of the first tenth, where curves are long enough."""
    if not series or min(len(s.y) for s in series) < 10:
        return None
    low = min(min(s.y) for s in series)
    high = max(s.y[len(s.y) // 10] for s in series)
    return (low - 0.05 * (high - low), high) if high > low else None
