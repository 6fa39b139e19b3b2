"""``pellucid harvest MODEL --site SITE --data SOURCE --tokens N --out FOLDER``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pellucid.cli.parse import parse, take_positional
from pellucid.cli.progress import note_progress, say
from pellucid.recipes.harvesting import HarvestRequest


@dataclass(frozen=True, kw_only=True)
class HarvestFlags:
    """Run a model once over text and keep the activations of some sites."""

    out: Path
    """The folder to fill; an interrupted harvest goes on there."""
    request: Annotated[HarvestRequest, tyro.conf.arg(name="")] = HarvestRequest()
    overwrite: bool = False
    """Replace another harvest in the folder."""


def main(argv: Sequence[str]) -> int:
    """Harvest; print the folder."""
    from pellucid.recipes.harvesting import harvest_sites

    if set(argv) & {"-h", "--help"}:
        name, rest = "MODEL", ["--help"]
    else:
        name, rest = take_positional(argv, "a run folder or a model's name", "harvest")
    flags = parse(
        HarvestFlags,
        rest,
        verb="harvest",
        says=HarvestFlags.__doc__ or "",
        usage="harvest MODEL",
    )
    cache = harvest_sites(
        name, flags.request, flags.out, overwrite=flags.overwrite, report=note_progress()
    )
    widths = ", ".join(f"{site} of width {width}" for site, width in cache.widths.items())
    say(f"{cache.rows:,} rows and {cache.validation_rows:,} held out: {widths}")
    print(flags.out)
    return 0
