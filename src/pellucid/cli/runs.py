"""``pellucid runs FOLDER``."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pellucid.cli.parse import parse
from pellucid.cli.progress import say
from pellucid.core.errors import RunError

if TYPE_CHECKING:
    from pellucid.recipes.folder import RunSummary


@dataclass(frozen=True, kw_only=True)
class RunsFlags:
    """List the runs in a folder, dictionaries one by one: recipe, progress, tokens, validation bits
    per byte."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Where to look; runs may be nested."""
    json: bool = False
    """Print a JSON list instead of a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRun:
    """A run that cannot be read, and why."""

    name: str
    error: str


def main(argv: Sequence[str]) -> int:
    """Print one row per run."""
    flags = parse(RunsFlags, argv, verb="runs", says=RunsFlags.__doc__ or "")
    if not flags.folder.is_dir():
        raise RunError(f"{flags.folder}: no such folder; give the folder that holds the runs")
    found = sorted(path.parent for path in flags.folder.rglob("run.json"))
    rows: list[RunSummary | BadRun] = []
    for run in found:
        try:
            rows += _summarise(run)
        except (ValueError, OSError) as error:
            said = " ".join(str(error).split())
            say(said)
            rows.append(BadRun(name=str(run), error=said))
    if flags.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    _print_table(rows)
    return 0


def _summarise(run: Path) -> "Sequence[RunSummary]":
    from pellucid.recipes.exchange import summarise_import
    from pellucid.recipes.fit_folder import summarise_fit
    from pellucid.recipes.folder import kind_of, summarise

    match kind_of(run):
        case "fit":
            return summarise_fit(run)
        case "import":
            return summarise_import(run)
        case _:
            return [summarise(run)]


def _print_table(rows: "Sequence[RunSummary | BadRun]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("run", "recipe", "step", "tokens", "bits per byte"):
        table.add_column(name, justify="left" if name in ("run", "recipe") else "right")
    for row in rows:
        if isinstance(row, BadRun):
            table.add_row(escape(row.name), "cannot be read", "–", "–", "–")
            continue
        scored = "–" if row.bits_per_byte is None else f"{row.bits_per_byte:.3f}"
        place = f"{row.step}/{row.steps}"
        table.add_row(escape(row.name), escape(str(row.recipe)), place, f"{row.tokens:,}", scored)
    Console(width=None if Console().is_terminal else 140).print(table)
