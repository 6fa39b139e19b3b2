"""``pellucid resume FOLDER``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from pellucid.cli.parse import parse
from pellucid.cli.progress import finish, note_progress, say
from pellucid.core.errors import RunError


@dataclass(frozen=True, kw_only=True)
class ResumeFlags:
    """Continue a run from its newest checkpoint; the rest of the run repeats bit for bit."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    steps: int | None = None
    """A new number of steps in all; the learning-rate schedule is planned again for it."""
    checkpoint: str | None = None
    """Go back to this checkpoint, for example step_000000100; later ones are removed."""


def main(argv: Sequence[str]) -> int:
    """Resume; print the run's folder, or the resume command if it was stopped early again."""
    flags = parse(ResumeFlags, argv, verb="resume", says=ResumeFlags.__doc__ or "")
    from pellucid.cli.fit import resume as resume_fit
    from pellucid.recipes.fit_folder import is_fit
    from pellucid.recipes.folder import read_run
    from pellucid.recipes.training import prepare_run, train_language
    from pellucid.train.checkpoint import step_of

    if is_fit(flags.run):
        if flags.steps is not None or flags.checkpoint is not None:
            raise RunError(
                f"{flags.run}: a run of fits goes on as planned from its newest checkpoints; leave "
                "--steps and --checkpoint out, or fit again"
            )
        return resume_fit(flags.run)
    config, record = read_run(flags.run)
    reached = step_of(flags.run, flags.checkpoint)
    if flags.steps is not None and flags.steps != config.steps:
        if flags.steps < reached:
            raise RunError(
                f"{flags.run}: --steps {flags.steps}: the run is at step {reached} already; "
                "give a larger number, or go back with --checkpoint"
            )
        say(
            f"planned {config.steps} steps, now {flags.steps}: the learning-rate schedule is "
            f"planned again from step {reached}, so the result differs from an uninterrupted run"
        )
        config = replace(config, steps=flags.steps)
    prepared = prepare_run(config, note_progress(), resume=flags.run, checkpoint=flags.checkpoint)
    progress = train_language(
        flags.run, prepared, name=record["recipe"], say=say, checkpoint=flags.checkpoint
    )
    return finish(flags.run, progress.step, progress.steps)
