"""What the verbs say on stderr while they work, and how a run's end is told."""

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path


def say(message: str) -> None:
    """One line on stderr."""
    print(f"pellucid: {message}", file=sys.stderr, flush=True)


def note_progress(interval: float = 5.0) -> Callable[[str, int, int], None]:
    """A reporter (what, done, total) that speaks when the task changes or some seconds passed."""
    task, spoken = "", 0.0

    def report(what: str, done: int, total: int) -> None:
        nonlocal task, spoken
        now = time.monotonic()
        if what == task and now - spoken < interval:
            return
        task, spoken = what, now
        share = f" {done:,} of {total:,}" if total else f" {done:,}" if done else ""
        say(f"{what}{share}")

    return report


def finish(run: Path, step: int, steps: int) -> int:
    """Say where the run is, or how to go on if it was stopped early; the exit code is 0."""
    if step < steps:
        say(f"stopped at step {step} of {steps} after a checkpoint; continue with:")
        print(f"pellucid resume {shlex.quote(str(run))}")
    else:
        say(f"finished {steps} steps")
        print(run)
    return 0
