"""``pellucid runs FOLDER``."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pellucid.cli.parse import parse
from pellucid.cli.progress import say
from pellucid.core.errors import PellucidError, RunError


@dataclass(frozen=True, kw_only=True)
class RunsFlags:
    """List the runs in a folder: recipe, progress, tokens, validation bits per byte."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Where to look; runs may be nested."""
    json: bool = False
    """Print a JSON list instead of a table."""


def main(argv: Sequence[str]) -> int:
    """Print one row per run."""
    flags = parse(RunsFlags, argv, verb="runs", says=RunsFlags.__doc__ or "")
    from pellucid.recipes.folder import summarise

    if not flags.folder.is_dir():
        raise RunError(f"{flags.folder}: no such folder; give the folder that holds the runs")
    found = sorted(path.parent for path in flags.folder.rglob("run.json"))
    rows = []
    for run in found:
        try:
            rows.append(summarise(run))
        except PellucidError as error:
            say(str(error))
    if flags.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("run", "recipe", "step", "tokens", "bits per byte"):
        table.add_column(name, justify="left" if name in ("run", "recipe") else "right")
    for row in rows:
        scored = "–" if row.bits_per_byte is None else f"{row.bits_per_byte:.3f}"
        place = f"{row.step}/{row.steps}"
        table.add_row(row.name, row.recipe, place, f"{row.tokens:,}", scored)
    Console(width=None if Console().is_terminal else 140).print(table)
    return 0
