"""``pellucid export FOLDER --format saelens --out FOLDER``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pellucid.cli.parse import parse
from pellucid.cli.progress import say


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Write fitted dictionaries in another tool's format, exactly or not at all."""

    dictionary: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of dictionaries, such as runs/d/topk; several for formats that hold sets."""
    format: str
    """saelens, sparsify, dictionary_learning or circuit_tracer."""
    out: Path
    """The folder to write."""
    own_class: bool = False
    """SAELens only: keep the dictionary's own form, which opens where pellucid is installed."""
    lossy: bool = False
    """Write the nearest form of what the format cannot hold, and say how much changed."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Number type of the written weights."""
    overwrite: bool = False
    """Replace what is in the folder."""


def main(argv: Sequence[str]) -> int:
    """Export; print the folder."""
    flags = parse(ExportFlags, argv, verb="export", says=ExportFlags.__doc__ or "")
    from pellucid.core.errors import ConfigError
    from pellucid.interop import WriteOptions
    from pellucid.recipes.exchange import export_dictionaries

    if not flags.dictionary:
        raise ConfigError("export: expected the folder of a dictionary, for example runs/d/topk")
    options = WriteOptions(
        own_class=flags.own_class,
        lossy=flags.lossy,
        dtype=flags.dtype,
        overwrite=flags.overwrite,
    )
    for line in export_dictionaries(flags.dictionary, flags.format, flags.out, options):
        say(line)
    print(flags.out)
    return 0
