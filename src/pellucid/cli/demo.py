"""``pellucid demo``."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.cli.parse import parse
from pellucid.cli.progress import note_progress, say


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Train a small model of readable units and its dense twin, and write one HTML report.

    Needs no data, no GPU and no account; replaces its own folder when it is run again.
    """

    run: Path = Path("runs/demo")
    """The folder to make."""
    data: str = "embedded"
    """Where the text comes from: embedded, a file or folder, or hub:NAME[:CONFIG]."""
    steps: int | None = None
    """Steps an arm; the default fits a few minutes on two cores."""
    seed: int = 0
    """Seed of weights and data order."""


def main(argv: Sequence[str]) -> int:
    """Run the demonstration; print the summary and the report's path."""
    flags = parse(DemoFlags, argv, verb="demo", says=DemoFlags.__doc__ or "")
    from rich.console import Console
    from rich.table import Table

    from pellucid.recipes.demo import run_demo

    result = run_demo(
        flags.run,
        source=flags.data,
        steps=flags.steps,
        seed=flags.seed,
        progress=note_progress(),
        say=say,
    )
    if result.stopped is not None and result.progress is not None:
        place = f"step {result.progress.step} of {result.progress.steps} of {result.stopped}"
        say(f"stopped at {place}; the demo starts over when it is run again:")
        print(shlex.join(["pellucid", "demo", *argv]))
        return 0
    table = Table(box=None, pad_edge=False)
    table.add_column("arm")
    table.add_column("bits per byte", justify="right")
    for fact in result.arms[0].facts:
        table.add_column(fact, justify="right")
    for arm in result.arms:
        table.add_row(arm.name, f"{arm.bpb:.3f}", *arm.facts.values())
    Console(width=None if Console().is_terminal else 140).print(table)
    print(f"report: {result.report}")
    return 0
