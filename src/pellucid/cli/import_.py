"""``pellucid import FOLDER --format saelens --run FOLDER``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pellucid.cli.parse import parse
from pellucid.cli.progress import say


@dataclass(frozen=True, kw_only=True)
class ImportFlags:
    """Read dictionaries that another tool wrote into a run folder."""

    source: Annotated[Path, tyro.conf.Positional]
    """The foreign folder."""
    format: str
    """saelens, sparsify, dictionary_learning or circuit_tracer."""
    run: Path
    """The run folder to make, with one folder per dictionary."""
    reads: str | None = None
    """Site that is read, where the folder does not say or says it wrongly."""
    writes: str | None = None
    """Site that is written; by default the one read, or what the folder says."""
    layers: str = "model.layers"
    """Where the model keeps its layers: blocks in a model of ours."""
    name: str | None = None
    """Name of the dictionary; by default the folder's."""
    input_scale: float | None = None
    """Factor on the inputs in training, where the folder does not hold it."""
    norm_folded: bool = False
    """The gains of norms are folded into the weights behind them."""
    row_normalised: bool = False
    """The site's rows are normalised already in the way the folder asks for."""
    overwrite: bool = False
    """Replace a run folder of the same name."""


def main(argv: Sequence[str]) -> int:
    """Import; print the folders of the dictionaries."""
    flags = parse(ImportFlags, argv, verb="import", says=ImportFlags.__doc__ or "")
    from pellucid.core.unit import Site
    from pellucid.interop import ReadOptions
    from pellucid.recipes.exchange import import_dictionaries

    options = ReadOptions(
        reads=None if flags.reads is None else Site.parse(flags.reads),
        writes=None if flags.writes is None else Site.parse(flags.writes),
        name=flags.name,
        input_scale=flags.input_scale,
        norm_folded=flags.norm_folded,
        row_normalised=flags.row_normalised,
        layers=flags.layers,
    )
    found = import_dictionaries(
        flags.source,
        flags.format,
        flags.run,
        options,
        command=["pellucid", "import", *argv],
        overwrite=flags.overwrite,
    )
    for one in found:
        for warning in one.warnings:
            say(f"{one.coder.spec.name}: {warning}")
        print(flags.run / one.coder.spec.name)
    return 0
