"""``pellucid worlds --world superposition --dictionary topk``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pellucid.cli.parse import parse
from pellucid.cli.progress import note_progress
from pellucid.core.errors import ConfigError

SHOWN = ("fvu", "l0", "silent", "mcc", "mcc_chance", "mcc_permuted", "f1", "uniqueness", "seconds")


@dataclass(frozen=True, kw_only=True)
class WorldsFlags:
    """Fit dictionaries to worlds with known features and print what they recover."""

    world: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """flat, tree, signed, expander (superposition: all four) or teacher. Repeat for more."""
    dictionary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A dictionary by name, with changes if wanted: topk, jumprelu:gate.l0=20. Repeat for more."""
    latents: int | None = None
    """Latents of every dictionary; by default as many as the world has features."""
    k: int | None = None
    """Latents kept per row; by default the features present in a row on average."""
    tokens: int = 1_000_000
    """Rows to fit on."""
    batch: int = 1024
    """Rows of a step."""
    seed: int = 0
    """Seed of rows and weights."""
    out: Path | None = None
    """Write all figures as JSON to this file too."""


def main(argv: Sequence[str]) -> int:
    """Fit and print one table."""
    from pellucid.cli.table import table
    from pellucid.data.worlds import named_worlds
    from pellucid.recipes.dictionary import choose_dictionary
    from pellucid.recipes.worlds import WorldFit, plan_world, recover

    flags = parse(WorldsFlags, argv, verb="worlds", says=WorldsFlags.__doc__ or "")
    if not flags.world or not flags.dictionary:
        raise ConfigError(
            "worlds: expected --world and --dictionary; add --world superposition --dictionary topk"
        )
    worlds = {name: world for asked in flags.world for name, world in named_worlds(asked).items()}
    planned: list[WorldFit] = []
    for name, world in worlds.items():
        latents, k = flags.latents or world.features, flags.k or max(1, round(world.l0))
        chosen = [choose_dictionary(text, latents=latents, k=k) for text in flags.dictionary]
        planned.append(
            plan_world(name, world, chosen, tokens=flags.tokens, batch=flags.batch, seed=flags.seed)
        )
    found = [one for plan in planned for one in recover(plan, report=note_progress())]
    rows = [[r.world, r.dictionary, *(r.figures[name] for name in SHOWN)] for r in found]
    print(table(["world", "dictionary", *SHOWN], rows))
    if flags.out is not None:
        records = [{"world": r.world, "dictionary": r.dictionary, **r.figures} for r in found]
        flags.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 0
