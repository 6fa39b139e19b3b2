"""What happens after a step: evaluation, the metrics file, checkpoints, the progress line.

The loop calls them in this order, so that an evaluation's figures are in the line that is written
and the line is on disk before the checkpoint that remembers where the file ended.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from pellucid.train.loop import Callback, Progress


@dataclass(frozen=True)
class Evaluate(Callback):
    """Add ``figures()`` to the metrics every ``every`` steps and after the last one."""

    figures: Callable[[], Mapping[str, float]]
    every: int

    def after_step(self, progress: Progress) -> None:
        if progress.step % self.every == 0 or progress.step == progress.steps:
            progress.metrics.update(self.figures())


@dataclass
class MetricsFile(Callback):
    """One JSON line per ``every`` steps, and for every evaluation; feeds every plot."""

    path: Path
    every: int
    started: float = field(default_factory=time.monotonic)

    def after_step(self, progress: Progress) -> None:
        evaluated = any(name.startswith("val/") for name in progress.metrics)
        if progress.step % self.every and not evaluated and progress.step < progress.steps:
            return
        seconds = round(time.monotonic() - self.started, 3)
        head = {"step": progress.step, "tokens": progress.tokens, "seconds": seconds}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**head, **progress.metrics}) + "\n")


@dataclass(frozen=True)
class Checkpoints(Callback):
    """Call ``save(step)`` every ``every`` steps and when the run ends or is told to stop."""

    save: Callable[[int], None]
    every: int

    def after_step(self, progress: Progress) -> None:
        if progress.step % self.every == 0 or progress.last:
            self.save(progress.step)


class ProgressLine(Callback):
    """A bar on a terminal; elsewhere a plain line every ``interval`` seconds. Goes to stderr."""

    def __init__(self, name: str, steps: int, start: int, interval: float = 30.0) -> None:
        self._name, self._interval = name, interval
        self._began, self._said, self._tokens_before = time.monotonic(), time.monotonic(), None
        self._shown: dict[str, str] = {}
        self._bar = (
            tqdm(total=steps, initial=start, desc=name, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def after_step(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._tokens_before is None:
            # The first step pays for warm-up; the rate counts from its end.
            self._tokens_before, self._began = progress.tokens, now
        self._note(progress, now)
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(progress.step - self._bar.n)
            if progress.last:
                self._bar.close()
        elif progress.last or now - self._said >= self._interval:
            self._said = now
            shown = " ".join(f"{name} {value}" for name, value in self._shown.items())
            line = f"{self._name}: step {progress.step}/{progress.steps} {shown}"
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        """End the bar's line where a fault came before the last step: what follows starts anew."""
        if self._bar is not None:
            self._bar.close()

    def _note(self, progress: Progress, now: float) -> None:
        assert self._tokens_before is not None
        self._shown["loss"] = f"{progress.metrics['train/loss']:.3f}"
        if "val/bits_per_byte" in progress.metrics:
            self._shown["bpb"] = f"{progress.metrics['val/bits_per_byte']:.3f}"
        if "val/live_units" in progress.metrics:
            self._shown["live"] = f"{progress.metrics['val/live_units']:.0%}"
        elapsed, done = now - self._began, progress.tokens - self._tokens_before
        if done and elapsed > 0:
            rate = done / elapsed
            per_step = progress.tokens / progress.step
            eta = (progress.steps - progress.step) * per_step / rate
            self._shown["tok/s"] = f"{rate:,.0f}"
            self._shown["eta"] = f"{int(eta) // 60}:{int(eta) % 60:02d}"
