"""Fill the generated blocks of the docs: ``python docs/build.py``; with ``--check`` only compare.

A block begins with ``<!-- KIND: NAME -->``, ends with ``<!-- end -->``, and is made from

    table    docs/results/NAME.json: one row per architecture and k, means over seeds
    fits     docs/results/dictionaries.json: the experiment and source that NAME joins by a dot, and
             a k if there are several, one row per comparison and arm
    record   docs/results/NAME.json, its only record, field by field
    help     what ``pellucid NAME --help`` prints
    configs  the config NAME and every config it holds: fields, types, defaults

so that no number and no flag in the docs is typed by hand. Exit code 1: a block was stale.
"""

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import math
import os
import re
import statistics
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = ("README.md", "docs/*.md", "docs/results/*.md")
BLOCK = re.compile(r"(<!-- (\w+): ([\w.+-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
HELP_COLUMNS = 96
NOTHING = "–"  # the cell of what was not measured

EMPTY = "*Nothing has been measured yet.*"

Record = dict[str, Any]
Column = tuple[str, Callable[[list[Record]], str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite every stale page, or name it and return 1 under ``--check``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if stale")
    check = parser.parse_args(argv).check
    stale = [page for page in pages() if fill(page.read_text("utf-8")) != page.read_text("utf-8")]
    for page in stale:
        sys.stdout.write(f"{page.relative_to(ROOT)}: {'stale' if check else 'rebuilt'}\n")
        if not check:
            page.write_text(fill(page.read_text("utf-8")), "utf-8")
    if check and stale:
        sys.stdout.write("run: python docs/build.py\n")
    return int(check and bool(stale))


def pages() -> list[Path]:
    """The pages that may hold generated blocks."""
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


def fill(text: str) -> str:
    """The page with every block made anew; an unknown kind is an error."""
    makers: dict[str, Callable[[str], str]] = {
        "table": lambda name: table(read_records(RESULTS / f"{name}.json")),
        "fits": lambda name: fits(read_records(RESULTS / "dictionaries.json"), *name.split(".")),
        "record": lambda name: one(read_records(RESULTS / f"{name}.json")),
        "help": help_text,
        "configs": configs,
    }
    return BLOCK.sub(
        lambda found: f"{found[1]}\n{makers[found[2]](found[3]).strip()}\n\n{found[4]}", text
    )


def read_records(path: Path) -> list[Record]:
    """The flat records of one result file; none where nothing has been measured yet."""
    return json.loads(path.read_text("utf-8")) if path.exists() else []


# Heading, and the cell of one group of records that differ in their seed only.
COLUMNS: tuple[Column, ...] = (
    ("architecture", lambda g: str(g[0]["slot"])),
    ("precision", lambda g: str(g[0].get("precision") or NOTHING)),
    ("k", lambda g: str(g[0]["k"] or NOTHING)),
    ("bits per byte", lambda g: spread(g, "val_bpb", "{:.3f}")),
    ("L0", lambda g: cell(mean(g, "l0"), "{:.0f}")),
    ("dead", lambda g: cell(mean(g, "dead_fraction"), "{:.1%}")),
    ("domain given token", lambda g: cell(above_null(g, "nmi_given_token"), "{:.3f}")),
    ("domain NMI", lambda g: cell(above_null(g, "nmi"), "{:.3f}")),
    ("parameters", lambda g: si(mean(g, "params_total"))),
    ("active", lambda g: si(mean(g, "params_active"))),
    ("training FLOPs/token", lambda g: si(mean(g, "train_flops_per_token"))),
    ("tokens/s", lambda g: cell(mean(g, "tokens_per_second"), "{:,.0f}")),
    ("tokens", lambda g: si(mean(g, "tokens"))),
    ("lr", lambda g: cell(mean(g, "lr"), "{:g}")),
    ("seeds", lambda g: str(len({r["seed"] for r in g}))),
)


def table(records: Sequence[Record]) -> str:
    """One row per architecture, precision and k: its longest runs at their best learning rate."""
    if not records:
        return EMPTY
    arms = grouped(records, ("preset", "slot", "precision", "k"))
    groups = [best_group(arm) for arm in arms]
    rows = sorted(groups, key=lambda g: (math.isnan(mean(g, "val_bpb")), mean(g, "val_bpb")))
    return markdown(COLUMNS, rows)


# The same for dictionaries; a column that no group of a table fills is left out.
FIT_COLUMNS: tuple[Column, ...] = (
    ("matched on", lambda g: MATCHED[g[0]["matched_on"]]),
    ("dictionary", lambda g: str(g[0]["dictionary"])),
    ("s", lambda g: str(g[0]["nonzeros"] or NOTHING)),
    ("balance", lambda g: cell(mean(g, "balance"), "{:g}")),
    ("codes by", lambda g: str(g[0]["inference"])),
    ("latents", lambda g: str(g[0]["latents"])),
    ("evaluated", lambda g: str(g[0]["active_candidates"])),
    ("encoder MACs", lambda g: si(mean(g, "encoder_macs"))),
    ("values", lambda g: si(mean(g, "stored_values"))),
    ("FVU", lambda g: spread(g, "fvu", "{:.3f}")),
    ("CE recovered", lambda g: spread(g, "ce_recovered", "{:.3f}")),
    ("MCC", lambda g: spread(g, "mcc", "{:.3f}")),
    ("MCC by chance", lambda g: cell(mean(g, "mcc_chance"), "{:.3f}")),
    ("F1", lambda g: spread(g, "f1", "{:.3f}")),
    ("L0", lambda g: cell(mean(g, "l0"), "{:.1f}")),
    ("dead", lambda g: cell(mean(g, "dead_fraction"), "{:.1%}")),
    ("twins > .7", lambda g: cell(mean(g, "redundancy_70"), "{:.1%}")),
    ("> .8", lambda g: cell(mean(g, "redundancy_80"), "{:.1%}")),
    ("> .9", lambda g: cell(mean(g, "redundancy_90"), "{:.1%}")),
    ("R_OMP", lambda g: cell(mean(g, "r_omp"), "{:.3g}")),
    ("seconds", lambda g: cell(mean(g, "seconds"), "{:.0f}")),
    ("peak MB", lambda g: cell(mean(g, "peak_mb"), "{:.0f}")),
    ("rate", lambda g: cell(mean(g, "rate"), "{:g}")),
    ("seeds", lambda g: str(len({r["seed"] for r in g}))),
)
MATCHED = {
    None: NOTHING,
    "latents": "all latents",
    "active": "evaluated latents",
    "encoder_macs": "encoder MACs",
}
# Arms whose FVU others are compared with, seed by seed.
REFERENCES = ("topk", "switch")


def fits(records: Sequence[Record], experiment: str, source: str, k: str | None = None) -> str:
    """The arms of one experiment on one source, those of one comparison together, best first."""
    chosen = [
        record
        for record in records
        if record["experiment"] in experiment.split("+")
        and record["source"] == source
        and (k is None or record["k"] == float(k))
    ]
    if not chosen:
        return EMPTY
    names = ("matched_on", "dictionary", "latents", "nonzeros", "balance", "inference")
    order = list(MATCHED)
    rows = sorted(
        grouped(chosen, names),
        key=lambda g: (order.index(g[0]["matched_on"]), g[0]["inference"], mean(g, "fvu")),
    )
    against: list[Column] = [
        (f"FVU against {name}", lambda g, name=name: difference(g, chosen, name))
        for name in REFERENCES
        if any(r["dictionary"] == name and r["matched_on"] is not None for r in chosen)
    ]
    place = 1 + [heading for heading, _ in FIT_COLUMNS].index("FVU")
    columns = [*FIT_COLUMNS[:place], *against, *FIT_COLUMNS[place:]]
    filled = [c for c in columns if any(c[1](group) != NOTHING for group in rows)]
    same = {c[0] for c in filled if len({c[1](g) for g in rows}) == 1} & {"codes by", "balance"}
    return markdown([c for c in filled if c[0] not in same], rows)


def difference(group: Sequence[Record], records: Sequence[Record], name: str) -> str:
    """How far the FVU of a group lies from that of an arm of the same seeds and comparison.

    In percent of the other, with the 95 % interval of the paired differences.
    """
    from pellucid.stats.intervals import seed_interval

    other = {
        r["seed"]: r["fvu"]
        for r in records
        if (r["dictionary"], r["matched_on"], r["inference"])
        == (name, group[0]["matched_on"], group[0]["inference"])
    }
    paired = [100 * (r["fvu"] / other[r["seed"]] - 1) for r in group if r["seed"] in other]
    if group[0]["dictionary"] == name or not paired:
        return NOTHING
    found = seed_interval(paired)
    width = f" ± {found.half_width:.1f}" if math.isfinite(found.half_width) else ""
    return f"{found.mean:+.1f}{width} %"


def one(records: Sequence[Record]) -> str:
    """A single record as a table of its numbers."""
    if not records:
        return EMPTY
    (record,) = records
    shown = {name: value for name, value in record.items() if not isinstance(value, bool | str)}
    rows = [["figure", "value"], ["---", "---:"]]
    rows += [
        [name.replace("_", " "), f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"]
        for name, value in shown.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def grouped(records: Sequence[Record], names: Sequence[str]) -> list[list[Record]]:
    """Records that agree in all the names, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(name) for name in names), []).append(record)
    return list(groups.values())


def markdown(columns: Sequence[Column], rows: Sequence[list[Record]]) -> str:
    """A table with a line for each group of records."""
    headings = [heading for heading, _ in columns]
    rule = ["---", *["---:"] * (len(columns) - 1)]
    cells = [[cell(group) for _, cell in columns] for group in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [headings, rule, *cells])


def best_group(arm: Iterable[Record]) -> list[Record]:
    """The records of one arm with the most tokens and, among those, the best learning rate."""
    arm = list(arm)
    longest = max(record["tokens"] for record in arm)
    by_rate: dict[float, list[Record]] = {}
    for record in arm:
        if record["tokens"] == longest:
            by_rate.setdefault(record["lr"], []).append(record)
    # A rate tried with more seeds was chosen by the shorter trials.
    return min(by_rate.values(), key=lambda group: (-len(group), mean(group, "val_bpb")))


def mean(group: Iterable[Record], field: str) -> float:
    """Over the records that state the field; NaN where none does."""
    values = [record[field] for record in group if record.get(field) is not None]
    return statistics.fmean(values) if values else float("nan")


def above_null(group: Sequence[Record], field: str) -> float:
    """The mean of a field less the mean of its permutation null."""
    return mean(group, field) - mean(group, f"{field}_null_mean")


def spread(group: Sequence[Record], field: str, form: str) -> str:
    """The mean, and half the range where there are several seeds."""
    values = [record[field] for record in group if record.get(field) is not None]
    if len(values) < 2:
        return cell(mean(group, field), form)
    half = (max(values) - min(values)) / 2
    return f"{cell(mean(group, field), form)} ± {form.format(half)}"


def cell(number: float, form: str) -> str:
    """A number as ``form`` has it, a dash where no record states one."""
    return NOTHING if math.isnan(number) else form.format(number)


def si(number: float) -> str:
    """Three digits and a unit: 9.24 M; a dash for NaN."""
    if math.isnan(number):
        return NOTHING
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def help_text(verb: str) -> str:
    """What ``pellucid VERB --help`` prints at a fixed width, fenced."""
    from pellucid.cli import main as pellucid

    os.environ["COLUMNS"] = str(HELP_COLUMNS)
    os.environ.pop("FORCE_COLOR", None)
    printed, code = io.StringIO(), 0
    arguments = ["--help"] if verb == "pellucid" else [verb, "--help"]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        code = pellucid(arguments)
    if code:
        raise RuntimeError(f"pellucid {' '.join(arguments)} ended with code {code}")
    lines = (line.rstrip() for line in printed.getvalue().strip().splitlines())
    # A list that no terminal formatted is folded here; everything else fits as it is.
    folded = [
        textwrap.fill(line, HELP_COLUMNS) if len(line) > HELP_COLUMNS else line for line in lines
    ]
    return "\n".join(["```text", *folded, "```"])


def configs(root: str) -> str:
    """A config class by its dotted name, and every config it holds."""
    module, _, name = root.rpartition(".")
    kinds = reachable(getattr(importlib.import_module(module), name))
    return "\n\n".join(describe(kind) for kind in kinds)


def reachable(kind: type, seen: list[type] | None = None) -> list[type]:
    """``kind`` and the dataclasses in its fields, each once, in order of mention."""
    seen = [] if seen is None else seen
    if dataclasses.is_dataclass(kind) and kind not in seen:
        seen.append(kind)
        for hint in typing.get_type_hints(kind).values():
            for inner in (hint, *inside(hint)):
                reachable(inner, seen)
    return seen


def inside(hint: Any) -> list[Any]:
    """Every type inside a union, tuple or other generic."""
    arguments = typing.get_args(hint)
    return [inner for argument in arguments for inner in (argument, *inside(argument))]


def describe(kind: type) -> str:
    """One class: its docstring, those of its bases, and a table of its fields."""
    hints = typing.get_type_hints(kind)
    rows = [
        f"| `{field.name}` | {type_name(hints[field.name])} | {default_of(field)} |"
        for field in dataclasses.fields(kind)
    ]
    bases = [base for base in kind.__mro__ if dataclasses.is_dataclass(base)]
    says = [inspect.getdoc(base) or "" for base in bases]
    fields = "\n".join(["| field | type | default |", "|---|---|---|", *rows])
    return "\n\n".join([f"### {kind.__name__}", f"`{kind.__module__}`", *says, fields])


def type_name(hint: Any) -> str:
    """A type as a reader would write it: no module paths, and no bar, which would end a cell."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{option!r}`" for option in arguments)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(map(type_name, arguments))
    if arguments:
        inner = [type_name(argument) for argument in arguments if argument is not Ellipsis]
        return f"{hint.__origin__.__name__} of {', '.join(inner)}"
    return "none" if hint is type(None) else hint.__name__


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default, or what stands for it."""
    if field.default is not dataclasses.MISSING:
        value = field.default
        return f"`{type(value).__name__}()`" if dataclasses.is_dataclass(value) else f"`{value!r}`"
    return "made anew" if field.default_factory is not dataclasses.MISSING else "required"


if __name__ == "__main__":
    sys.exit(main())
